//! Populates real memory on this machine's kernel.
#![allow(unsafe_code, reason = "the memory these tests hand to the engine is mapped by hand")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memfd::MemfdOptions;
use vfio_fast_engine::host_va;
use vfio_fast_engine::populate::{self, CHUNK_BYTES, HostRange, Method, PopulateOptions, Report};
use vfio_fast_testing::pool::Pool;
use vfio_fast_testing::seccomp::Kernel;
use vfio_fast_testing::threads;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// These tests check this process's threads and use the machine's pools of huge pages, so they run one at a time: in
/// this process, in the processes that stand for older kernels, and in other runs on this machine.
fn alone() -> (MutexGuard<'static, ()>, File) {
    static ALONE: Mutex<()> = Mutex::new(());
    let here = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let everywhere = File::open("/sys/kernel/mm").unwrap();
    // SAFETY: the call takes no pointer. It unlocks when the file is closed.
    assert_eq!(unsafe { libc::flock(everywhere.as_raw_fd(), libc::LOCK_EX) }, 0);
    (here, everywhere)
}

struct Memory {
    address: *mut libc::c_void,
    length: usize,
}

impl Memory {
    fn anonymous(length: usize, protection: libc::c_int) -> Self {
        Self::new(length, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn of(file: &File, length: usize, protection: libc::c_int) -> Self {
        Self::new(length, protection, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn new(length: usize, protection: libc::c_int, flags: libc::c_int, fd: libc::c_int) -> Self {
        let flags = flags | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let address = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { address, length }
    }

    fn start(&self) -> u64 {
        self.address as u64
    }

    /// `bytes` bytes from `offset` on.
    fn piece(&self, offset: usize, bytes: usize, writable: bool) -> HostRange {
        piece(self.start() + offset as u64, bytes as u64, writable)
    }

    fn whole(&self, writable: bool) -> HostRange {
        self.piece(0, self.length, writable)
    }

    /// Disables huge pages, so that every page is populated on its own.
    fn small_pages(self) -> Self {
        // SAFETY: the range is this mapping's, and the advice changes no byte of it.
        // A kernel that has no huge pages refuses it.
        let _ = unsafe { libc::madvise(self.address, self.length, libc::MADV_NOHUGEPAGE) };
        self
    }

    fn protect(&self, offset: usize, length: usize, protection: libc::c_int) {
        assert!(offset + length <= self.length);
        // SAFETY: the range is inside this mapping, and no reference into it exists.
        let result = unsafe { libc::mprotect(self.address.wrapping_byte_add(offset), length, protection) };
        assert_eq!(result, 0);
    }

    fn punch(&self, offset: usize, length: usize) {
        assert!(offset + length <= self.length);
        // SAFETY: the range is inside this mapping, and no reference into it exists.
        let result = unsafe { libc::munmap(self.address.wrapping_byte_add(offset), length) };
        assert_eq!(result, 0);
    }

    /// Discards pages of private memory.
    fn empty(&self, offset: usize, length: usize) {
        assert!(offset + length <= self.length);
        // SAFETY: the range is inside this mapping, and no reference into it exists.
        let result =
            unsafe { libc::madvise(self.address.wrapping_byte_add(offset), length, libc::MADV_DONTNEED) };
        assert_eq!(result, 0);
    }

    /// The number of its pages that are present.
    fn resident(&self) -> usize {
        let mut pages = vec![0u8; self.length / PAGE];
        // SAFETY: the vector has a byte for every page of this mapping.
        let result = unsafe { libc::mincore(self.address, self.length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    fn byte(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length);
        self.address.cast::<u8>().wrapping_add(offset)
    }

    fn read(&self, offset: usize) -> u8 {
        // SAFETY: the byte is inside this readable mapping.
        unsafe { self.byte(offset).read_volatile() }
    }

    fn write(&self, offset: usize, value: u8) {
        // SAFETY: the byte is inside this writable mapping, and no reference into it exists.
        unsafe { self.byte(offset).write_volatile(value) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's (holes in it are fine), and no reference into it exists.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn piece(start: u64, bytes: u64, writable: bool) -> HostRange {
    // SAFETY: no device maps this memory: it is only populated, and only while the mapping exists.
    let hva = unsafe { host_va(start) };
    HostRange { hva, bytes, writable }
}

fn memfd(length: usize) -> File {
    let file = MemfdOptions::default().create("native-test").unwrap().into_file();
    file.set_len(length as u64).unwrap();
    file
}

/// The report of a populate without errors.
fn all_well(calls: u64, bytes: usize, threads: u64, report: &Report) -> Report {
    let expected =
        Report { calls, bytes: bytes as u64, threads, duration: report.duration, ..Report::default() };
    as_mapped(expected, report)
}

/// `expected`, with the kinds of pages that `report` counted.
fn as_mapped(expected: Report, report: &Report) -> Report {
    let Report { huge_bytes, small_anonymous_bytes, small_file_bytes, .. } = *report;
    Report { huge_bytes, small_anonymous_bytes, small_file_bytes, ..expected }
}

fn populate(pieces: &[HostRange], threads: usize) -> Report {
    let method = Method::Advice;
    let options =
        PopulateOptions { threads, cpus: None, method, huge_pages: false, chunk: CHUNK_BYTES, control: None };
    populate::populate(pieces, options)
}

/// The number of chunks of the mapping: chunk boundaries inside it, and one for its beginning.
fn chunks(memory: &Memory) -> u64 {
    let last = memory.start() + memory.length as u64 - 1;
    last / CHUNK_BYTES - memory.start() / CHUNK_BYTES + 1
}

const READ: libc::c_int = libc::PROT_READ;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn anonymous_memory_is_present_and_zero() {
    let _alone = alone();
    let memory = Memory::anonymous(3 * MIB, READ_WRITE).small_pages();
    assert_eq!(memory.resident(), 0);
    let report = populate(&[memory.whole(true)], 8);
    assert_eq!(report, all_well(chunks(&memory), 3 * MIB, 1, &report));
    assert_eq!(memory.resident(), 3 * MIB / PAGE);
    assert_eq!((memory.read(0), memory.read(3 * MIB - 1)), (0, 0));
    assert!(report.duration > Duration::ZERO);
}

#[test]
fn what_is_in_memory_stays_as_it_is() {
    let _alone = alone();
    let memory = Memory::anonymous(2 * MIB, READ_WRITE);
    memory.write(0, 1);
    memory.write(MIB + 5, 2);
    for writable in [true, false] {
        populate(&[memory.whole(writable)], 1);
        assert_eq!((memory.read(0), memory.read(1), memory.read(MIB + 5)), (1, 0, 2));
    }
}

#[test]
fn only_the_piece_is_populated() {
    let _alone = alone();
    let memory = Memory::anonymous(2 * MIB, READ_WRITE).small_pages();
    populate(&[memory.piece(MIB, 3 * PAGE, true), memory.piece(0, PAGE, true)], 1);
    assert_eq!(memory.resident(), 4);
}

#[test]
fn a_memfd_gets_its_pages() {
    let _alone = alone();
    for writable in [true, false] {
        let file = memfd(8 * MIB);
        let memory = Memory::of(&file, 8 * MIB, READ_WRITE);
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        let report = populate(&[memory.whole(writable)], 2);
        assert_eq!(report.bytes, 8 * MIB as u64);
        assert_eq!(file.metadata().unwrap().blocks() * 512, 8 * MIB as u64);
        assert_eq!(memory.resident(), 8 * MIB / PAGE);
    }
}

#[test]
fn read_only_memory_is_read() {
    let _alone = alone();
    let file = memfd(MIB);
    let memory = Memory::of(&file, MIB, READ);
    let report = populate(&[memory.whole(false)], 1);
    assert_eq!(report, all_well(chunks(&memory), MIB, 1, &report));
    assert_eq!(memory.resident(), MIB / PAGE);
}

#[test]
fn memory_without_the_permission_is_left_to_the_map() {
    let _alone = alone();
    // Read-only memory populated for writing, and memory without any access: neither is device memory.
    let read_only = Memory::anonymous(MIB, READ);
    let none = Memory::anonymous(MIB, libc::PROT_NONE);
    let pieces = [read_only.whole(true), none.whole(true), none.whole(false)];
    let report = populate(&pieces, 1);
    let calls = chunks(&read_only) + 2 * chunks(&none);
    let refused = Report { einval: calls, skipped_bytes: 3 * MIB as u64, ..all_well(calls, 0, 1, &report) };
    assert_eq!(report, refused);
    assert_eq!((read_only.resident(), none.resident()), (0, 0));
}

#[test]
fn a_hole_costs_its_chunk_and_no_other() {
    let _alone = alone();
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    let memory = Memory::anonymous(4 * chunk, READ_WRITE).small_pages();
    let head = 2 * PAGE;
    let first = (memory.start() + head as u64).next_multiple_of(CHUNK_BYTES);
    let first = usize::try_from(first - memory.start()).unwrap();
    // The second page of the first whole chunk is unmapped, and the second page of the next chunk is protected.
    memory.punch(first + PAGE, PAGE);
    memory.protect(first + chunk + PAGE, PAGE, libc::PROT_NONE);
    let tail = 4 * PAGE;
    let report = populate(&[memory.piece(first - head, head + 2 * chunk + tail, false)], 1);
    // The first page of both chunks is present now.
    let holes = Report {
        enomem: 1,
        einval: 1,
        skipped_bytes: 2 * (CHUNK_BYTES - PAGE as u64),
        ..all_well(4, head + tail + 2 * PAGE, 1, &report)
    };
    assert_eq!(report, holes);
}

#[test]
fn behind_the_end_of_a_file_is_an_error_and_not_a_signal() {
    let _alone = alone();
    let file = memfd(MIB);
    let memory = Memory::of(&file, 2 * MIB, READ_WRITE);
    let pieces = [memory.piece(MIB - PAGE, PAGE, true), memory.piece(MIB, PAGE, true)];
    let report = populate(&pieces, 1);
    let half = Report { efault: 1, skipped_bytes: PAGE as u64, ..all_well(2, PAGE, 1, &report) };
    assert_eq!(report, half);
}

#[test]
fn missing_huge_pages_are_an_error_and_not_a_signal() {
    let _alone = alone();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.expect("a kernel with 2 MiB huge pages");
    let free: usize = free.trim().parse().unwrap();
    // More pages than are free; the first ones can be populated.
    let memory = Memory::new((free + 2) * 2 * MIB, READ_WRITE, flags, -1);
    let report = populate(&[memory.whole(true)], 1);
    assert!(report.efault + report.enomem > 0, "{report:?}");
    assert_eq!(report.bytes + report.skipped_bytes, memory.length as u64);
}

#[test]
fn device_memory_is_recognised_once_and_left_alone() {
    let _alone = alone();
    // The kernel maps its time data into every process as bare page frames, as it maps a BAR.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let bounds = maps.lines().find(|line| line.ends_with("[vvar]")).expect("a [vvar] mapping");
    let (begin, end) = bounds.split(' ').next().unwrap().split_once('-').unwrap();
    let begin = u64::from_str_radix(begin, 16).unwrap();
    let end = u64::from_str_radix(end, 16).unwrap();
    let memory = Memory::anonymous(MIB, READ_WRITE).small_pages();
    let pieces =
        [memory.piece(0, PAGE, true), piece(begin, end - begin, false), memory.piece(PAGE, PAGE, true)];
    let report = populate(&pieces, 1);
    let expected = Report { device_pieces: vec![1], ..all_well(3, 2 * PAGE, 1, &report) };
    assert_eq!(report, expected);
    // A piece that is only partly device memory is not reported as device memory.
    let report = populate(&[piece(begin - PAGE as u64, end - begin + PAGE as u64, false)], 1);
    assert_eq!((report.device_pieces.len(), report.bytes), (0, 0));
}

#[test]
fn calls_are_counted_and_shared_by_threads_that_end() {
    let _alone = alone();
    let length = 5 * usize::try_from(CHUNK_BYTES).unwrap() + PAGE;
    for threads in [1, 3, 4, 8, 64] {
        // Only zero pages, because this test counts calls.
        let memory = Memory::anonymous(length, READ);
        let report = populate(&[memory.whole(false)], threads);
        let chunks = chunks(&memory);
        assert_eq!(report, all_well(chunks, length, chunks.min(threads as u64), &report));
        assert!((6..=7).contains(&report.calls));
        assert_no_workers();
        assert_eq!(memory.resident(), length / PAGE);
    }
}

#[test]
fn what_is_present_is_passed_over() {
    let _alone = alone();
    let memory = Memory::anonymous(3 * MIB, READ_WRITE).small_pages();
    memory.write(0, 1);
    memory.write(PAGE, 1);
    let first = populate(&[memory.piece(0, MIB, true)], 1);
    let present = 2 * PAGE as u64;
    assert_eq!((first.present_bytes, first.bytes), (present, MIB as u64 - present));
    let again = populate(&[memory.piece(0, MIB, true)], 1);
    assert_eq!((again.calls, again.present_bytes), (0, MIB as u64));
    assert_eq!(again.small_anonymous_bytes, MIB as u64);
    // A page that was only read is the shared zero page. That is sufficient for a device that reads, but not for one
    // that writes.
    assert_eq!(memory.read(2 * MIB), 0);
    let page = |writable| populate(&[memory.piece(2 * MIB, PAGE, writable)], 1);
    assert_eq!(page(false).calls, 0);
    assert_eq!(page(true).bytes, PAGE as u64);
    assert_eq!(page(true).calls, 0);
}

#[test]
fn only_what_is_missing_is_counted_and_faulted_in() {
    let _alone = alone();
    let length = 4 * usize::try_from(CHUNK_BYTES).unwrap();
    let memory = Memory::anonymous(length, READ_WRITE).small_pages();
    populate(&[memory.whole(true)], 2);
    let refill = |holes: &[usize]| {
        for &page in holes {
            memory.empty(page * PAGE, PAGE);
        }
        let report = populate(&[memory.whole(true)], 8);
        assert_eq!(memory.resident(), length / PAGE);
        assert_eq!(report.small_anonymous_bytes, length as u64);
        let missing = (holes.len() * PAGE) as u64;
        assert_eq!((report.bytes, report.present_bytes), (missing, length as u64 - missing), "{holes:?}");
        assert_eq!(report.threads, 1, "so little justifies no thread");
        report.calls
    };
    assert_eq!(refill(&[]), 0);
    assert_eq!(refill(&[1000]), 1);
    assert_eq!(refill(&[1000, 1002, 1004]), 1, "the pages in between are checked by the same call");
    assert_eq!(refill(&[1000, 1500, 3000]), 3);
    // More than one list of the kernel's holds.
    let many: Vec<usize> = (0..200).map(|hole| 4096 + 2 * hole).collect();
    assert!((1..8).contains(&refill(&many)));
}

#[test]
fn huge_pages_are_asked_for_before_the_first_fault() {
    let _alone = alone();
    let knob = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    for (huge_pages, granted) in [(false, knob.contains("[always]")), (true, !knob.contains("[never]"))] {
        // More than this process has in memory, otherwise nothing is advised.
        let memory = Memory::anonymous(64 * MIB, READ_WRITE);
        let method = Method::Advice;
        let how =
            PopulateOptions { threads: 1, cpus: None, method, huge_pages, chunk: CHUNK_BYTES, control: None };
        let report = populate::populate(&[memory.whole(true)], how);
        assert_eq!(report.huge_bytes + report.small_anonymous_bytes, 64 * MIB as u64);
        // The ends of the mapping may be unaligned, and memory can be fragmented.
        assert_eq!(report.huge_bytes >= 32 * MIB as u64, granted, "{report:?}");
    }
}

#[test]
fn the_callers_advice_against_huge_pages_is_kept() {
    let _alone = alone();
    let memory = Memory::anonymous(64 * MIB, READ_WRITE).small_pages();
    let how = PopulateOptions {
        threads: 2,
        cpus: None,
        method: Method::Advice,
        huge_pages: true,
        chunk: CHUNK_BYTES,
        control: None,
    };
    let report = populate::populate(&[memory.whole(true)], how);
    assert_eq!((report.huge_bytes, report.bytes), (0, 64 * MIB as u64));
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let own = smaps.split_once(&format!("{:x}-", memory.start())).expect("a mapping that starts here").1;
    let flags = own.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    assert!(flags.contains(" nh") && !flags.contains(" hg"), "{flags}");
}

const GIB: usize = 1 << 30;

/// Runs `test` on two pages of 1 GiB in the pieces that entries can cut them into. Needs two free ones, or the right to
/// add them to the pool; says so if it has neither.
fn with_two_pages_of_a_gib(test: impl FnOnce(&Memory, &[HostRange])) {
    let _alone = alone();
    let _pool = Pool::with_free(2);
    if Pool::count("free_hugepages") < 2 {
        eprintln!("not run: there are no two pages of 1 GiB");
        return;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;
    let memory = Memory::new(2 * GIB, READ_WRITE, flags, -1);
    // In the middle of both pages.
    let cuts = [0, MIB, GIB / 2, GIB + MIB, 2 * GIB];
    let pieces: Vec<HostRange> =
        cuts.windows(2).map(|cut| memory.piece(cut[0], cut[1] - cut[0], true)).collect();
    test(&memory, &pieces);
}

#[test]
fn a_page_of_a_gib_is_faulted_in_by_one_thread() {
    with_two_pages_of_a_gib(|memory, pieces| {
        let report = populate(pieces, 8);
        assert_eq!((report.calls, report.threads), (2, 2), "{report:?}");
        println!("two pages of 1 GiB on two threads: {:?}", report.duration);
        memory.empty(0, memory.length);
        println!("on one thread: {:?}", populate(pieces, 1).duration);
    });
}

#[test]
fn the_bytes_of_pages_of_a_gib_are_counted() {
    with_two_pages_of_a_gib(|_, pieces| {
        let report = populate(pieces, 8);
        assert_eq!((report.bytes, report.present_bytes), (2 * GIB as u64, 0), "{report:?}");
        let again = populate(pieces, 8);
        assert_eq!((again.calls, again.threads, again.present_bytes), (0, 1, 2 * GIB as u64));
    });
}

#[test]
fn small_jobs_start_no_thread() {
    let _alone = alone();
    let memory = Memory::anonymous(4 * MIB, READ_WRITE);
    // A thousand pages, each of which is a piece.
    let pieces: Vec<HostRange> = (0..1000).map(|page| memory.piece(page * PAGE, PAGE, true)).collect();
    let report = populate(&pieces, 8);
    assert_eq!(report, all_well(1000, 1000 * PAGE, 1, &report));
    assert_eq!(populate(&[], 8), Report::default());
}

#[test]
fn refused_threads_are_counted_and_the_work_gets_done() {
    const CHILD: &str = "NATIVE_TEST_WITHOUT_MEMORY_FOR_STACKS";
    if std::env::var_os(CHILD).is_none() {
        // In a process of its own, because the limit stays.
        let name = "refused_threads_are_counted_and_the_work_gets_done";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let _alone = alone();
    let length = 3 * usize::try_from(CHUNK_BYTES).unwrap();
    let memory = Memory::anonymous(length, READ);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    // Enough for small allocations, but not for a thread's stack.
    let limit = kib * 1024 + 128 * 1024;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: `limit` is a whole rlimit, and only read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let report = populate(&[memory.whole(false)], 64);
    let expected = Report {
        thread_start_failures: chunks(&memory) - 1,
        ..all_well(chunks(&memory), length, 1, &report)
    };
    assert_eq!(report, expected);
}

#[test]
fn a_broken_page_is_an_error_and_not_a_signal() {
    let _alone = alone();
    let memory = Memory::anonymous(2 * MIB, READ_WRITE).small_pages();
    let poisoner = poison(&memory, MIB, PAGE);
    let report = populate(&[memory.piece(MIB, PAGE, true), memory.piece(MIB, PAGE, false)], 1);
    let broken = Report { ehwpoison: 2, skipped_bytes: 2 * PAGE as u64, ..all_well(2, 0, 1, &report) };
    assert_eq!(report, broken);
    drop(poisoner);
}

/// Makes the kernel report a hardware error for a part of `memory` until the descriptor is closed (UFFDIO_POISON,
/// Linux 6.6, made for the migration of guests with broken pages).
fn poison(memory: &Memory, offset: usize, length: usize) -> OwnedFd {
    const USER_MODE_ONLY: libc::c_int = 1;
    const API: libc::c_ulong = 0xc018_aa3f;
    const REGISTER: libc::c_ulong = 0xc020_aa00;
    const POISON: libc::c_ulong = 0xc020_aa08;
    let start = memory.start() + offset as u64;
    // SAFETY: the call takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    let fd = i32::try_from(fd).unwrap();
    assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // struct uffdio_api { api, features, ioctls }, uffdio_register and uffdio_poison { start, len, mode, answer }.
    let feature_poison = 1 << 14;
    let missing = 1;
    for (request, mut argument) in [
        (API, [0xaa, feature_poison, 0, 0]),
        (REGISTER, [start, length as u64, missing, 0]),
        (POISON, [start, length as u64, 0, 0]),
    ] {
        let argument = argument.as_mut_ptr();
        // SAFETY: the argument is at least as long as each of these structs, and the memory is only ever populated.
        let answer = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, argument) };
        assert_eq!(answer, 0, "{request:#x}: {}", std::io::Error::last_os_error());
    }
    fd
}

/// Fails if a thread of the engine is left. A joined thread may be listed for a moment longer, so this retries.
fn assert_no_workers() {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let workers = threads::named("vfio-fast-");
        if workers.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still running: {workers:?}");
        std::thread::yield_now();
    }
}

/// As [`what_is_present_is_passed_over`], where the kernel says less about the pages.
#[test]
fn present_memory_needs_no_call() {
    let _alone = alone();
    let file = memfd(3 * MIB);
    for memory in
        [Memory::anonymous(3 * MIB, READ_WRITE).small_pages(), Memory::of(&file, 3 * MIB, READ_WRITE)]
    {
        memory.write(0, 1);
        memory.write(PAGE, 1);
        let first = populate(&[memory.whole(true)], 1);
        assert_eq!(first.present_bytes + first.bytes, 3 * MIB as u64);
        assert_eq!(first.present_bytes, 2 * PAGE as u64);
        let again = populate(&[memory.whole(true)], 1);
        assert_eq!((again.calls, again.present_bytes), (0, 3 * MIB as u64));
    }
}

/// Without PAGEMAP_SCAN the kinds of pages are not known, nor which are present. Everything else stays as it is.
#[test]
fn a_kernel_of_6_1_faults_in_alike() {
    let said = Kernel::V6_1.run_tests(&[
        "--skip=a_kernel_of_6_1_faults_in_alike",
        "--skip=what_is_present_is_passed_over",
        "--skip=only_what_is_missing_is_counted_and_faulted_in",
        "--skip=a_hole_costs_its_chunk_and_no_other",
        "--skip=the_bytes_of_pages_of_a_gib_are_counted",
        "--skip=huge_pages_are_asked_for_before_the_first_fault",
    ]);
    assert!(said.contains(" 0 failed"), "{said}");
}
