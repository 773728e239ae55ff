//! What the library does while its system calls fail.

use std::ffi::c_int;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Rules, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::limits::MemlockScope;
use vfio_fast_engine::log::Log;
use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::populate::{Ahead, HostRange};
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{CpuSet, DiscardMode, Errno, Phase, discard_range, timeline};
use vfio_fast_testing as common;

use super::bench::Bench;
use super::calls::{HIDES_ZONES, REMEMBERS, armed, failed, has_failed};
use super::memory::{
    BYTES, HUGE, MIB, Memory, PRIVATE, SHARED, bytes_at, map_at, memory_file, region, unmap,
};

fn both() -> [Region; 2] {
    [region(0, SHARED), region(1 << 30, PRIVATE)]
}

/// Memory that several threads fault in before it is mapped, as with type1.
fn upfront(_: &Memory) {
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    bench.commit(&both());
    bench.close();
}

/// In a process that has no stacks and arenas yet.
fn first(memory: &Memory) {
    REMEMBERS.store(true, Ordering::Relaxed);
    upfront(memory);
}

/// The same during the maps, with a descriptor, as with iommufd.
fn overlapped(memory: &Memory) {
    let bench = Bench::of(Rules::Iommufd, PopulatePolicy::Overlapped);
    let [shared, private] = both();
    let object = ObjectRef { fd: memory.file.as_fd().into(), kind: ObjectKind::Memory, offset: 0 };
    for expected in [&[shared][..], &[shared, private]] {
        let region = expected[expected.len() - 1];
        let answer = armed(|| match region.hva.raw() {
            SHARED => bench.engine.map_object(region, &object),
            _ => bench.engine.map_region(region),
        });
        bench.assert_answer(&answer, &[libc::SYS_fcntl, libc::SYS_fstat, libc::SYS_newfstatat]);
        if answer.is_err() {
            assert_eq!(region.hva, shared.hva, "it has no descriptor");
            bench.assert_mapped(&expected[1..]);
            bench.engine.map_object(region, &object).unwrap();
        }
        bench.assert_mapped(expected);
    }
    bench.assert_log();
    bench.close();
}

/// By pins, where the movable memory of the host is not known.
fn pins(memory: &Memory) {
    HIDES_ZONES.store(true, Ordering::Relaxed);
    upfront(memory);
}

/// On the CPUs that the caller names.
fn placed(_: &Memory) {
    let mut cpus = [0u8; 1024];
    // SAFETY: the call writes at most the size of the array.
    let got = unsafe { libc::sched_getaffinity(0, cpus.len(), cpus.as_mut_ptr().cast()) };
    assert_eq!(got, 0);
    let first = cpus.iter().position(|byte| *byte != 0).unwrap();
    let one = 1 << cpus[first].trailing_zeros();
    cpus.fill(0);
    cpus[first] = one;
    let config = SimConfig { populate: PopulatePolicy::Upfront, ..SimConfig::default() };
    let bench = Bench::new(config, CpuSet::from_bytes(&cpus));
    bench.commit(&both());
    if has_failed(&[libc::SYS_sched_setaffinity]) {
        assert!(bench.has_logged("may not leave the CPUs"), "{:?}", bench.logged);
    }
    bench.close();
}

/// By jobs: one is waited for, one is cancelled, one ends unattended, and one follows it.
fn background(_: &Memory) {
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    let engine = &bench.engine;
    let leave = |region: Region| {
        engine.begin()?;
        engine.map_region(region)?;
        engine.commit_background().map(drop)
    };
    let [shared, private] = both();
    let (left, waited) = armed(|| (leave(shared), engine.wait(None, None)));
    bench.assert_answer(&left, &[]);
    bench.assert_answer(&waited, &[]);
    assert_eq!((waited.unwrap(), engine.progress().phase), (true, Phase::Done));
    bench.assert_mapped(&[shared]);
    let refused =
        bench.has_logged("No thread for the background") || bench.has_logged("could not be started");
    assert!(!has_failed(&[libc::SYS_clone, libc::SYS_clone3]) || refused, "{:?}", bench.logged);
    let (left, cancelled) = armed(|| (leave(private), engine.cancel(true)));
    bench.assert_answer(&left, &[]);
    bench.assert_answer(&cancelled, &[]);
    let mut wanted = vec![shared];
    wanted.extend((engine.progress().phase == Phase::Done).then_some(private));
    bench.assert_mapped(&wanted);
    // The thread of a job that has ended is left to the next one, and to whoever waits.
    let [third, fourth] = [region(2 << 30, PRIVATE), region(3 << 30, SHARED)];
    let (left, ended, last) = armed(|| {
        let (left, ended) = (leave(third), engine.completion_fd());
        ended.iter().for_each(|fd| assert!(is_readable(*fd, -1)));
        (left, ended, leave(fourth).and_then(|()| engine.wait(None, None)))
    });
    bench.assert_answer(&left, &[]);
    bench.assert_answer(&ended, &[libc::SYS_eventfd2]);
    bench.assert_answer(&last, &[]);
    wanted.extend([third, fourth]);
    bench.assert_mapped(&wanted);
    bench.close();
}

