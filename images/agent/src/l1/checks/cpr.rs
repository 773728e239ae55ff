//! QEMU's modes of migration that hand the device over to another QEMU, with its mappings (CPR).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_fast_protocol::checks::CheckName;

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

const REASON: &str = "x-dma-mapper=libvfio-fast do not support cpr-transfer";

/// Whether this QEMU can hand VFIO devices over. Older ones cannot, with and without the library.
pub fn is_possible(vm: &mut Vm) -> Result<bool> {
    let version = vm.qmp.run("query-version", json!({}))?;
    let number = |name: &str| version["qemu"][name].as_u64().context("QEMU has no version");
    Ok((number("major")?, number("minor")?) >= (10, 2))
}

/// Checks that the library's containers block the mode of such a QEMU, or that nothing of them does any more. Other
/// reasons, such as RAM that is not shared, do not matter.
pub fn is_blocked(lab: &Lab, vm: &mut Vm, blocked: bool, check: impl CheckName) -> Result<()> {
    let (mut seen, mut right) = (Vec::new(), true);
    for (mode, expected) in [("cpr-transfer", blocked), ("normal", false)] {
        vm.qmp.run("migrate-set-parameters", json!({ "mode": mode }))?;
        let info = vm.qmp.run("query-migrate", json!({}))?;
        let reasons = info["blocked-reasons"].as_array().cloned().unwrap_or_default();
        let found = reasons.iter().filter_map(Value::as_str).any(|reason| reason.contains(REASON));
        seen.push(format!("{mode}: {} reasons, the library's: {found}", reasons.len()));
        right &= found == expected;
    }
    lab.report.expect(check, right, &seen.join("; "));
    Ok(())
}
