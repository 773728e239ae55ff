//! What L2 boots with.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result};
use vfio_fast_protocol::job::Firmware;
use vfio_fast_protocol::witness::Call;

use crate::l1::guest_machine::MACHINE;
use crate::l1::lab::Lab;

/// OVMF's code, and its variables as they are in a new machine.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// This machine's variables: OVMF writes them.
const OWN: &str = "/run/l2-variables";

/// Where the flash with both lies in the guest: below 4 GiB.
const FLASH: Range<u64> = 0xffc0_0000..0x1_0000_0000;

/// Arguments for it; QEMU takes SeaBIOS by itself.
pub fn arguments(lab: &Lab) -> Result<Vec<String>> {
    if lab.job.firmware == Firmware::SeaBios {
        return Ok(Vec::new());
    }
    fs::copy(VARIABLES, OWN).with_context(|| format!("cannot copy {VARIABLES}"))?;
    let drives =
        [format!("if=pflash,format=raw,readonly=on,file={CODE}"), format!("if=pflash,format=raw,file={OWN}")];
    Ok(drives.into_iter().flat_map(|drive| ["-drive".to_owned(), drive]).collect())
}

/// Host address ranges of flash, which no device reaches: KVM reads it as memory, but it is a device. SeaBIOS lies in
/// ordinary memory.
pub fn flash(lab: &Lab, calls: &[Call]) -> Vec<(u64, u64)> {
    let flash = match lab.job.firmware {
        Firmware::SeaBios => MACHINE.flash,
        Firmware::Ovmf => Some(FLASH),
    };
    let Some(flash) = flash else { return Vec::new() };
    let slots =
        calls.iter().filter(|call| call.gives_memory() && call.size > 0 && flash.contains(&call.iova));
    slots.map(|slot| (slot.vaddr, slot.vaddr + slot.size)).collect()
}
