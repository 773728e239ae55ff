//! Lists the files of src/scenarios, so that a new scenario needs no line anywhere else.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/scenarios");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut modules = String::new();
    let mut specs = String::new();
    for name in names(&folder)? {
        let file = folder.join(format!("{name}.rs"));
        writeln!(modules, "#[path = {file:?}]\npub mod {name};")?;
        let constant = format!("pub const NAME: &str = {:?};", name.replace('_', "-"));
        if !fs::read_to_string(&file)?.contains(&constant) {
            return Err(format!("{} does not say `{constant}`", file.display()).into());
        }
        writeln!(specs, "    File {{ name: {name}::NAME, specs: {name}::specs }},")?;
    }
    let list = format!("{modules}\nconst FILES: &[File] = &[\n{specs}];\n");
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
