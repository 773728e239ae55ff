//! Memory for calls whose input can be of any size. Rust ends the process if an allocation fails, as GLib does in QEMU. So
//! such a call asks for the memory of all of it, before it changes anything.

use std::hint::black_box;

use crate::error::{Errno, Error, ErrorKind, Result};

/// A call with no more pages or entries is not checked: the memory is little, and asking for it takes longer than a call
/// for one page.
pub(super) const FEW: u64 = 4096;

/// Bytes that each page, region or entry takes at most until the call has ended: in the wanted set and its journal, in
/// the table, in the plan, and in the lists that are made of them. (`engine/tests/fail_allocations.rs` compares it with
/// what is allocated.)
const BYTES_EACH: u64 = 1024;

/// The same for an entry of a plan that may be refused.
const PLAN_BYTES_EACH: u64 = 192;

/// Fails with ENOMEM unless the memory for `count` pages, regions or entries can be allocated now.
pub(super) fn check_for(count: u64) -> Result<()> {
    check(count, BYTES_EACH)
}

/// Fails with ENOMEM unless the memory for a plan of `count` entries can be allocated now.
pub(super) fn check_for_plan(count: u64) -> Result<()> {
    check(count, PLAN_BYTES_EACH)
}

fn check(count: u64, bytes_each: u64) -> Result<()> {
    if count <= FEW {
        return Ok(());
    }
    let mut memory = Vec::<u8>::new();
    let bytes = usize::try_from(count.saturating_mul(bytes_each)).unwrap_or(usize::MAX);
    // The pages of the memory are not accessed, so this takes two system calls, whatever its size.
    let allocated = memory.try_reserve_exact(bytes);
    // Memory that nobody looks at need not be allocated.
    black_box(&memory);
    allocated.map_err(|_| too_little())
}

/// The error of a call that needs more memory than the process can allocate.
pub(super) fn too_little() -> Error {
    let kind = ErrorKind::Other("too little memory for the library's own lists of so many pages or entries");
    Error::check(Errno::ENOMEM, kind)
}