fn is_readable(fd: BorrowedFd<'_>, timeout_ms: c_int) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the call reads and writes one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
}

fn discarded(_: &Memory) {
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Never);
    for (address, mode) in [(PRIVATE, DiscardMode::Private), (SHARED, DiscardMode::Shared)] {
        let at = address as *mut libc::c_void;
        // SAFETY: the advice changes no byte of the memory.
        assert_eq!(unsafe { libc::madvise(at, bytes_at(address) as usize, libc::MADV_POPULATE_WRITE) }, 0);
        // SAFETY: nothing depends on the contents of this memory, which no Rust object uses.
        let memory = unsafe { discard_range(address, bytes_at(address), mode) }.unwrap();
        let answer = armed(|| bench.engine.discard(&memory));
        bench.assert_answer(&answer, &[libc::SYS_madvise]);
        if answer.is_ok() && mode == DiscardMode::Shared {
            assert_eq!(common::memory::resident(address, bytes_at(address)), 0);
        }
        bench.assert_mapped(&[]);
    }
    if has_failed(&[libc::SYS_clone, libc::SYS_clone3]) {
        assert!(bench.engine.stats().thread_start_failures > 0);
    }
    bench.close();
}

fn replaced(_: &Memory) {
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    let regions = both();
    regions.iter().for_each(|region| bench.engine.map_region(*region).unwrap());
    for region in regions {
        let at = region.hva.raw() as *mut libc::c_void;
        // SAFETY: the memory is this test's, and no Rust object uses it.
        assert_eq!(unsafe { libc::madvise(at, region.range.length() as usize, libc::MADV_DONTNEED) }, 0);
        let answer = armed(|| bench.engine.remap(region.hva, region.range.length()));
        bench.assert_answer(&answer, &[]);
        assert_eq!(answer.unwrap(), region.range.length());
        bench.assert_mapped(&regions);
    }
    bench.close();
}

/// A commit that fails, and is explained as far as the kernel lets it.
fn explained(_: &Memory) {
    let hole = SHARED + 3 * MIB + 4096;
    let protect = |protection| {
        // SAFETY: the page is this test's, and no Rust object uses it.
        assert_eq!(unsafe { libc::mprotect(hole as *mut libc::c_void, 4096, protection) }, 0);
    };
    protect(libc::PROT_NONE);
    let unmappable = vec![(hole, hole + 4095)];
    let populate = PopulatePolicy::Upfront;
    let bench = Bench::new(SimConfig { unmappable, populate, ..SimConfig::default() }, None);
    let [shared, private] = both();
    bench.engine.map_region(private).unwrap();
    let answer = armed(|| bench.engine.map_region(shared));
    let error = answer.expect_err("a page cannot be mapped");
    assert_eq!(error.errno, Errno::EFAULT, "{error}");
    assert!(failed().is_some() || matches!(error.kind, ErrorKind::Page { .. }), "{error}");
    bench.assert_mapped(&[private]);
    bench.sim.reconfigure(|config| config.unmappable.clear());
    protect(libc::PROT_READ | libc::PROT_WRITE);
    bench.close();
}

