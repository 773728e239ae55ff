//! vfio-fast-run, and what it says of the program that it started.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

/// The summary of the last QEMU.
pub const SUMMARY: &str = "/run/preload-summary";
/// The vfio-fast-run that was built with the machine.
pub const RUN: &str = "/vft/lib/vfio-fast-run";

/// That vfio-fast-run; what is started, with its arguments, follows.
pub fn start(run: &str, summary: &str) -> Command {
    let mut command = Command::new(run);
    command.args(["--stats-file", summary, "--"]);
    command
}

/// The summary in that file; empty if there is none.
pub fn summary(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// The number of calls in the lines of a summary that begin with `name`, as in `type1 map`.
pub fn calls(summary: &str, name: &str) -> u64 {
    let lines = summary.lines().filter_map(|line| line.trim_start().strip_prefix(name));
    lines.filter_map(|rest| rest.trim_start().split_once(" calls")?.0.parse::<u64>().ok()).sum()
}

/// The most threads that faulted memory in.
pub fn threads(summary: &str) -> Result<u64> {
    let (_, rest) = summary.split_once("threads: ").context("the summary names no threads")?;
    let number = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    number.parse().context("the summary names no number of threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = "vfio-fast-preload 0.1.0: process 7 (qemu)\n\
                    \x20 type1 map                 12 calls     3.0 GiB     0.500 s, the longest     0.200 s\n\
                    \x20 type1 unmap                3 calls     1.0 GiB     0.500 s, the longest     0.200 s\n\
                    \x20 faulted in before          2 calls     2.0 GiB     0.125 s, threads: 2, in huge pages: 0 B\n";
        assert_eq!(
            (calls(text, "type1 map"), calls(text, "type1 unmap"), calls(text, "iommufd map")),
            (12, 3, 0)
        );
        assert_eq!((threads(text).unwrap(), calls(text, "faulted in before")), (2, 2));
        assert!(threads("").is_err());
    }
}
