//! Concurrent map and unmap calls, on a backend that runs them concurrently.
//!
//! The entries of one plan are disjoint, and so are its unmaps: no call depends on another one of the same kind. If
//! several calls fail, the first failure is reported.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Batch, Call, CallContext, Executor, Records, is_unseen_device, not_mapped, pieces};
use crate::error::{Error, KernelResult, Result};
use crate::populate::{self, Control, MIN_PARALLEL_BYTES, Method, PopulateOptions, PopulateSession};
use crate::reconcile::plan::Unmap;
use crate::reconcile::table::{Entry, MapTable};
use crate::region::Kind;
use crate::sys::thread;
use crate::timeline;

/// The number of unmap calls for each thread, so that all threads end at about the same time.
const CALLS_PER_THREAD: u64 = 4;
/// Maximum number of bytes of an unmap call for more than one entry.
const CALL_BYTES: u64 = 1 << 30;

impl CallContext<'_> {
    /// Maps the entries on all threads, each once its memory is present. Device memory is mapped last and in order:
    /// if the kernel refuses an entry, the mapped part of its region is unmapped.
    ///
    /// With `by_address`, memory is not mapped through its object: a file gives out whatever pages it has, and where
    /// the map calls fault in, it would add base pages, and movable ones.
    pub(super) fn map_in_parallel(
        self,
        mut entries: Vec<Entry>,
        fault_in: Option<PopulateOptions<'_>>,
        by_address: bool,
        records: &impl Records,
    ) -> Result<()> {
        let queue = MapQueue {
            entries: &entries,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            devices: Mutex::default(),
            first: Mutex::default(),
            control: self.control,
        };
        let ram: u64 = entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.range.length()));
        let jobs = if ram < MIN_PARALLEL_BYTES { 1 } else { entries.len() };
        let faulted = fault_in.is_some();
        let pieces = if faulted { pieces(&entries) } else { Vec::new() };
        let options = fault_in.unwrap_or(PopulateOptions {
            threads: self.threads,
            method: Method::Maps,
            cpus: self.cpus,
            huge_pages: false,
            chunk: populate::CHUNK_BYTES,
            control: None,
        });
        let work = |session: &PopulateSession<'_>| {
            queue.work(faulted.then_some(session), |entry| {
                let start = Instant::now();
                let object = if by_address { None } else { self.objects.object_of(entry) };
                let answer =
                    timeline::call("map", entry.range, || self.backend.map(&entry.mapping(), object));
                let took = start.elapsed();
                records.with(|executor| executor.record_map(entry, answer, took));
                answer
            });
        };
        let ((), report) = populate::with(&pieces, options, jobs, work, work);
        let MapQueue { devices, first, .. } = queue;
        let devices = devices.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
        records.with(|executor| {
            if faulted {
                executor.executed.populated = Some(report);
            } else {
                executor.executed.thread_start_failures += report.thread_start_failures;
            }
            if first.is_none() {
                devices.iter().for_each(|&index| executor.found_device(&mut entries[index]));
            }
        });
        if let Some(error) = first {
            return Err(error);
        }
        entries.retain(|entry| entry.kind == Kind::Device);
        self.map_in_order(entries, None, records)
    }
}

impl Executor<'_> {
    /// The number of threads that can share these unmaps.
    pub(super) fn useful_threads(&self, unmaps: &[Unmap]) -> usize {
        let (entries, bytes) = totals(unmaps);
        let useful = if bytes < MIN_PARALLEL_BYTES { 1 } else { entries };
        self.threads.min(usize::try_from(useful).unwrap_or(usize::MAX))
    }

    /// Unmaps entries on all threads. Continues after a failure; returns the first one.
    pub(super) fn clear_in_parallel(&mut self, unmaps: &[Unmap], threads: usize) -> Result<()> {
        let (entries, bytes) = totals(unmaps);
        let shares = CALLS_PER_THREAD * threads as u64;
        let most = if self.batch.entries == 0 { u64::MAX } else { self.batch.entries };
        let batch = Batch {
            entries: entries.div_ceil(shares).min(most),
            bytes: bytes.div_ceil(shares).min(CALL_BYTES),
        };
        let table: &MapTable = self.table;
        let calls: Vec<Call> = unmaps.iter().flat_map(|unmap| Call::all(table, unmap.range, batch)).collect();
        let (backend, cpus) = (self.backend, self.cpus);
        let queue = UnmapQueue { calls: &calls, next: AtomicUsize::new(0) };
        let first = Mutex::new(Ok(()));
        let failed = Mutex::new(Vec::new());
        let noted = Mutex::new(&mut *self);
        let note = |call: &Call, answer: KernelResult<u64>, took: Duration| {
            let done = lock(&noted).record_unmap(call.range, call.bytes, answer, took);
            if answer.is_err() && call.entries > 1 {
                lock(&failed).push(call.range);
            }
            let mut first = lock(&first);
            *first = std::mem::replace(&mut *first, Ok(())).and(done);
        };
        let work = || {
            queue.work(|call| {
                let start = Instant::now();
                let answer = timeline::call("unmap", call.range, || backend.unmap(call.range));
                note(call, answer, start.elapsed());
            });
        };
        let ((), refused) = thread::run(threads.saturating_sub(1), cpus, work, work);
        for range in failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.unmap_one_by_one(range);
        }
        self.executed.thread_start_failures += refused.not_started as u64;
        first.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of entries to unmap, and their bytes.