/// Huge pages of a pool that may be too small, which a commit finds out.
fn huge_pages(_: &Memory) {
    let file = memory_file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB);
    file.set_len(BYTES).unwrap();
    map_at(HUGE, libc::MAP_SHARED, file.as_raw_fd());
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    let region = region(0, HUGE);
    match armed(|| bench.engine.map_region(region)) {
        Ok(()) => bench.assert_mapped(&[region]),
        Err(error) => {
            let known =
                matches!(error.kind, ErrorKind::NoHugePages { .. } | ErrorKind::FileSystemFull { .. });
            assert!(error.errno == Errno::EFAULT && known, "{error}");
            bench.assert_mapped(&[]);
        }
    }
    bench.close();
    unmap(HUGE);
}

/// A file with a name, on a file system that may be too small for it.
fn named(_: &Memory) {
    let path = PathBuf::from(format!("/dev/shm/{NAME}-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    file.set_len(BYTES).unwrap();
    map_at(HUGE, libc::MAP_SHARED, file.as_raw_fd());
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    bench.commit(&[region(0, HUGE)]);
    bench.close();
    unmap(HUGE);
    fs::remove_file(&path).unwrap();
}

/// A record of all of it.
fn recorded(_: &Memory) {
    REMEMBERS.store(true, Ordering::Relaxed);
    let path = timeline_file();
    let _ = fs::remove_file(&path);
    let bench = Bench::of(Rules::Type1, PopulatePolicy::Upfront);
    let warned = Arc::new(AtomicBool::new(false));
    let log = Log::to({
        let warned = Arc::clone(&warned);
        move |_, text| {
            assert!(
                text.contains("No timeline: cannot write") && text.contains(&failed().unwrap().1.to_string())
            );
            warned.store(true, Ordering::Relaxed);
        }
    });
    armed(|| timeline::start(&path, &log));
    let began = !warned.load(Ordering::Relaxed);
    assert!(began || failed().is_some());
    bench.commit(&both());
    bench.close();
    let text = fs::read_to_string(&path);
    let _ = fs::remove_file(&path);
    if began {
        let text = text.unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{:?}: {text}", failed());
    }
}

pub const NAME: &str = "vfio-fast-fail-system-calls";

fn timeline_file() -> PathBuf {
    std::env::temp_dir().join(format!("{NAME}-{}", std::process::id()))
}

/// Gives up CAP_IPC_LOCK, without which the calling thread has a limit of locked memory, if that is a limit of its own.
fn obey_limits() {
    // `struct __user_cap_header_struct` of version 3, and two of `struct __user_cap_data_struct`.
    let (header, mut data) = ([0x2008_0522u32, 0], [[0u32; 3]; 2]);
    // SAFETY: the call reads the header and writes both parts of the data.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut data) }, 0);
    data[0][0] &= !(1 << 14);
    // SAFETY: the call reads the header and both parts of the data.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) }, 0);
}

/// As the preloaded library faults in.
fn ahead(_: &Memory) {
    obey_limits();
    let piece = HostRange { hva: region(0, SHARED).hva, bytes: BYTES, writable: true };
    // Whatever fails is left to the map call.
    let _ = armed(|| Ahead::new().fault_in(piece, MemlockScope::Process));
    assert_eq!(common::threads::left(), Vec::<String>::new());
}

/// A scenario, and which calls fail in it: all, or those that the ones before it do not make in the same way. The longest
/// come first.
pub type Scenario = (&'static str, fn(&Memory), &'static [libc::c_long]);

pub const SCENARIOS: &[Scenario] = &[
    ("background", background, &[]),
    ("overlapped", overlapped, &[]),
    ("ahead", ahead, &[]),
    ("upfront", upfront, &[]),
    ("explained", explained, &[]),
    ("replaced", replaced, &[libc::SYS_openat, libc::SYS_madvise, libc::SYS_ioctl, libc::SYS_clone3]),
    ("discarded", discarded, &[]),
    ("huge pages", huge_pages, &[libc::SYS_openat, libc::SYS_read, libc::SYS_ioctl, libc::SYS_statfs]),
    ("named", named, &[libc::SYS_statfs, libc::SYS_statx]),
    ("recorded", recorded, &[libc::SYS_openat, libc::SYS_write, libc::SYS_lseek]),
    ("first", first, &[libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_clone3]),
    ("pins", pins, &[libc::SYS_io_uring_setup, libc::SYS_io_uring_register, libc::SYS_clone3]),
    ("placed", placed, &[libc::SYS_sched_setaffinity, libc::SYS_sched_getaffinity, libc::SYS_clone3]),
];
