//! The targets that programs and tests are compiled for.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::outcome::CannotRun;
use crate::paths;
use crate::progress::run_logged;

/// A target of the Rust compiler that differs from this machine at most in the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    X86,
    Arm64,
}

impl Target {
    /// Its name.
    pub const fn triple(self) -> &'static str {
        match self {
            Target::X86 => "x86_64-unknown-linux-gnu",
            Target::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Variables of Cargo.
    pub const fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Target::X86 => &[],
            Target::Arm64 => &[("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")],
        }
    }
}

/// Installs the standard library for the target of that name.
pub fn add(triple: &str, log: &Path) -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(["target", "add", triple]).current_dir(paths::root());
    if Command::new("rustup").arg("--version").output().is_err() {
        let what = format!("there is no rustup to install the standard library for {triple}");
        return Err(CannotRun(what).into());
    }
    run_logged(&mut command, log)
}