fn totals(unmaps: &[Unmap]) -> (u64, u64) {
    unmaps
        .iter()
        .fold((0, 0), |(entries, bytes), unmap| (entries + unmap.entries, bytes.saturating_add(unmap.bytes)))
}

/// Unmap calls that threads take one after the other.
struct UnmapQueue<'a> {
    calls: &'a [Call],
    next: AtomicUsize,
}

impl UnmapQueue<'_> {
    /// Takes calls until none is left, or until one has panicked in any thread. A call that fails stops nobody.
    fn work(&self, unmap: impl Fn(&Call)) {
        let take_calls = || {
            while let Some(call) = self.calls.get(self.next.fetch_add(1, Ordering::Relaxed)) {
                unmap(call);
            }
        };
        thread::on_panic(|| self.next.store(self.calls.len(), Ordering::Relaxed), take_calls);
    }
}

/// Entries that threads take one after the other.
struct MapQueue<'a> {
    entries: &'a [Entry],
    next: AtomicUsize,
    stop: AtomicBool,
    /// The indices of the entries that turned out to be device memory.
    devices: Mutex<Vec<usize>>,
    first: Mutex<Option<Error>>,
    control: Option<&'a Control>,
}

impl MapQueue<'_> {
    /// Takes entries until none is left, or until a map call has failed or panicked in any thread.
    fn work(&self, session: Option<&PopulateSession<'_>>, map: impl Fn(&Entry) -> KernelResult<()>) {
        thread::on_panic(|| self.stop(session), || self.take_entries(session, map));
        if self.stop.load(Ordering::Relaxed) {
            self.stop(session);
        }
    }

    /// Makes all threads stop taking and mapping entries and waiting for memory.
    fn stop(&self, session: Option<&PopulateSession<'_>>) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(session) = session {
            session.cancel();
        }
    }

    /// Whether no further entry is to be taken or mapped.
    fn is_stopped(&self, session: Option<&PopulateSession<'_>>) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.control.is_some_and(Control::is_paused)
            || session.is_some_and(PopulateSession::is_cancelled)
    }

    fn take_entries(&self, session: Option<&PopulateSession<'_>>, map: impl Fn(&Entry) -> KernelResult<()>) {
        while !self.is_stopped(session) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = self.entries.get(index) else {
                // Other threads wait for memory that no thread has taken yet.
                return session.map_or((), PopulateSession::work);
            };
            if session.is_some_and(|session| session.wait_for(index)) {
                lock(&self.devices).push(index);
                continue;
            }
            // Another entry can have failed, or the job can have been paused, while this thread waited for memory.
            if entry.kind != Kind::Ram || self.is_stopped(session) {
                continue;
            }
            if let Err(errno) = map(entry) {
                if is_unseen_device(entry, errno) {
                    // Mapped again in order, where a refusal undoes the rest of its region.
                    lock(&self.devices).push(index);
                    continue;
                }
                lock(&self.first).get_or_insert(not_mapped(entry, errno));
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic in the thread that held the lock continues when the threads are joined.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::addr::{HostVa, Iova, IovaRange};
    use crate::error::Errno;
    use crate::reconcile::table::Generation;
    use crate::region::{Backing, Perm};

    fn entry(number: u64) -> Entry {
        let range = IovaRange::new(Iova(number << 12), 0x1000).unwrap();
        let (hva, perm, kind) = (HostVa::from_raw(number << 12), Perm::ReadWrite, Kind::Ram);
        Entry { range, hva, perm, kind, backing: Backing(1), generation: Generation::SHARED }
    }

    /// Makes two threads run one after the other: in the first, call 2 has this outcome. Returns the number of calls
    /// made.
    fn calls_of_two_threads(second: impl Fn() -> KernelResult<()>) -> usize {
        let entries: Vec<Entry> = (0..10).map(entry).collect();
        let queue = MapQueue {
            entries: &entries,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            devices: Mutex::default(),
            first: Mutex::default(),
            control: None,
        };
        let calls = AtomicUsize::new(0);
        let map = |_: &Entry| if calls.fetch_add(1, Ordering::Relaxed) == 1 { second() } else { Ok(()) };
        let _ = catch_unwind(AssertUnwindSafe(|| queue.work(None, map)));
        queue.work(None, map);
        calls.into_inner()
    }

    #[test]
    fn no_unmap_follows_one_that_panics() {
        for (panics, made) in [(false, 10), (true, 2)] {
            let calls: Vec<Call> =
                (0..10).map(|n| Call { range: entry(n).range, entries: 1, bytes: 0x1000 }).collect();
            let queue = UnmapQueue { calls: &calls, next: AtomicUsize::new(0) };
            let count = AtomicUsize::new(0);
            let unmap = |_: &Call| {
                let nth = count.fetch_add(1, Ordering::Relaxed);
                assert!(!panics || nth != 1, "in an unmap call");
            };
            // Two threads, one after the other.
            let _ = catch_unwind(AssertUnwindSafe(|| queue.work(unmap)));
            queue.work(unmap);
            assert_eq!(count.into_inner(), made);
        }
    }

    #[test]
    fn no_call_follows_one_that_fails_or_panics() {
        assert_eq!(calls_of_two_threads(|| Ok(())), 10);
        assert_eq!(calls_of_two_threads(|| Err(Errno::EFAULT)), 2);
        assert_eq!(calls_of_two_threads(|| panic!("in a map call")), 2);
    }
}
