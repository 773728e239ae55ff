//! Starts a program with libvfio_fast_preload: `vfio-fast-run --help`.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use vfio_fast_cli::run::Cli;
use vfio_fast_engine::timeline;

const LIBRARY: &str = "libvfio_fast_preload.so";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing else can be done if it cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 125 } else { 0 });
        }
    };
    let mut command = match prepare(&cli) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("vfio-fast-run: {error:#}");
            return ExitCode::from(125);
        }
    };
    let error = command.exec();
    eprintln!("vfio-fast-run: {}: {error}", command.get_program().to_string_lossy());
    ExitCode::from(if error.kind() == ErrorKind::NotFound { 127 } else { 126 })
}

/// The command, with its environment.
fn prepare(cli: &Cli) -> Result<Command> {
    let program = std::env::current_exe().context("cannot find out where this program is")?;
    let library = find(&program)?;
    let (name, arguments) = cli.command.split_first().context("no command")?;
    let mut command = Command::new(name);
    command.args(arguments);
    command.env("LD_PRELOAD", preload(&library, std::env::var_os("LD_PRELOAD").as_deref())?);
    command.env("VFIO_FAST_RUN_PID", std::process::id().to_string());
    if let Some(file) = &cli.stats_file {
        let file = std::path::absolute(file).with_context(|| format!("--stats-file {}", file.display()))?;
        command.env("VFIO_FAST_PRELOAD_STATS", file);
    } else if cli.stats {
        command.env("VFIO_FAST_PRELOAD_STATS", "-");
    }
    if let Some(file) = &cli.timeline {
        let file = std::path::absolute(file).with_context(|| format!("--timeline {}", file.display()))?;
        command.env(timeline::VARIABLE, file);
    }
    Ok(command)
}

/// The library that belongs to this program: beside it, as cargo builds them, or in the lib folder of the same prefix.
/// Distributions keep what no program links with in a folder of its own there.
fn find(program: &Path) -> Result<PathBuf> {
    let folder = program.parent().context("this program is in no folder")?;
    let places = ["", "../lib", "../lib/vfio-fast"].map(|place| folder.join(place).join(LIBRARY));
    match places.iter().find(|place| place.is_file()) {
        Some(found) => found.canonicalize().with_context(|| found.display().to_string()),
        None => bail!("there is no {}", places.map(|place| place.display().to_string()).join(" and no ")),
    }
}

/// The value of LD_PRELOAD: `library`, and then what there was.
fn preload(library: &Path, before: Option<&OsStr>) -> Result<OsString> {
    let separates = |byte: &u8| matches!(byte, b' ' | b':');
    let path = library.as_os_str();
    ensure!(
        !path.as_bytes().iter().any(separates),
        "{}: LD_PRELOAD takes no space or colon",
        library.display()
    );
    let mut value = path.to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        value.push(":");
        value.push(before);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_preloaded_already_stays() {
        let library = Path::new("/x/lib.so");
        assert_eq!(preload(library, None).unwrap(), "/x/lib.so");
        assert_eq!(preload(library, Some(OsStr::new(""))).unwrap(), "/x/lib.so");
        assert_eq!(preload(library, Some(OsStr::new("a.so b.so"))).unwrap(), "/x/lib.so:a.so b.so");
        assert!(preload(Path::new("/x y/lib.so"), None).is_err());
    }
}
