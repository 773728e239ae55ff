//! Discarding memory: what is freed, what stays, and what is refused.
#![allow(unsafe_code, reason = "the memory these tests give back is mapped by hand")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use memfd::MemfdOptions;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::{Errno, ErrorKind, Op};
use vfio_fast_engine::host_va;
use vfio_fast_engine::populate::CHUNK_BYTES;
use vfio_fast_engine::populate::discard::{self, Report};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine};
use vfio_fast_engine::{DiscardMode, DiscardRange, discard_range};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// A mapping of base pages, filled with `FULL`.
struct Memory {
    address: *mut libc::c_void,
    length: usize,
}

const FULL: u8 = 7;

impl Memory {
    fn anonymous(length: usize) -> Self {
        Self::new(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn new(length: usize, flags: libc::c_int, fd: libc::c_int) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let address = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: the range is this mapping's, and the advice changes no byte of it.
        let _ = unsafe { libc::madvise(address, length, libc::MADV_NOHUGEPAGE) };
        let memory = Self { address, length };
        memory.fill();
        memory
    }

    fn fill(&self) {
        // SAFETY: the range is this writable mapping's, and no reference into it exists.
        unsafe { ptr::write_bytes(self.address.cast::<u8>(), FULL, self.length) };
    }

    fn hva(&self) -> u64 {
        self.address as u64
    }

    fn part(&self, offset: usize, bytes: usize, mode: DiscardMode) -> DiscardRange {
        assert!(offset + bytes <= self.length);
        // SAFETY: the range is inside this mapping, which lives as long as the test, and nothing depends on its
        // contents.
        let part = unsafe { discard_range(self.hva() + offset as u64, bytes as u64, mode) };
        part.expect("whole pages")
    }

    fn all(&self, mode: DiscardMode) -> DiscardRange {
        self.part(0, self.length, mode)
    }

    /// The number of its pages that are present.
    fn resident(&self) -> usize {
        let mut pages = vec![0u8; self.length / PAGE];
        // SAFETY: the vector has a byte for every page of this mapping.
        let result = unsafe { libc::mincore(self.address, self.length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.length);
        // SAFETY: the byte is inside this readable mapping.
        unsafe { self.address.cast::<u8>().wrapping_add(offset).read_volatile() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's, and no reference into it exists.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn memfd(length: usize) -> File {
    let file = MemfdOptions::default().create("discard-test").unwrap().into_file();
    file.set_len(length as u64).unwrap();
    file
}

fn engine() -> Engine {
    let sim = Sim::new(SimConfig { rules: Rules::Type1, ..SimConfig::default() });
    Engine::new(Box::new(sim), Config { threads: 8, oversubscribe: true, ..Config::default() }).unwrap()
}

fn region(memory: &Memory, offset: usize, bytes: usize) -> Region {
    // SAFETY: the simulated device accesses no memory.
    let hva = unsafe { host_va(memory.hva() + offset as u64) };
    let range = IovaRange::new(Iova(0), bytes as u64).unwrap();
    Region {
        range,
        hva,
        perm: Perm::ReadWrite,
        kind: Kind::Ram,
        backing: Backing(1),
        join: false,
        exact: false,
    }
}

#[test]
fn pages_are_gone_and_the_memory_is_zero() {
    let memory = Memory::anonymous(3 * MIB);
    assert_eq!(memory.resident(), 3 * MIB / PAGE);
    discard::discard(&memory.all(DiscardMode::Private), 8, None).0.unwrap();
    assert_eq!(memory.resident(), 0);
    assert_eq!((memory.read(0), memory.read(3 * MIB - 1)), (0, 0));
}

#[test]
fn threads_share_it() {
    let length = 5 * CHUNK_BYTES as usize + 3 * PAGE;
    let memory = Memory::anonymous(length);
    for threads in [3, 4, 8, 64] {
        memory.fill();
        let (start, end) =
            (memory.address as usize / CHUNK_BYTES as usize, memory.address as usize + length - 1);
        let chunks = end / CHUNK_BYTES as usize - start + 1;
        let report = discard::discard(&memory.all(DiscardMode::Private), threads, None);
        assert_eq!(
            report,
            (Ok(()), Report { threads: chunks.min(threads) as u64, thread_start_failures: 0 })
        );
        assert_eq!(memory.resident(), 0);
    }

    // In two chunks, but too small for a second thread.
    let boundary = 2 * CHUNK_BYTES as usize - memory.address as usize % CHUNK_BYTES as usize;
    let report = discard::discard(&memory.part(boundary - MIB, 2 * MIB, DiscardMode::Private), 3, None);
    assert_eq!(report, (Ok(()), Report { threads: 1, thread_start_failures: 0 }));
}

#[test]
fn neighbours_keep_what_they_hold() {
    let length = 3 * CHUNK_BYTES as usize;
    let memory = Memory::anonymous(length);
    // The ends lie inside chunks, wherever the mapping begins.
    let (offset, bytes) = (5 * PAGE, length - 9 * PAGE);
    for threads in [1, 3, 4, 8, 64] {
        discard::discard(&memory.part(offset, bytes, DiscardMode::Private), threads, None).0.unwrap();
        assert_eq!(memory.resident(), 9);
        assert_eq!((memory.read(offset - 1), memory.read(offset + bytes)), (FULL, FULL));
    }
}

#[test]
fn a_file_of_memory_loses_its_pages_only_if_that_is_asked_for() {
    let length = 2 * CHUNK_BYTES as usize;
    let file = memfd(length);
    let held = || file.metadata().unwrap().blocks() * 512;
    let memory = Memory::new(length, libc::MAP_SHARED, file.as_raw_fd());
    discard::discard(&memory.all(DiscardMode::Private), 2, None).0.unwrap();
    assert_eq!((held(), memory.read(0)), (length as u64, FULL));
    discard::discard(&memory.all(DiscardMode::Shared), 2, None).0.unwrap();
    assert_eq!(held(), 0);
    assert_eq!(memory.read(length - 1), 0);
}

#[test]
fn what_the_kernel_refuses_is_told() {
    let memory = Memory::anonymous(2 * CHUNK_BYTES as usize);
    let locked = memory.address.wrapping_byte_add(CHUNK_BYTES as usize);
    // A raw system call, because ThreadSanitizer's mlock() does nothing.
    // SAFETY: the page is inside this mapping, and locking changes no byte of it.
    assert_eq!(unsafe { libc::syscall(libc::SYS_mlock, locked, PAGE) }, 0);
    let error = engine().discard(&memory.all(DiscardMode::Private)).unwrap_err();
    assert_eq!((error.op, error.errno, error.kind), (Op::Discard, Errno::EINVAL, ErrorKind::Kernel));
    assert_eq!(memory.read(CHUNK_BYTES as usize), FULL, "locked memory is nobody's to take");
    let error = engine().discard(&memory.all(DiscardMode::Shared)).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Discard, Errno::EINVAL), "it is no file");
}

#[test]
fn what_a_device_reaches_or_shall_reach_is_refused() {
    let memory = Memory::anonymous(8 * MIB);
    let engine = engine();
    let refused = |parts: [&DiscardRange; 3]| {
        for part in parts {
            let error = engine.discard(part).unwrap_err();
            assert_eq!((error.op, error.errno), (Op::Check, Errno::EBUSY), "{error}");
        }
        assert_eq!(memory.resident(), 8 * MIB / PAGE);
    };
    let region = region(&memory, 2 * MIB, 4 * MIB);
    let (whole, head) =
        (memory.all(DiscardMode::Private), memory.part(0, 2 * MIB + PAGE, DiscardMode::Private));
    let last = memory.part(6 * MIB - PAGE, PAGE, DiscardMode::Private);

    engine.begin().unwrap();
    engine.map_region(region).unwrap();
    refused([&whole, &head, &last]); // not mapped, but wanted
    engine.commit().unwrap();
    refused([&whole, &head, &last]);
    engine.begin().unwrap();
    engine.unmap(region.range).unwrap();
    refused([&whole, &head, &last]); // not wanted, but mapped
    assert_eq!(engine.stats().discard_bytes, 0);
    engine.abort().unwrap();

    // Memory next to the region is not mapped for a device.
    engine.discard(&memory.part(0, 2 * MIB, DiscardMode::Private)).unwrap();
    engine.discard(&memory.part(6 * MIB, 2 * MIB, DiscardMode::Private)).unwrap();
    assert_eq!(memory.resident(), 4 * MIB / PAGE);
    engine.unmap(region.range).unwrap();
    engine.discard(&whole).unwrap();
    assert_eq!(memory.resident(), 0);
    let stats = engine.stats();
    assert_eq!(stats.discard_bytes, 12 * MIB as u64);
    assert!(stats.discard_ns > 0);
}

#[test]
fn a_poisoned_engine_knows_of_nothing_what_it_reaches() {
    let memory = Memory::anonymous(PAGE);
    let engine = engine();
    engine.poison("a test");
    let error = engine.discard(&memory.all(DiscardMode::Private)).unwrap_err();
    assert_eq!(error.errno, Errno::ENOTRECOVERABLE);
    assert_eq!(memory.read(0), FULL);
}
