//! A page that is replaced while a device has it, in the IOMMU's own page tables.

use std::io::Error;

use super::cases::PAGE;
use super::common::hva_of;
use super::common::memory::RealMemory;
use super::common::range;
use super::kernel::{self, Driver};
use super::witness::{PageTables, physical_of};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, host_va};

const BYTES: u64 = 8 << 20;
const IOVA: u64 = 1 << 30;

/// The device is left with the old page until the memory is mapped again, and then has the new one.
pub fn are_mapped_again(driver: Driver) {
    let _memory = RealMemory::new();
    let tables = PageTables::of(&kernel::device_name()).expect("VT-d");
    let (start, offset) = (hva_of(1, 0), 5 * PAGE);
    let page = (start + offset) as *mut libc::c_void;
    kernel::owned(driver, |backend, _, _| {
        let config = Config { huge_pages: false, threads: 1, ..Config::default() };
        let engine = Engine::new(backend, config).unwrap();
        // SAFETY: the memory stays mapped until the engine is closed, no reference into it exists, and nothing needs
        // what was in the page that is replaced.
        let hva = unsafe { host_va(start) };
        let (range, perm, kind, backing) = (range(IOVA, BYTES), Perm::ReadWrite, Kind::Ram, Backing(1));
        engine.map_region(Region { range, hva, perm, kind, backing, join: false, exact: false }).unwrap();
        let reached = || tables.read().get(&(IOVA + offset)).expect("it is mapped").physical;
        let old = physical_of(start + offset);
        assert_eq!(reached(), old, "{driver:?}");

        // SAFETY: the page is this test's own memory, to which no reference exists.
        let discarded = unsafe { libc::madvise(page, PAGE as usize, libc::MADV_DONTNEED) };
        assert_eq!(discarded, 0, "{}", Error::last_os_error());
        // SAFETY: as before; the write makes the kernel put another page there, because the old one is pinned.
        unsafe { page.cast::<u8>().write_volatile(1) };
        let new = physical_of(start + offset);
        assert_ne!(new, old, "{driver:?}: the page was not replaced");
        assert_eq!(reached(), old, "{driver:?}: what is wanted has not changed, so nobody unmaps it");

        assert_eq!(engine.remap(hva.checked_add(offset).unwrap(), PAGE).unwrap(), BYTES);
        assert_eq!(reached(), new, "{driver:?}");
        assert_eq!(tables.read().len() as u64, BYTES / PAGE, "{driver:?}: all else is mapped as before");
        engine.close().unwrap();
    });
}
