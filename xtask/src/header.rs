//! `cargo xtask header`: generates the C header from the ffi crate.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use vfio_fast_assets::{library, paths};

/// Arguments of `header`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Write nothing; fail if the header in the repository is out of date
    #[arg(long)]
    check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    let path = library::header();
    fs::create_dir_all(path.parent().context("the header has a directory")?)?;
    fs::write(&path, generate()?).with_context(|| format!("Cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Fails if the header in the repository differs from the one generated from the ffi crate.
pub fn check() -> Result<()> {
    let path = library::header();
    let committed = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    match first_difference(&committed, &generate()?) {
        None => Ok(()),
        Some(difference) => {
            bail!("{}: {difference}\n`cargo xtask header` regenerates it", relative(&path))
        }
    }
}

fn generate() -> Result<String> {
    let ffi = paths::root().join("ffi");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml")).map_err(|error| anyhow!(error))?;
    let bindings = cbindgen::Builder::new().with_crate(&ffi).with_config(config).generate()?;
    let mut bytes = Vec::new();
    bindings.write(&mut bytes);
    Ok(String::from_utf8(bytes)?)
}

/// Describes the first line in which two texts differ.
fn first_difference(committed: &str, generated: &str) -> Option<String> {
    if committed == generated {
        return None;
    }
    let (mut left, mut right) = (committed.split('\n'), generated.split('\n'));
    for number in 1.. {
        let (old, new) = (left.next(), right.next());
        if old != new {
            let show = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("`{line}`"));
            return Some(format!("line {number} is {}, the ffi crate says {}", show(old), show(new)));
        }
        if old.is_none() {
            break;
        }
    }
    None
}

fn relative(path: &Path) -> String {
    path.strip_prefix(paths::root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn every_difference_is_found() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        let changed = first_difference("a\nb\n", "a\nc\n").unwrap();
        assert_eq!(changed, "line 2 is `b`, the ffi crate says `c`");
        assert!(first_difference("a\n", "a\nb\n").unwrap().starts_with("line 2 is ``"));
        assert!(first_difference("a", "a\n").unwrap().starts_with("line 2 is nothing"));
    }
}
