//! QEMU's trace events.

use std::fs;

use anyhow::{Context, Result};

const FILE: &str = "/run/qemu-trace";

/// Arguments with which QEMU writes down events of these names, `*` for any characters.
pub fn arguments(events: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-D".to_owned(), FILE.to_owned()];
    for events in events {
        arguments.extend(["-trace".to_owned(), format!("enable={events}")]);
    }
    arguments
}

/// The trace so far, one event a line: its name, then its arguments.
pub fn text() -> Result<String> {
    fs::read_to_string(FILE).context("cannot read QEMU's trace")
}

/// How often that event has happened so far.
pub fn count(event: &str) -> Result<usize> {
    Ok(text()?.lines().filter(|line| line.contains(event)).count())
}

/// The hexadecimal number after that name.
pub fn hex(line: &str, name: &str) -> Result<u64> {
    let digits = value(line, name)?.trim_start_matches("0x");
    u64::from_str_radix(digits, 16).with_context(|| format!("{name} in the trace `{line}`"))
}

/// The decimal number after that name.
pub fn decimal(line: &str, name: &str) -> Result<u64> {
    value(line, name)?.parse().with_context(|| format!("{name} in the trace `{line}`"))
}

fn value<'a>(line: &'a str, name: &str) -> Result<&'a str> {
    let value = line.split_once(name).map(|(_, rest)| rest.trim_start());
    let value = value.with_context(|| format!("no {name} in the trace `{line}`"))?;
    Ok(value.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found() {
        let line = "virtio_mem_plug_request addr=0x108000000 nb_blocks=14";
        assert_eq!(hex(line, "addr=").unwrap(), 0x1_0800_0000);
        assert_eq!(decimal(line, "nb_blocks=").unwrap(), 14);
        assert!(hex(line, "size=").is_err());
    }
}
