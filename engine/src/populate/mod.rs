//! Faults memory in on many threads before it is mapped.
//!
//! A type1 container pins on one thread, under one lock, and spends most of that time on finding and clearing pages
//! that were never accessed. If all CPUs make the pages present beforehand, the map call only pins them. This is only
//! an optimisation: every failure is counted and left to the map call, which does the same work more slowly or
//! returns the right error.

mod advice;
mod ahead;
mod control;
pub mod discard;
pub(crate) mod files;
mod hint;
mod layout;
mod limit;
pub mod method;
mod page_size;
mod queue;
mod report;
mod survey;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::{HUGE_PAGE, HostVa};
use crate::sys::cpu::CpuSet;
use crate::sys::madvise::Access;
use crate::sys::pagemap::Pagemap;
use crate::sys::procmap::Maps;
use crate::sys::thread;
use crate::timeline;
pub use ahead::{Ahead, Left, Locked};
pub use control::Control;
pub(crate) use hint::hint;
pub use limit::{Cause, ThreadLimit};
pub use method::Method;
use page_size::PageSizes;
use queue::{Queue, Worker};
pub use report::Report;
use survey::Survey;

/// Bytes faulted in by one call. A multiple of every PMD, and chunks begin and end at multiples of it, so two threads
/// never share a huge page. Small enough that the last chunk does not keep one thread busy while the others wait.
/// Between a PMD and 32 MiB there is no measurable difference (docs/PERFORMANCE.md).
pub const CHUNK_BYTES: u64 = 16 << 20;

/// The same for work that nobody waits for. The kernel keeps the address space locked during a call, and the program
/// beside it maps memory, starts threads and runs a guest meanwhile.
pub const SHORT_CHUNK_BYTES: u64 = 2 << 20;

/// Minimum number of bytes for more than one thread: with less, a thread costs more time than it saves.
pub const MIN_PARALLEL_BYTES: u64 = 4 << 20;

/// A contiguous range of host memory to be mapped: one piece of the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRange {
    /// The first byte; page aligned.
    pub hva: HostVa,
    /// The length in bytes; a multiple of the page. 0: nothing to fault in.
    pub bytes: u64,
    /// Whether the device may write: then pages are made writable now, not by the pin.
    pub writable: bool,
}

/// The options for faulting in.
#[derive(Clone, Copy, Debug)]
pub struct PopulateOptions<'a> {
    /// Maximum number of threads, including the calling one.
    pub threads: usize,
    /// How.
    pub method: Method,
    /// The CPUs of the other threads; `None`: those of the process.
    pub cpus: Option<&'a CpuSet>,
    /// Whether to request huge pages first, if there is anything to fault in.
    pub huge_pages: bool,
    /// Bytes that a thread takes and faults in at a time: a power of two of at least a page. [`CHUNK_BYTES`] or
    /// [`SHORT_CHUNK_BYTES`], except in benches.
    pub chunk: u64,
    /// Of a job in the background; `None` for all other work.
    pub control: Option<&'a Control>,
}

/// One thread's handle to a populate in progress.
pub struct PopulateSession<'a> {
    queue: &'a Queue<'a>,
    worker: RefCell<Worker<'a>>,
    /// Time spent in the methods below.
    spent: Cell<Duration>,
}

impl<'a> PopulateSession<'a> {
    fn new(queue: &'a Queue<'a>, worker: Worker<'a>) -> Self {
        Self { queue, worker: RefCell::new(worker), spent: Cell::default() }
    }

    /// Works until piece `index` is done or the work is cancelled. Returns whether the piece turned out to be device
    /// memory.
    pub fn wait_for(&self, index: usize) -> bool {
        if !self.queue.is_done(index) {
            self.timed(|| {
                while !self.queue.is_done(index) && self.step() {}
                let _span = timeline::span("wait for memory");
                self.queue.wait(index);
            });
        }
        self.queue.found_device(index)
    }

    /// Works until no chunk is left to take. Other threads can still be working on theirs.
    pub fn work(&self) {
        self.timed(|| while self.step() {});
    }

    /// Cancels: no further chunk is taken, and every waiter is released even if its memory is not present.
    pub fn cancel(&self) {
        self.queue.cancel();
    }

    /// Whether it was cancelled, by a caller or because a thread has panicked.
    pub fn is_cancelled(&self) -> bool {
        self.queue.is_cancelled()
    }

    fn step(&self) -> bool {
        self.queue.step(&mut self.worker.borrow_mut())
    }

    fn timed(&self, work: impl FnOnce()) {
        let start = Instant::now();
        work();
        self.spent.set(self.spent.get() + start.elapsed());
    }
}

