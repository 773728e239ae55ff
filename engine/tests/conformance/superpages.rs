//! Superpages at IOVA 0, in the IOMMU's own page tables: an entry that is not cut keeps them.

use std::fs;
use std::io::Error;

use super::common::range;
use super::kernel::{self, Driver};
use super::witness::PageTables;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, host_va};

const MIB: u64 = 1 << 20;
const SIZES: [u64; 2] = [2 * MIB, 1 << 30];

/// Pages of hugetlb.
pub struct HugePages {
    pub address: u64,
    pub bytes: u64,
}

impl HugePages {
    /// Maps pages of that size, with further flags. `None` if that is refused.
    pub fn map(page: u64, count: u64, flags: libc::c_int) -> Option<Self> {
        let size = libc::MAP_HUGETLB | ((page.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | size | flags;
        let (protection, bytes) = (libc::PROT_READ | libc::PROT_WRITE, page * count);
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes as usize, protection, flags, -1, 0) };
        (address != libc::MAP_FAILED).then(|| Self { address: address as u64, bytes })
    }

    /// A page that is present. `None` if the machine has no such page and cannot make one.
    fn present(page: u64) -> Option<Self> {
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page / 1024);
        fs::write(pool, "1").ok()?;
        Self::map(page, 1, libc::MAP_POPULATE)
    }

    /// All of them, as RAM at `iova`.
    pub fn region(&self, iova: u64) -> Region {
        let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing::UNKNOWN);
        // SAFETY: the memory stays mapped until the engine is closed, and no reference into it exists.
        let hva = unsafe { host_va(self.address) };
        Region { range: range(iova, self.bytes), hva, perm, kind, backing, join: false, exact: false }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's, and nothing refers to it.
        let result = unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes as usize) };
        assert_eq!(result, 0, "{}", Error::last_os_error());
    }
}

/// The bytes that each leaf entry translates, from IOVA 0 on, after the page was mapped there.
fn leaves(driver: Driver, page: &HugePages, cuts: &[u64]) -> Vec<(u64, u64)> {
    let tables = PageTables::of(&kernel::device_name()).expect("VT-d");
    let mut found = Vec::new();
    kernel::owned(driver, |backend, _, _| {
        let config = Config { cuts: cuts.to_vec(), huge_pages: false, threads: 1, ..Config::default() };
        let engine = Engine::new(backend, config).unwrap();
        engine.map_region(page.region(0)).unwrap();
        found = tables.leaves();
        engine.close().unwrap();
    });
    found
}

pub fn at_zero_are_one_entry(driver: Driver) {
    for size in SIZES {
        let Some(page) = HugePages::present(size) else {
            assert_ne!(size, SIZES[0], "no page of 2 MiB");
            eprintln!("no page of {size} bytes: not tested");
            continue;
        };
        assert_eq!(leaves(driver, &page, &[]), [(0, size)], "{driver:?}: not cut");
        // The price of a cut: the first 2 MiB are translated page by page.
        let cut = leaves(driver, &page, &[MIB]);
        let small: Vec<(u64, u64)> = (0..512).map(|page| (page * 4096, 4096)).collect();
        assert_eq!(cut[..512], small, "{driver:?}: cut at 1 MiB");
        assert!(cut[512..].iter().all(|(_, bytes)| *bytes == 2 * MIB), "{driver:?}: cut at 1 MiB");
        assert_eq!(cut.iter().map(|(_, bytes)| bytes).sum::<u64>(), size);
    }
}
