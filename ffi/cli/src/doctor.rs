//! The command line of vfio-fast-doctor.

use std::path::PathBuf;

use clap::Parser;

const AFTER: &str = "\
Verdicts:
  fine    nothing to do
  better  it works, but slower or with less
  BLOCKS  a guest with a passed-through device does not start

A line after > is what mends it: a command, or what to change. The report is about this user, this shell and this
cgroup: run it as whoever starts QEMU.

JSON:
  version      1; incremented when a field changes its meaning or goes
  can_work     whether nothing blocks
  guest_bytes  --guest in bytes, or null
  devices      --devices
  viommu       --viommu
  findings     a list; each has topic, verdict (\"fine\", \"better\" or \"blocks\"), what, and fix (or null)
Texts and topics may change in any version; can_work and verdict are for programs.

Exit codes:
  0  it can work
  1  something blocks
  2  the arguments are wrong, or nothing could be read";

/// Says whether this host is ready for VFIO passthrough with vfio-fast, what blocks, and what mends it. Changes
/// nothing.
#[derive(Parser)]
#[command(name = "vfio-fast-doctor", version, after_help = AFTER)]
pub struct Cli {
    /// RAM of the guest, as 512G or 2T
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub guest: Option<u64>,
    /// Number of devices to pass through
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub devices: u64,
    /// The guest has a virtual IOMMU: each device then has a container of its own
    #[arg(long)]
    pub viommu: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Look at the files below this directory in place of this host's
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// The size that an argument names: a number with K, M, G or T, or with KiB, MiB and so on.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB") {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a size is a number with a unit: 512G, 2T, 4096M".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a size is a whole number with a unit: 512G".to_string())?;
    let bytes = number.checked_mul(1 << shift).ok_or("larger than any memory")?;
    if bytes == 0 { Err("a guest has memory".into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(parse_size("512G"), Ok(512 << 30));
        assert_eq!(parse_size("2t"), Ok(2 << 40));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        for text in ["512", "G", "1.5G", "-1G", "0G", "18446744073709551615T", "1GB", "1X", ""] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
