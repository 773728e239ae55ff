//! What the library says of a refusal whose reason only a real kernel has: a page with a memory error, locked memory of
//! another process, entries of another user of the container.

use std::fs;
use std::io::{BufRead, BufReader, Error, Lines, Read};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::cases::{INTERRUPTS, PAGE};
use super::common::memory::RealMemory;
use super::common::{hva_of, range};
use super::kernel::{self, DEVICE, Driver};
use super::process;
use super::run::{Hva, Needs};
use super::witness::physical_of;
use vfio_fast_engine::backend::Backend;
use vfio_fast_engine::error::{ErrorKind, PageFault};
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, Engine, Errno};

const MIB: u64 = 1 << 20;
const IOVA: u64 = 1 << 30;
/// What two processes map each, and what each may lock.
const MAPPED: u64 = 8 * MIB;
const LIMIT: u64 = 12 * MIB;
/// The PCI address of the other process's device.
const SECOND_DEVICE: &str = "VFIO_FAST_SECOND_DEVICE";
/// How the other process counts.
const COUNTS: &str = "VFIO_FAST_COUNTS";
const BAD_PAGE: &str = "/sys/devices/system/memory/hard_offline_page";

fn engine(backend: Box<dyn Backend>) -> Engine {
    // This thread makes all calls: it alone has no right to exceed the limit.
    Engine::new(backend, Config { huge_pages: false, threads: 1, ..Config::default() }).unwrap()
}

/// A region of the first object of [`RealMemory`], from its beginning on.
fn ram(iova: u64, bytes: u64) -> Region {
    process::ram(iova, 1, 0, bytes)
}

/// The kernel is told that a page is bad. The memory with it cannot be mapped, and the page is named. With another page
/// there, it can.
pub fn broken_pages_are_named(driver: Driver) {
    let memory = RealMemory::new();
    memory.small_pages();
    let address = hva_of(1, 0) + 3 * MIB + 5 * PAGE;
    let page = address as *mut libc::c_void;
    // SAFETY: the page is this test's own memory, to which no reference exists.
    unsafe { page.cast::<u8>().write_volatile(1) };
    fs::write(BAD_PAGE, format!("{:#x}", physical_of(address))).expect("a kernel with MEMORY_FAILURE");
    kernel::owned_with(Needs::default(), driver, |backend, target| {
        let engine = engine(backend);
        let error = engine.map_region(ram(IOVA, MAPPED)).unwrap_err();
        let ErrorKind::Page { at, fault: PageFault::Poisoned } = error.kind else { panic!("{error}") };
        assert_eq!((error.errno, at.raw()), (Errno::EFAULT, address), "{driver:?}: {error}");
        let text = error.to_string();
        let says = format!("the page at host address {address:#x} has a memory error");
        assert!(text.contains(&says) && text.contains("map other memory there"), "{driver:?}: {text}");
        // ENOENT: iommufd has nothing to unmap.
        assert!(matches!(target.unmap_all(), Ok(0) | Err(libc::ENOENT)), "{driver:?}: something is mapped");

        // SAFETY: as before; what was in the page is lost anyway.
        let discarded = unsafe { libc::madvise(page, PAGE as usize, libc::MADV_DONTNEED) };
        assert_eq!(discarded, 0, "{}", Error::last_os_error());
        engine.map_region(ram(IOVA, MAPPED)).unwrap();
        engine.close().unwrap();
    });
    drop(memory);
}

/// Who counts locked memory, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    Type1,
    /// iommufd, all processes of a user together.
    User,
    /// iommufd, each process alone.
    Process,
}

impl Counts {
    /// An engine of a thread that may lock no more than the limit.
    fn limited(self, run: impl FnOnce(Engine)) {
        let driver = if self == Self::Type1 { Driver::Type1 } else { Driver::Iommufd };
        let memlock_pages = Some(LIMIT / PAGE);
        let needs = Needs { memlock_pages, per_process: self == Self::Process, ..Needs::default() };
        kernel::owned_with(needs, driver, |backend, _| run(engine(backend)));
    }
}

/// Nothing is counted for this user on iommufd: a thread can lock as much as its limit allows.
pub fn nothing_is_counted() {
    let memory = RealMemory::new();
    Counts::User.limited(|engine| {
        engine.map_region(ram(IOVA, LIMIT)).unwrap();
        engine.close().unwrap();
    });
    drop(memory);
}

/// The other process: maps, and holds that until its standard input ends.
pub fn hold() {
    let counts = std::env::var(COUNTS).expect("another test's process");
    let all = [Counts::Type1, Counts::User, Counts::Process];
    let counts = *all.iter().find(|of| format!("{of:?}") == counts).expect("a name");
    let memory = RealMemory::new();
    counts.limited(|engine| {
        engine.map_region(ram(IOVA, MAPPED)).unwrap();
        println!("\nmapped");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        engine.close().unwrap();
    });
    drop(memory);
}

