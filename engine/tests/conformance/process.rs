//! Other processes of this program, and the memory that they and this one map.

use std::process::Command;

use super::common::{hva_of, range};
use vfio_fast_engine::host_va;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};

/// What runs one of this program's tests, an ignored one, in a process of its own.
pub fn running(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// A part of an object of [`RealMemory`](super::common::memory::RealMemory), which exists until the engine is closed or
/// the process ends.
pub fn ram(iova: u64, object: u64, offset: u64, bytes: u64) -> Region {
    // SAFETY: the memory stays mapped that long, and no reference into it exists.
    let hva = unsafe { host_va(hva_of(object, 0) + offset) };
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing::UNKNOWN);
    Region { range: range(iova, bytes), hva, perm, kind, backing, join: false, exact: false }
}
