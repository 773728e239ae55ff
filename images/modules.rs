// Lists the Rust files of a folder as modules, for the build scripts that include this file: a new file in the folder
// needs no line anywhere else.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Writes `scenarios.rs` to the folder of generated files: a module for each file of `folder`, and `constant`, an array
/// with the element that `element` returns for each module and its file.
fn list(
    folder: &str,
    visibility: &str,
    constant: &str,
    element: impl Fn(&str, &Path) -> Result<String>,
) -> Result<()> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(folder);
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut modules = String::new();
    let mut elements = String::new();
    for name in names(&folder)? {
        let file = folder.join(format!("{name}.rs"));
        writeln!(modules, "#[path = {file:?}]\n{visibility}mod {name};")?;
        writeln!(elements, "    {},", element(&name, &file)?)?;
    }
    let list = format!("{modules}\nconst {constant} = &[\n{elements}];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("scenarios.rs"), list)?;
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name().into_string().map_err(|name| format!("{name:?}"))?;
        names.extend(file.strip_suffix(".rs").filter(|name| *name != "mod").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
