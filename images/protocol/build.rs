//! Lists the files of src/scenarios.

include!("../modules.rs");

fn main() -> Result<()> {
    list("src/scenarios", "pub ", "FILES: &[File]", |name, file| {
        let constant = format!("pub const NAME: &str = {:?};", name.replace('_', "-"));
        if !fs::read_to_string(file)?.contains(&constant) {
            return Err(format!("{} does not say `{constant}`", file.display()).into());
        }
        Ok(format!("File {{ name: {name}::NAME, specs: {name}::specs }}"))
    })
}
