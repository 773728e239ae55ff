//! The nested machines: stock QEMU and vfio-fast side by side.

use anyhow::{Result, bail};

/// Which scenarios to run.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Print the names of the scenarios and stop
    #[arg(long)]
    list: bool,
    /// Run only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// Runs the scenarios asked for; all of them without arguments.
pub fn run(args: &Args) -> Result<()> {
    bail!("no scenario yet ({args:?})")
}
