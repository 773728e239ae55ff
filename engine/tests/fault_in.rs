//! How memory is faulted in where the usual way does not exist, or would place pages that a pin has to move.
#![allow(unsafe_code, reason = "host addresses are named")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::files::{file_ram, mount, run_in_own_mounts};
use common::hooked::{Hooked, Hooks};
use common::memory::{RealMemory, ZeroPages, resident, time_data};
use common::seccomp::Kernel;
use common::{UNIT, UNITS, assert_table, hva_of, keeping, range};
use memfd::MemfdOptions;
use std::os::fd::AsFd;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping, PopulatePolicy};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::host_va;
use vfio_fast_engine::log::Log;
use vfio_fast_engine::object::{Object, ObjectKind, ObjectRef};
use vfio_fast_engine::populate::{
    self, CHUNK_BYTES, HostRange, Method, PopulateOptions, Report, SHORT_CHUNK_BYTES,
};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno, Phase};
use vfio_fast_testing as common;

/// Bytes of the memory of each object.
const BYTES: u64 = 2 * UNITS * UNIT;

fn piece(start: u64, bytes: u64, writable: bool) -> HostRange {
    // SAFETY: no device maps this memory: it is only populated, and only while the mapping exists.
    let hva = unsafe { host_va(start) };
    HostRange { hva, bytes, writable }
}

/// Faults in by pins.
fn pin(pieces: &[HostRange], threads: usize, huge_pages: bool) -> Report {
    let options = PopulateOptions {
        threads,
        cpus: None,
        method: Method::Pins,
        huge_pages,
        chunk: CHUNK_BYTES,
        control: None,
    };
    populate::populate(pieces, options)
}

#[test]
fn pins_fault_in_on_every_thread_and_keep_the_contents() {
    let memory = RealMemory::new();
    memory.small_pages();
    let start = hva_of(1, 0);
    let byte = (start + 3 * UNIT) as *mut u8;
    // SAFETY: the byte is inside the object's memory, and no reference into it exists.
    unsafe { byte.write_volatile(7) };
    // The ends are not multiples of anything but the page.
    let (first, bytes) = (start + 4096, BYTES - 3 * 4096);
    for threads in [1, 2, 8] {
        memory_of(1).discard_but(byte);
        let report = pin(&[piece(first, bytes, true)], threads, false);
        assert_eq!((report.bytes + report.present_bytes, report.skipped_bytes), (bytes, 0), "{report:?}");
        assert_eq!(report.small_anonymous_bytes, bytes);
        assert_eq!(resident(start, BYTES), bytes);
        // SAFETY: the byte is inside the object's memory.
        assert_eq!(unsafe { byte.read_volatile() }, 7);
    }
    let again = pin(&[piece(first, bytes, true)], 2, false);
    assert_eq!((again.calls, again.present_bytes), (0, bytes), "what is present is skipped");
}

struct ObjectMemory(u64);

fn memory_of(object: u64) -> ObjectMemory {
    ObjectMemory(hva_of(object, 0))
}

impl ObjectMemory {
    /// Discards all pages but the one with `byte`.
    fn discard_but(&self, byte: *mut u8) {
        let page = byte as u64 / 4096 * 4096;
        for (start, end) in [(self.0, page), (page + 4096, self.0 + BYTES)] {
            // SAFETY: the range is the object's, and no reference into it exists.
            let answer =
                unsafe { libc::madvise(start as *mut _, (end - start) as usize, libc::MADV_DONTNEED) };
            assert_eq!(answer, 0);
        }
    }
}

#[test]
fn pins_get_huge_pages_too() {
    let knob = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    let _memory = RealMemory::new();
    let report = pin(&[piece(hva_of(2, 0), BYTES, true)], 2, true);
    assert_eq!(report.huge_bytes >= BYTES / 2, !knob.contains("[never]"), "{report:?}");
}

#[test]
fn pins_leave_read_only_and_device_memory_alone() {
    let memory = RealMemory::new();
    memory.small_pages();
    let (start, bytes) = time_data();
    let report = pin(&[piece(hva_of(3, 0), BYTES, false), piece(start, bytes, true)], 2, false);
    assert_eq!((report.bytes, report.skipped_bytes, report.device_pieces), (0, 0, vec![1]));
    assert_eq!(resident(hva_of(3, 0), BYTES), 0, "a pin would have made its pages writable");
    // A hole is an error of its chunk, counted under its name.
    let report = pin(&[piece(hva_of(3, 0) - 4096, 4096, true)], 1, false);
    assert_eq!((report.efault, report.skipped_bytes), (1, 4096));
}

/// An engine on a model for which memory is faulted in, with its messages.
fn engine(rules: Rules, threads: usize) -> (Engine, Sim, Arc<Mutex<Vec<String>>>) {
    let (start, bytes) = time_data();
    let sim = Sim::new(SimConfig {
        populate: PopulatePolicy::Overlapped,
        unmappable: vec![(start, start + bytes - 1)],
        ..keeping(rules)
    });
    let messages = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&messages);
    let log = Log::to(move |_, text| sink.lock().unwrap().push(text.to_owned()));
    let config = Config { entry_size: 1 << 30, threads, oversubscribe: true, log, ..Config::default() };
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim, messages)
}

