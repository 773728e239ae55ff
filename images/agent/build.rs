//! Lists the files of src/l1/scenarios, so that a new scenario needs no line anywhere else.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/l1/scenarios");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut modules = String::new();
    let mut stories = String::new();
    for name in names(&folder)? {
        let file = folder.join(format!("{name}.rs"));
        writeln!(modules, "#[path = {file:?}]\nmod {name};")?;
        // Does not compile unless the protocol has a scenario of that name.
        writeln!(stories, "    (vfio_fast_protocol::scenarios::{name}::NAME, {name}::run),")?;
    }
    let list = format!("{modules}\nconst STORIES: &[(&str, Story)] = &[\n{stories}];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("scenarios.rs"), list)?;
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name().into_string().map_err(|name| format!("{name:?}"))?;
        names.extend(file.strip_suffix(".rs").filter(|name| *name != "mod").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