/// Makes `pieces` present, in order, on up to `options.threads` threads, including the calling one. The calling
/// thread runs `body`, the others run `work`; a thread that waits for a piece takes chunks itself. `jobs` is the
/// number of threads that have other work to do. Chunks that no thread has taken when `body` returns are left undone;
/// chunks that were taken are finished first.
///
/// All other threads have ended when this returns.
pub fn with<R>(
    pieces: &[HostRange],
    options: PopulateOptions<'_>,
    jobs: usize,
    work: impl Fn(&PopulateSession<'_>) + Sync,
    body: impl FnOnce(&PopulateSession<'_>) -> R,
) -> (R, Report) {
    let started = Instant::now();
    let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
    let pagemap = if total > 0 { Pagemap::open() } else { None };
    // The calling thread looks first: where nothing is missing, a thread would cost more than all of the work.
    let Survey { rest, missing, done } = Survey::of(pieces, options, pagemap.as_ref());
    if let Some(control) = options.control {
        control.add_present(done.present_bytes);
    }
    let parallel = options.threads > 1 && missing >= MIN_PARALLEL_BYTES;
    let maps = if parallel { Maps::open() } else { None };
    let lists = missing > 0 && (options.huge_pages || (parallel && maps.is_none()));
    let mappings = if lists { advice::mappings(&rest, missing) } else { Vec::new() };
    let sizes = parallel.then(|| PageSizes::new(maps, &mappings));
    let queue = Queue::new(&rest, options.threads, pagemap.as_ref(), options.chunk, |piece| {
        sizes.as_ref().map_or(0, |sizes| sizes.of(piece))
    })
    .by(options.method)
    .controlled_by(options.control);
    let chunks = usize::try_from(queue.chunks()).unwrap_or(usize::MAX);
    // A huge page each: clearing one takes a few times as long as starting a thread.
    let shares = usize::try_from(missing / HUGE_PAGE).unwrap_or(usize::MAX);
    let useful = if missing < MIN_PARALLEL_BYTES { 1 } else { shares.min(chunks) };
    let extra = options.threads.min(useful.max(jobs)).saturating_sub(1);
    if options.huge_pages {
        advice::prefer_huge_pages(&rest, &mappings);
    }
    let report = Mutex::new(done);
    let add = |done: &Report| report.lock().unwrap_or_else(PoisonError::into_inner).add(done);
    let started_workers = AtomicUsize::new(0);
    let work = || {
        let worker = queue.worker(started_workers.fetch_add(1, Ordering::Relaxed));
        let session = PopulateSession::new(&queue, worker);
        thread::on_panic(|| queue.cancel(), || work(&session));
        add(&session.worker.borrow().done);
    };
    // The time that the calling thread spent on other work than faulting in.
    let mut elsewhere = Duration::ZERO;
    let (answer, refused) = thread::run(extra, options.cpus, work, || {
        let session = PopulateSession::new(&queue, queue.caller());
        let begun = Instant::now();
        let answer = thread::on_panic(|| queue.cancel(), || body(&session));
        queue.close();
        elsewhere = begun.elapsed().saturating_sub(session.spent.get());
        if total > 0 {
            add(&session.worker.borrow().done);
        }
        answer
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.thread_start_failures = refused.not_started as u64;
    report.threads_not_moved = refused.not_moved as u64;
    report.device_pieces = (0..pieces.len()).filter(|&index| queue.found_device(index)).collect();
    if total > 0 {
        report.duration = started.elapsed().saturating_sub(elsewhere);
    }
    (answer, report)
}

/// Requests huge pages for `pieces`, for the faults of the map calls.
pub(crate) fn advise(pieces: &[HostRange]) {
    let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
    advice::prefer_huge_pages(pieces, &advice::mappings(pieces, total));
}

fn access(piece: &HostRange) -> Access {
    if piece.writable { Access::Write } else { Access::Read }
}

/// Makes `pieces` present as far as possible, without other work; see [`with`].
pub fn populate(pieces: &[HostRange], options: PopulateOptions<'_>) -> Report {
    let work = |session: &PopulateSession<'_>| session.work();
    with(pieces, options, 1, work, work).1
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;

    use super::*;

    const PMD: u64 = crate::addr::HUGE_PAGE;

    fn piece(start: u64, bytes: u64) -> HostRange {
        HostRange { hva: HostVa::from_raw(start), bytes, writable: true }
    }

    fn how(threads: usize, chunk: u64) -> PopulateOptions<'static> {
        PopulateOptions {
            threads,
            cpus: None,
            method: Method::Advice,
            huge_pages: false,
            chunk,
            control: None,
        }
    }

    #[test]
    fn whatever_goes_wrong_is_counted_under_its_name() {
        // The first pages of the address space (vm.mmap_min_addr) and its upper half are never mapped.
        let report = populate(&[piece(0, 0x1000), piece(1 << 63, 3 * PMD)], how(1, PMD));
        assert_eq!((report.calls, report.bytes, report.enomem), (4, 0, 4));
        assert_eq!(report.skipped_bytes, 0x1000 + 3 * PMD);
    }

    #[test]
    fn of_device_memory_one_chunk_is_tried() {
        // The kernel maps its time data into every process as bare page frames, over several pages.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let vvar =
            maps.lines().find(|line| line.ends_with("[vvar]")).expect("a [vvar] mapping in this process");
        let (begin, end) = vvar.split(' ').next().unwrap().split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let piece = HostRange { writable: false, ..piece(begin, end - begin) };
        assert!(piece.bytes > 0x1000);
        let report = populate(&[piece], how(1, 0x1000));
        let expected = Report { calls: 1, threads: 1, device_pieces: vec![0], ..Report::default() };
        assert_eq!(Report { duration: Duration::ZERO, ..report }, expected);
    }

    #[test]
    fn threads_are_bounded_by_what_there_is_to_do() {
        let threads = |pieces: &[HostRange], threads| populate(pieces, how(threads, PMD)).threads;
        assert_eq!(threads(&[], 8), 0);
        assert_eq!(threads(&[piece(0, 0), piece(PMD, 0)], 8), 0);
        assert_eq!(threads(&[piece(0, MIN_PARALLEL_BYTES - 0x1000)], 8), 1, "two chunks, but small");
        assert_eq!(threads(&[piece(0, MIN_PARALLEL_BYTES)], 8), 2, "two chunks");
        assert_eq!(threads(&[piece(0, 8 * PMD)], 3), 3);
        assert_eq!(threads(&[piece(0, 8 * PMD)], 0), 1, "the calling thread always works");
    }

    #[test]
    fn a_settled_piece_is_done_and_the_rest_may_be_left() {
        // Unmapped memory: each chunk is one call that fails.
        let pieces = [piece(1 << 63, 3 * PMD), piece(0, 0), piece(1 << 63, 1 << 40)];
        for threads in [1, 3] {
            let (settled, report) = with(
                &pieces,
                how(threads, PMD),
                1,
                |p| p.work(),
                |session| (session.wait_for(0), session.wait_for(1), session.queue.is_done(2)),
            );
            assert_eq!(settled, (false, false, false));
            assert!((3..1 << 19).contains(&report.calls), "{report:?}");
            assert_eq!((report.enomem, report.threads), (report.calls, threads as u64));
        }
    }

    #[test]
    fn nobody_waits_for_what_was_cancelled() {
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            let pieces = [piece(1 << 63, 1 << 44)];
            let settle = |session: &PopulateSession<'_>| _ = session.wait_for(0);
            let ((), report) = with(&pieces, how(3, PMD), 1, settle, |session| {
                session.step();
                session.cancel();
                session.wait_for(0);
            });
            sender.send(report.calls)
        });
        let calls = ended.recv_timeout(Duration::from_secs(60)).expect("somebody still waits");
        assert!(calls > 0 && calls < 1 << 23);
    }

    /// The order is forced: one worker takes the only chunk of piece 0, the calling thread returns, and only then the
    /// worker finishes the chunk. A second worker waits for the piece during all of this.
    #[test]
    fn a_waiter_stays_until_its_piece_is_done_after_the_calling_thread_has_returned() {
        let pieces = [piece(1 << 63, PMD), piece(1 << 63, PMD)];
        let (taken, done, workers) = (Barrier::new(3), AtomicBool::new(false), AtomicUsize::new(0));
        let (released_early, settled) = (AtomicBool::new(false), AtomicUsize::new(0));
        let work = |session: &PopulateSession<'_>| {
            let queue = session.queue;
            if workers.fetch_add(1, Ordering::Relaxed) > 0 {
                taken.wait();
                // Not `settle`, which would take the other chunk: no thread may take that one until the queue is
                // closed.
                queue.wait(0);
                released_early.fetch_or(!done.load(Ordering::Acquire), Ordering::Relaxed);
                settled.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let chunk = queue.take_for_test();
            taken.wait();
            while !queue.is_closed() {
                std::thread::yield_now();
            }
            released_early.fetch_or(!queue.is_awaited(0), Ordering::Relaxed);
            done.store(true, Ordering::Release);
            drop(chunk);
            assert!(!queue.is_awaited(0));
        };
        with(&pieces, how(3, PMD), 3, work, |_| _ = taken.wait());
        assert_eq!(settled.into_inner(), 1, "the waiter has run");
        assert!(!released_early.into_inner(), "released before the memory of its piece was present");
    }

    #[test]
    fn a_panic_of_a_worker_ends_the_work() {
        let pieces = [piece(1 << 63, 1 << 44)];
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            let body = |session: &PopulateSession<'_>| {
                session.wait_for(0);
                sender.send(session.is_cancelled())
            };
            let panics = |_: &PopulateSession<'_>| panic!("enough");
            let _ = catch_unwind(AssertUnwindSafe(|| with(&pieces, how(3, PMD), 1, panics, body).0));
        });
        let cancelled = ended.recv_timeout(Duration::from_secs(60));
        assert_eq!(cancelled, Ok(true), "the calling thread would have faulted everything in by itself");
    }

    #[test]
    fn a_panic_ends_the_work() {
        let pieces = [piece(1 << 63, 1 << 44)];
        let body = |session: &PopulateSession<'_>| {
            session.step();
            panic!("enough");
        };
        let ended = catch_unwind(AssertUnwindSafe(|| with(&pieces, how(3, PMD), 1, |p| p.work(), body).0));
        assert_eq!(ended.unwrap_err().downcast_ref(), Some(&"enough"));
    }
}