fn ram(iova: u64, object: u64) -> Region {
    // SAFETY: the memory exists as long as the engine.
    let hva = unsafe { host_va(hva_of(object, 0)) };
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(object));
    Region { range: range(iova, BYTES), hva, perm, kind, backing, join: false, exact: false }
}

/// A call: whether it maps, and how much memory of objects 2 and 3 was present.
type Note = (bool, [u64; 2]);

/// Notes each call.
#[derive(Default)]
struct Noting(Arc<Mutex<Vec<Note>>>);

impl Noting {
    fn note(&self, maps: bool) {
        let present = [2, 3].map(|object| resident(hva_of(object, 0), BYTES));
        self.0.lock().unwrap().push((maps, present));
    }
}

impl Hooks for Noting {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        self.note(true);
        kernel.map(mapping, object)
    }

    fn unmap(&self, kernel: &dyn Backend, range: IovaRange) -> KernelResult<u64> {
        self.note(false);
        kernel.unmap(range)
    }
}

/// Devices lose the rest of a cut entry for a moment, which must not take as long as faulting in.
#[test]
fn memory_is_there_before_anything_is_unmapped() {
    let memory = RealMemory::new();
    for rules in [Rules::Type1, Rules::Iommufd] {
        for (populate, unmaps) in [
            (PopulatePolicy::Upfront, false),
            (PopulatePolicy::Upfront, true),
            (PopulatePolicy::Overlapped, true),
        ] {
            memory.cool();
            let sim = Sim::new(SimConfig { populate, ..keeping(rules) });
            let noting = Noting::default();
            let notes = Arc::clone(&noting.0);
            let config = Config { threads: 1, ..Config::default() };
            let engine =
                Engine::new(Box::new(Hooked { kernel: Box::new(sim), hooks: noting }), config).unwrap();
            engine.map_region(ram(0, 1)).unwrap();
            notes.lock().unwrap().clear();
            engine.begin().unwrap();
            if unmaps {
                engine.unmap(range(0, UNIT)).unwrap();
            }
            engine.map_region(ram(1 << 40, 2)).unwrap();
            engine.map_region(ram(2 << 40, 3)).unwrap();
            engine.commit().unwrap();
            assert_eq!(notes.lock().unwrap()[0], (!unmaps, [BYTES; 2]), "{rules:?} {populate:?}");
        }
    }
}

/// Without the advice the map calls fault in, and the threads of iommufd share them: the entries are cut.
#[test]
#[ignore = "needs an old kernel, which another test imitates"]
fn without_the_advice_nothing_is_tried() {
    let memory = RealMemory::new();
    let _slow = ZeroPages::new();
    let file = MemfdOptions::default().create("vfio-fast-fault-in").unwrap().into_file();
    for (rules, entries) in [(Rules::Type1, 1), (Rules::Iommufd, 2)] {
        memory.cool();
        let (engine, sim, messages) = engine(rules, 8);
        let object = ObjectRef { fd: file.as_fd().into(), kind: ObjectKind::Memory, offset: 0 };
        engine.map_object(ram(1 << 32, 1), &object).unwrap();
        let exact = Region { exact: true, ..ram(2 << 32, 2) };
        engine.map_region(exact).unwrap();
        let stats = engine.stats();
        assert_eq!((stats.populate_calls, stats.populate_einval, stats.populate_skipped), (0, 0, 0));
        assert_eq!(stats.entries, entries + 1, "an exact region is one entry");
        assert_eq!(resident(hva_of(1, 0), BYTES), 0);
        assert!(!sim.calls().iter().any(|call| matches!(call, Call::MapFile(..))), "mapped by file");
        assert_table(&engine, &sim);
        let said = messages.lock().unwrap().clone();
        assert!(said.len() == 1 && said[0].contains("Linux 5.14"), "{said:?}");
        // Device memory declared as RAM is found when its map call fails.
        let (start, bytes) = time_data();
        // SAFETY: the kernel's time data stays mapped.
        let hva = unsafe { host_va(start) };
        let device = Region { range: range(1 << 40, bytes), hva, perm: Perm::Read, ..ram(3 << 32, 3) };
        engine.begin().unwrap();
        engine.map_region(device).unwrap();
        engine.commit().unwrap();
        assert_eq!(engine.stats().device_failures, 1);
        assert_table(&engine, &sim);
    }
}

#[test]
fn a_kernel_of_5_10_is_recognised() {
    let said = Kernel::V5_10.run_tests(&["--exact", "without_the_advice_nothing_is_tried"]);
    assert!(said.contains("1 passed"), "{said}");
}

