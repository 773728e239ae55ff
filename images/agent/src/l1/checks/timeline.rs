//! The library's record of what it does when, compared with what the witness saw.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;
use vfio_fast_protocol::checks::CheckName;

use crate::l1::lab::Lab;
use crate::l1::vm::{TIMELINE, Vm};

/// Checks that there is one span for each call that has mapped or unmapped something, with its bytes. The file goes to
/// the host.
pub fn agrees(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let text = fs::read_to_string(TIMELINE).with_context(|| format!("cannot read {TIMELINE}"))?;
    text.lines().for_each(|line| lab.report.log("timeline", line));
    let events: Vec<Value> = serde_json::from_str(&text).context("the timeline is no JSON")?;
    let of = |names: &[&str]| {
        let done = |event: &&Value| {
            names.iter().any(|name| event["name"] == *name) && event["args"]["errno"].is_null()
        };
        events
            .iter()
            .filter(done)
            .map(|event| hexadecimal(&event["args"]["bytes"]))
            .collect::<Result<Vec<_>>>()
    };
    let (maps, unmaps) = (of(&["map"])?, of(&["unmap", "unmap all"])?);
    let calls = vm.witnessed()?;
    let mapped: Vec<u64> = calls.iter().filter(|call| call.mapped()).map(|call| call.size).collect();
    let unmapped = calls.iter().filter(|call| call.unmapped()).count();
    let mut problems = Vec::new();
    let bytes = |sizes: &[u64]| sizes.iter().sum::<u64>();
    if (maps.len(), bytes(&maps)) != (mapped.len(), bytes(&mapped)) {
        problems.push(format!("{} maps, the witness saw {}", maps.len(), mapped.len()));
    }
    if unmaps.len() != unmapped {
        problems.push(format!("{} unmaps, the witness saw {unmapped}", unmaps.len()));
    }
    for name in ["commit", "plan", "fault in"] {
        if !events.iter().any(|event| event["name"] == name) {
            problems.push(format!("no span is named {name}"));
        }
    }
    lab.report.check(check, &problems, &format!("{} maps and {unmapped} unmaps", maps.len()));
    Ok(())
}

fn hexadecimal(value: &Value) -> Result<u64> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).context("a span without bytes")?;
    Ok(u64::from_str_radix(digits, 16)?)
}
