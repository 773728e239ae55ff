//! QEMU's modes of migration that hand the device over to another QEMU, with its mappings (CPR).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_fast_protocol::checks::CheckName;

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

const REASON: &str = "x-dma-mapper=libvfio-fast support neither cpr-transfer nor cpr-exec";

/// The modes that this QEMU has.
fn modes(vm: &mut Vm) -> Result<&'static [&'static str]> {
    let version = vm.qmp.run("query-version", json!({}))?;
    let number = |name: &str| version["qemu"][name].as_u64().context("QEMU has no version");
    let has_exec = (number("major")?, number("minor")?) >= (10, 2);
    Ok(if has_exec { &["cpr-transfer", "cpr-exec"] } else { &["cpr-transfer"] })
}

/// Checks that the library's containers block the modes, or that nothing of them does any more. Other reasons, such as
/// RAM that is not shared, do not matter.
pub fn is_blocked(lab: &Lab, vm: &mut Vm, blocked: bool, check: impl CheckName) -> Result<()> {
    let (mut seen, mut right) = (Vec::new(), true);
    let handing_over = modes(vm)?.iter().map(|mode| (*mode, blocked));
    for (mode, expected) in handing_over.chain([("normal", false)]) {
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