/// Each call would make the kernel look for memory, and for a process to kill, once more.
#[test]
#[ignore = "needs a kernel without memory, which another test imitates"]
fn without_memory_no_chunk_follows_one_that_fails() {
    let _memory = RealMemory::new();
    let pieces = [1, 2, 3].map(|object| piece(hva_of(object, 0), BYTES, true));
    for threads in [1, 3] {
        let method = Method::Advice;
        let options =
            PopulateOptions { threads, cpus: None, method, huge_pages: false, chunk: 2 << 20, control: None };
        let report = populate::populate(&pieces, options);
        assert!((1..=threads as u64).contains(&report.enomem), "{report:?}");
        assert_eq!((report.calls, report.bytes), (report.enomem, 0));
    }
}

#[test]
fn a_kernel_without_memory_is_not_asked_again() {
    let said = Kernel::OutOfMemory.run_tests(&["--exact", "without_memory_no_chunk_follows_one_that_fails"]);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn a_tmpfs_that_is_too_small_is_not_filled() {
    run_in_own_mounts("on_a_tmpfs_of_16_mib");
}

#[test]
#[ignore = "mounts a file system, for which another test makes a mount namespace"]
fn on_a_tmpfs_of_16_mib() {
    let folder = std::env::temp_dir();
    mount("none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
    mount("tmpfs", &folder, 0, "size=16m");
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim, _) = engine(rules, 2);
        let path = folder.join(format!("{rules:?}"));
        let (file, large) = file_ram(&path, 64 << 20, 1 << 32);
        let error = engine.map_region(large).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.errno, Errno::EFAULT);
        let (name, size) = (path.display(), "16777216 bytes (16 MiB)");
        let expected = format!(
            "file system of {name} (tmpfs of {size}) has {size} free, 67108864 bytes (64 MiB) more are needed"
        );
        assert!(text.contains(&expected), "{text}");
        assert_eq!((file.metadata().unwrap().blocks(), sim.calls().len()), (0, 0), "filled, or mapped");
        // Without a name it is not known what the file has: the map calls decide, and nothing is faulted in.
        fs::remove_file(&path).unwrap();
        engine.map_region(large).unwrap();
        assert_eq!((file.metadata().unwrap().blocks(), engine.stats().populate_calls), (0, 0));
        // What is there needs no space.
        let (file, held) = file_ram(&folder.join("held"), 12 << 20, 2 << 32);
        file.write_all_at(&vec![1; 12 << 20], 0).unwrap();
        engine.map_region(held).unwrap();
        // What fits is faulted in.
        let (small, fits) = file_ram(&folder.join("small"), 4 << 20, 3 << 32);
        engine.map_region(fits).unwrap();
        assert_eq!(small.metadata().unwrap().blocks() * 512, 4 << 20);
        fs::remove_file(folder.join("held")).unwrap();
        fs::remove_file(folder.join("small")).unwrap();
        file.set_len(0).unwrap();
        small.set_len(0).unwrap();
    }
}

/// The kernel pins no pages of a shared mapping that are written back to a disk.
#[test]
fn a_file_on_a_disk_is_not_written() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vfio-fast-disk-file");
    let _ = fs::remove_file(&path);
    let (file, region) = file_ram(&path, 64 << 20, 1 << 32);
    let (engine, sim, _) = engine(Rules::Type1, 2);
    let hva = region.hva.raw();
    sim.reconfigure(|config| config.unmappable.push((hva, hva + (64 << 20) - 1)));
    let text = engine.map_region(region).unwrap_err().to_string();
    let on_disk = text.contains("shared memory of a disk file system");
    fs::remove_file(&path).unwrap();
    let kind = Command::new("stat").args(["-f", "-c", "%T", env!("CARGO_TARGET_TMPDIR")]).output().unwrap();
    let kind = String::from_utf8(kind.stdout).unwrap();
    let disk = ["ext2/ext3", "xfs", "btrfs", "f2fs"].contains(&kind.trim());
    let untouched = (file.metadata().unwrap().blocks(), engine.stats().populate_calls) == (0, 0);
    assert_eq!((on_disk, untouched), (disk, disk), "{kind}: {text}");
}

/// While nobody waits for a job, the kernel has the address space locked for a short time only.
#[test]
fn a_job_faults_in_shorter_pieces_than_a_commit() {
    if std::thread::available_parallelism().map_or(1, usize::from) == 1 {
        return; // The job has no CPU to leave.
    }
    let memory = RealMemory::new();
    memory.small_pages();
    let calls = |background: bool| {
        memory.cool();
        let (engine, sim, _) = engine(Rules::Type1, 0);
        let engine = Arc::new(engine);
        engine.begin().unwrap();
        for object in [1, 2] {
            engine.map_region(ram(object << 32, object)).unwrap();
        }
        if background { engine.commit_background() } else { engine.commit() }.unwrap();
        while engine.progress().phase == Phase::Running {
            std::thread::yield_now();
        }
        assert_table(&engine, &sim);
        assert_eq!(engine.stats().populate_bytes, 2 * BYTES);
        engine.stats().populate_calls
    };
    assert_eq!((calls(false), calls(true)), (2 * BYTES / CHUNK_BYTES, 2 * BYTES / SHORT_CHUNK_BYTES));
}
