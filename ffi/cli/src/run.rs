//! The command line of vfio-fast-run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

const AFTER: &str = "\
The command runs with libvfio_fast_preload.so in LD_PRELOAD, in place of this process. The library faults the memory
of each VFIO or iommufd map call in on all CPUs before the call; what the command sees of the kernel is the same. It
does nothing for programs that are linked statically or that change their user when they start (setuid).

Exit codes:
  125  the library was not found, or the arguments are wrong
  126  the command cannot be run
  127  the command was not found
  else  that of the command";

/// Runs a command that maps memory for VFIO devices, with the memory faulted in on all CPUs. Changes nothing of the
/// command.
#[derive(Parser)]
#[command(name = "vfio-fast-run", version, after_help = AFTER)]
pub struct Cli {
    /// When the command ends, print on its standard error what was mapped, faulted in, and how long it took
    #[arg(long)]
    pub stats: bool,
    /// The same, appended to this file
    #[arg(long, value_name = "FILE", conflicts_with = "stats")]
    pub stats_file: Option<PathBuf>,
    /// Write to this file when which thread has mapped, unmapped and faulted in what, for <https://ui.perfetto.dev>
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    #[arg(value_hint = clap::ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_keeps_its_options() {
        let parsed = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["vfio-fast-run"], args].concat()).unwrap();
            (cli.stats, cli.command)
        };
        assert_eq!(
            parsed(&["--stats", "--", "qemu", "--stats"]),
            (true, vec!["qemu".into(), "--stats".into()])
        );
        assert!(!parsed(&["qemu", "-S", "--stats"]).0);
        assert!(Cli::try_parse_from(["vfio-fast-run"]).is_err());
    }
}
