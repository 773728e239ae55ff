//! Every input of the corpora, and so every input that has found an error, without a fuzzer.

use std::fs;
use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "no inputs of {target}");
}

#[test]
fn inputs_of_the_engine() {
    each("engine", vfio_fast_fuzz::engine::run);
}

#[test]
fn inputs_of_the_c_interface() {
    each("c_interface", vfio_fast_fuzz::c_interface::run);
}