/// A process of the same user that has mapped as much as this one wants to.
struct Other {
    process: Child,
    /// Ends it when dropped.
    input: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(counts: Counts) -> Self {
        let device =
            std::env::var(SECOND_DEVICE).unwrap_or_else(|_| panic!("{SECOND_DEVICE} names no device"));
        let mut process = process::running("a_process_that_maps")
            .env(DEVICE, device)
            .env(COUNTS, format!("{counts:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "mapped"), "{counts:?}: the other process mapped nothing");
        let input = process.stdin.take().unwrap();
        Self { process, input, said }
    }

    fn end(self) {
        let Self { mut process, input, said } = self;
        drop(input);
        said.for_each(drop);
        assert!(process.wait().unwrap().success());
    }
}

/// Two processes of a user: each may lock what it maps, but not both together.
pub fn processes_are_counted_together() {
    let memory = RealMemory::new();
    let other = Other::start(Counts::User);
    Counts::User.limited(|engine| {
        // Found before the first call, and by a call of the kernel's that fails.
        let at_once = engine.map_region(ram(IOVA, MAPPED)).unwrap_err();
        engine.map_region(ram(IOVA, 2 * MIB)).unwrap();
        engine.map_region(ram(2 * IOVA, 2 * MIB)).unwrap();
        let by_kernel = engine.map_region(ram(3 * IOVA, 2 * MIB)).unwrap_err();
        for (error, own, needed) in [(at_once, 0, MAPPED), (by_kernel, 4 * MIB, 2 * MIB)] {
            let ErrorKind::UserMemlock { charges, .. } = &error.kind else { panic!("{error}") };
            assert_eq!((charges.own, charges.others), (own, MAPPED), "{error}");
            assert_eq!(error.needed_and_available(), Some((own + MAPPED + needed, LIMIT)), "{error}");
            let text = error.to_string();
            let says = format!("process {}: {MAPPED} bytes", other.process.id());
            assert!(text.contains(&says) && text.contains("IOMMU_OPTION_RLIMIT_MODE"), "{text}");
        }
        other.end();
        engine.map_region(ram(3 * IOVA, MAPPED)).unwrap();
        engine.close().unwrap();
    });
    drop(memory);
}

/// The same two processes, each counted alone: both fit. What is too much for this one has no part of the other's.
pub fn each_process_is_counted_alone(counts: Counts) {
    let memory = RealMemory::new();
    let other = Other::start(counts);
    counts.limited(|engine| {
        engine.map_region(ram(IOVA, MAPPED)).unwrap();
        let error = engine.map_region(ram(2 * IOVA, MAPPED)).unwrap_err();
        let ErrorKind::Memlock { needed: MAPPED, locked: MAPPED, limit: LIMIT } = error.kind else {
            panic!("{counts:?}: {error}")
        };
        assert!(error.to_string().contains("that this process has locked"), "{error}");
        engine.close().unwrap();
    });
    other.end();
    drop(memory);
}

/// Addresses that the IOMMU does not translate are refused with the ranges that it does translate.
pub fn ranges_are_named(driver: Driver) {
    let memory = RealMemory::new();
    kernel::owned_with(Needs::default(), driver, |backend, target| {
        let engine = engine(backend);
        let ranges = engine.info().limits.iova_ranges;
        // Beyond all addresses, or where all are translated (AMD-Vi), those of interrupts.
        let translated = |iova: &u64| ranges.iter().any(|valid| valid.contains(range(*iova, PAGE)));
        let outside = [1 << 60, INTERRUPTS].into_iter().find(|iova| !translated(iova)).expect("a gap");
        assert_eq!(target.map(outside, PAGE, Hva::Writable(0), true), Err(libc::EINVAL), "{driver:?}");
        let error = engine.map_region(ram(outside, PAGE)).unwrap_err();
        let named: String = ranges.iter().map(|range| format!(" {range}")).collect();
        let says = format!("-bit addresses, only{named}: use addresses in these ranges");
        assert!(ranges.len() > 1 && error.to_string().contains(&says), "{driver:?}: {error}");
        engine.close().unwrap();
    });
    drop(memory);
}

/// A container with room for three entries, one of which was mapped past the library.
pub fn entries_are_named() {
    let memory = RealMemory::new();
    let needs = Needs { entries: Some(3), ..Needs::default() };
    kernel::owned_with(needs, Driver::Type1, |backend, target| {
        let engine = engine(backend);
        engine.map_region(ram(IOVA, PAGE)).unwrap();
        engine.map_region(Region { exact: true, ..ram(2 * IOVA, PAGE) }).unwrap();
        target.map(3 * IOVA, PAGE, Hva::Writable(0), true).unwrap();
        // The kernel refuses this one, and the library the next.
        for region in [ram(IOVA / 2, PAGE), ram(IOVA / 2, MAPPED)] {
            let error = engine.map_region(region).unwrap_err();
            assert_eq!((error.errno, error.needed_and_available()), (Errno::ENOSPC, Some((1, 0))), "{error}");
            let text = error.to_string();
            let held = "left: 0 of 3 (RAM 1, exact regions 1, device memory 0, not the library's 1)";
            assert!(
                text.contains(held) && text.contains("modprobe vfio_iommu_type1 dma_entry_limit="),
                "{text}"
            );
        }
        assert_eq!(target.unmap(3 * IOVA, PAGE), Ok(PAGE));
        engine.close().unwrap();
    });
    drop(memory);
}
