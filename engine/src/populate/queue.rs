//! The work of a populate, shared among threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use super::layout::{Chunk, Layout};
use super::method::{Method, Pins};
use super::{Control, HostRange, MIN_PARALLEL_BYTES, Report, access};
use crate::addr::{HUGE_PAGE, HostVa};
use crate::error::{Errno, KernelResult};
use crate::sys::madvise::{self, Access};
use crate::sys::mincore;
use crate::sys::numa::{NodeBinding, Nodes};
use crate::sys::page::base_page;
use crate::sys::pagemap::{PageRegion, Pagemap};
use crate::sys::vma;
use crate::timeline;

/// The longest run of present pages that is faulted in together with the missing ones around it: checking so many
/// pages takes as long as a second call.
const GAP: u64 = 64 << 10;

/// Pieces cut into chunks. Threads take one chunk after the other; none is assigned in advance, because the time that
/// a chunk takes is unknown (present memory takes none, huge pages take less).
pub(super) struct Queue<'a> {
    pieces: &'a [HostRange],
    layout: Layout,
    groups: Vec<Group>,
    nodes: Option<Nodes>,
    /// For each piece, the number of its chunks that are not done.
    left: Vec<AtomicU64>,
    cancelled: AtomicBool,
    /// Notified when the last chunk of a piece is done, and when the queue is cancelled.
    settled: (Mutex<()>, Condvar),
    /// For each piece, whether it is device memory, once that was checked.
    device: Vec<OnceLock<bool>>,
    /// Used to find memory that is already present.
    pagemap: Option<&'a Pagemap>,
    method: Method,
    pins: Pins,
    control: Option<&'a Control>,
}

/// Adjacent chunks with memory on the same NUMA node, or without a preferred node.
#[derive(Debug)]
struct Group {
    node: Option<usize>,
    next: AtomicU64,
    /// The end of its range of chunk numbers, exclusive.
    end: u64,
}

/// A working thread, and the group that it took its last chunk from.
pub(super) struct Worker<'a> {
    group: usize,
    /// The node it is bound to; `None`: it stays on its CPUs.
    binding: Option<NodeBinding<'a>>,
    /// The work it has done.
    pub done: Report,
}

impl<'a> Queue<'a> {
    /// The same, faulting in by `method`.
    pub fn by(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// The same, as a part of a job.
    pub fn controlled_by(self, control: Option<&'a Control>) -> Self {
        Self { control, ..self }
    }

    /// A queue of all bytes of `pieces` for up to `threads` threads, in chunks of `chunk` bytes, or of a page if
    /// `page` returns a larger one for the piece.
    pub fn new(
        pieces: &'a [HostRange],
        threads: usize,
        pagemap: Option<&'a Pagemap>,
        chunk: u64,
        page: impl Fn(&HostRange) -> u64,
    ) -> Self {
        let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
        let nodes = if threads > 1 && total >= MIN_PARALLEL_BYTES { Nodes::read() } else { None };
        let node = |piece: &HostRange| nodes.as_ref()?.node_of(piece.hva);
        // A chunk may be smaller than a huge page only in benches.
        let unit = |page| if page > HUGE_PAGE { chunk.max(page) } else { chunk };
        let of = |index: usize| (unit(page(&pieces[index])), node(&pieces[index]));
        let layout = Layout::new(pieces, chunk.max(HUGE_PAGE), of);
        Self { nodes, ..Self::of(pieces, layout, pagemap) }
    }

    fn of(pieces: &'a [HostRange], layout: Layout, pagemap: Option<&'a Pagemap>) -> Self {
        let chunks = |index| length(&layout.chunks_of(pieces, index));
        Self {
            pieces,
            groups: grouped(&layout),
            nodes: None,
            left: (0..pieces.len()).map(|index| AtomicU64::new(chunks(index))).collect(),
            cancelled: AtomicBool::new(false),
            settled: (Mutex::new(()), Condvar::new()),
            device: pieces.iter().map(|_| OnceLock::new()).collect(),
            pagemap,
            method: Method::Advice,
            pins: Pins::default(),
            control: None,
            layout,
        }
    }

    pub fn chunks(&self) -> u64 {
        self.layout.chunks()
    }

    /// The calling thread, which works from the front and stays on its CPUs.
    pub fn caller(&self) -> Worker<'_> {
        Worker { group: 0, binding: None, done: Report::default() }
    }

    /// Worker `number`, counted from 0. Workers begin in different groups and move on to the next group with work.
    pub fn worker(&self, number: usize) -> Worker<'_> {
        let group = number % self.groups.len().max(1);
        Worker {
            group,
            binding: self.nodes.as_ref().map(NodeBinding::of_current_thread),
            done: Report::default(),
        }
    }

    /// Takes one chunk and processes it; `false` if none is left.
    pub fn step(&self, worker: &mut Worker<'_>) -> bool {
        if self.control.is_some_and(Control::is_paused) {
            self.cancel();
            return false;
        }
        let Some(number) = self.take(&mut worker.group) else { return false };
        if let Some(binding) = &mut worker.binding {
            binding.move_to(self.groups[worker.group].node);
        }
        let chunk = self.layout.chunk(self.pieces, number);
        let _span = timeline::sized("fault in", chunk.last - chunk.start + 1);
        let done = &mut worker.done;
        // If pieces share a page, faulting in the first makes the others present, which were missing.
        let missing = if chunk.pieces.len() > 1 { self.missing(&chunk) } else { 0 };
        let (bytes, present) = (done.bytes, done.present_bytes);
        for index in chunk.pieces.clone() {
            let _finished = Finished { queue: self, index };
            // Every chunk of device memory fails in the same way.
            if self.device[index].get() != Some(&true) {
                let (hva, bytes) = chunk.part_of(&self.pieces[index]);
                self.fault_in(index, hva, bytes, done);
            }
        }
        let shared = missing.saturating_sub(done.bytes - bytes).min(done.present_bytes - present);
        done.bytes += shared;
        done.present_bytes -= shared;
        if let Some(control) = self.control {
            control.add_present(done.bytes + done.present_bytes - (bytes + present));
        }
        true
    }

    /// The number of bytes that are missing in a chunk.
    fn missing(&self, chunk: &Chunk) -> u64 {
        let mut found = [PageRegion::default(); 64];
        let (hva, bytes) = (HostVa::from_raw(chunk.start), chunk.last - chunk.start + 1);
        let access = access(&self.pieces[chunk.pieces.start]);
        let listed = self.pagemap.and_then(|pagemap| pagemap.missing(hva, bytes, access, &mut found).ok());
        found[..listed.unwrap_or(0)].iter().map(|region| region.end - region.start).sum()
    }

    /// Takes the next chunk of `group`, or else of the next group that has one, and updates `group`.
    fn take(&self, group: &mut usize) -> Option<u64> {
        for _ in 0..self.groups.len() {
            let Group { next, end, .. } = &self.groups[*group];
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number < *end {
                return Some(number);
            }
            *group = (*group + 1) % self.groups.len();
        }
        None
    }

    /// Closes the queue: no further chunk is taken. Chunks that were taken stay in progress, and threads that wait
    /// for their pieces keep waiting. All other chunks stay undone, and nothing waits for them any more.
    pub fn close(&self) {
        for group in &self.groups {
            let untaken = group.next.swap(group.end, Ordering::AcqRel).min(group.end)..group.end;
            let Some(last) = untaken.clone().last() else { continue };
            let first = self.layout.chunk(self.pieces, untaken.start).pieces.start;
            for index in first..self.layout.chunk(self.pieces, last).pieces.end {
                let chunks = self.layout.chunks_of(self.pieces, index);
                let undone = chunks.start.max(untaken.start)..chunks.end.min(untaken.end);
                self.left[index].fetch_sub(length(&undone), Ordering::AcqRel);
            }
        }
        self.notify();
    }

    /// Whether the queue was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Cancels: closes the queue and releases every waiter, even if its memory is not present.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.close();
    }

    /// Makes every waiter check its condition again.
    fn notify(&self) {
        let (lock, settled) = &self.settled;
        // A thread that has checked its condition but does not wait yet holds the lock.
        drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
        settled.notify_all();
    }

    /// Whether no chunk of piece `index` is left.
    pub fn is_done(&self, index: usize) -> bool {
        self.left[index].load(Ordering::Acquire) == 0
    }

    /// Whether a thread that needs piece `index` has to wait for other threads.
    pub fn is_awaited(&self, index: usize) -> bool {
        !self.is_done(index) && !self.is_cancelled()
    }

    /// Waits until no chunk of piece `index` is left, or the queue is cancelled. Only for threads that cannot take
    /// another chunk.
    pub fn wait(&self, index: usize) {
        let (lock, settled) = &self.settled;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.is_awaited(index) {
            guard = settled.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether piece `index` has turned out to be device memory.
    pub fn found_device(&self, index: usize) -> bool {
        self.device[index].get() == Some(&true)
    }

    /// Makes the missing pages of a part of piece `index` present, and counts all of its pages.
    fn fault_in(&self, index: usize, hva: HostVa, bytes: u64, done: &mut Report) {
        let access = access(&self.pieces[index]);
        let (start, end) = (hva.raw(), hva.raw().saturating_add(bytes));
        let mut found = [PageRegion::default(); 64];
        if self.is_left_to_the_map(&self.pieces[index]) {
            return;
        }
        let known = if self.pagemap.is_none() { in_memory(hva, bytes, access) } else { 0 };
        if known == bytes {
            done.present_bytes += bytes;
            return;
        }
        let (mut at, mut filled) = (start + known, 0);
        let reached = 'part: loop {
            let hva = HostVa::from_raw(at);
            let listed = self.pagemap.map(|pagemap| pagemap.missing(hva, end - at, access, &mut found));
            // Memory that cannot be scanned counts as missing.
            let whole = [PageRegion::new(at, end)];
            let missing = if let Some(Ok(count)) = listed { &found[..count] } else { &whole };
            for near in missing.chunk_by(|one, other| other.start - one.end <= GAP) {
                let (from, to) = (near[0].start, near[near.len() - 1].end);
                done.calls += 1;
                let outcome = self.populate(HostVa::from_raw(from), to - from, access);
                let reached = match outcome {
                    Ok(()) => to,
                    Err(errno) if errno == self.errno_of_devices() && self.is_device(index) => return,
                    Err(_) => from + self.present(HostVa::from_raw(from), to - from),
                };
                let before = |region: &PageRegion| region.end.min(reached).saturating_sub(region.start);
                filled += near.iter().map(before).sum::<u64>();
                if let Err(errno) = outcome {
                    done.left_to_the_map(end - reached, errno);
                    // The map call fails for the same reason, or succeeds after another process has given memory
                    // back. A hole gives the same error: there mincore fails too.
                    if errno == Errno::ENOMEM && mincore::present(HostVa::from_raw(from), to - from).is_ok() {
                        self.close();
                    }
                    break 'part reached;
                }
            }
            match missing.last() {
                Some(last) if missing.len() == found.len() && last.end < end => at = last.end,
                _ => break end,
            }
        };
        done.bytes += filled;
        done.present_bytes += (reached - start) - filled;
        let kinds = self.pagemap.filter(|_| reached > start);
        if let Some(Ok(mapped)) = kinds.map(|pagemap| pagemap.kinds(hva, reached - start, access)) {
            done.count(mapped);
        }
    }

    /// The number of bytes that are present from `hva` on.
    fn present(&self, hva: HostVa, bytes: u64) -> u64 {
        self.pagemap.and_then(|pagemap| pagemap.present(hva, bytes).ok()).unwrap_or(0)
    }

    /// Makes memory present.
    fn populate(&self, hva: HostVa, bytes: u64, access: Access) -> KernelResult<()> {
        match self.method {
            Method::Advice => madvise::populate(hva, bytes, access),
            Method::Pins => self.pins.fault_in(hva, bytes),
            Method::Maps => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Whether nothing can be done for a piece before its map call.
    fn is_left_to_the_map(&self, piece: &HostRange) -> bool {
        match self.method {
            Method::Advice => false,
            // Every pin of io_uring is one for writing.
            Method::Pins => !piece.writable,
            Method::Maps => true,
        }
    }

    /// The error that device memory gives.
    fn errno_of_devices(&self) -> Errno {
        if self.method == Method::Advice { Errno::EINVAL } else { Errno::EFAULT }
    }

    /// Whether piece `index` is device memory. Looked up once, on the first error that device memory gives.
    fn is_device(&self, index: usize) -> bool {
        let piece = &self.pieces[index];
        // If the flags cannot be read, leave the decision to the map call.
        *self.device[index].get_or_init(|| vma::is_device(piece.hva, piece.bytes).unwrap_or(false))
    }
}

/// Marks one chunk of piece `index` as done when dropped, even by a panic, so that no thread waits for it forever.
struct Finished<'a> {
    queue: &'a Queue<'a>,
    index: usize,
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        let Self { queue, index } = self;
        if queue.left[*index].fetch_sub(1, Ordering::AcqRel) == 1 {
            queue.notify();
        }
    }
}

/// The bytes that are in memory from `hva` on, where the page tables cannot be asked.
fn in_memory(hva: HostVa, bytes: u64, access: Access) -> u64 {
    let present = mincore::present(hva, bytes).unwrap_or(0);
    // Device memory that was accessed is present too. It is to be recognised, so its first page is tried.
    if present > 0 && madvise::populate(hva, base_page(), access).is_err() { 0 } else { present }
}

/// Groups adjacent runs on the same node.
fn grouped(layout: &Layout) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for run in layout.runs() {
        let Range { start, end } = layout.chunks_of_run(run);
        match groups.last_mut() {
            Some(last) if last.node == run.node => last.end = end,
            _ => groups.push(Group { node: run.node, next: AtomicU64::new(start), end }),
        }
    }
    groups
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PMD: u64 = HUGE_PAGE;

    fn piece(start: u64, bytes: u64) -> HostRange {
        HostRange { hva: HostVa::from_raw(start), bytes, writable: true }
    }

    impl Queue<'_> {
        /// Takes the first chunk, which is in progress until the result is dropped.
        pub fn take_for_test(&self) -> impl Drop {
            let number = self.take(&mut 0).expect("a chunk that no thread has taken");
            Finished { queue: self, index: self.layout.chunk(self.pieces, number).pieces.start }
        }

        /// Whether no chunk is left to take.
        pub fn is_closed(&self) -> bool {
            self.groups.iter().all(|group| group.next.load(Ordering::Acquire) >= group.end)
        }
    }

    #[test]
    fn what_is_cancelled_is_not_begun() {
        let pieces = [piece(0, 4 * PMD), piece(0, 0)];
        let queue = Queue::new(&pieces, 1, None, PMD, |_| 0);
        let mut worker = queue.caller();
        assert!(queue.is_done(1) && !queue.is_done(0));
        assert!(queue.step(&mut worker));
        queue.cancel();
        assert!(!queue.step(&mut worker));
        assert_eq!(worker.done.calls, 1);
    }

    /// One chunk is in progress when the queue is closed or cancelled; no thread has taken the others.
    #[test]
    fn of_a_closed_queue_only_chunks_in_progress_are_awaited() {
        let pieces = [2, 0, 3, 1].map(|pmds| piece(0, pmds * PMD));
        for cancelled in [false, true] {
            let queue = Queue::new(&pieces, 1, None, PMD, |_| 0);
            assert_eq!([0, 1, 2, 3].map(|index| queue.is_awaited(index)), [true, false, true, true]);
            let chunk = queue.take_for_test();
            if cancelled {
                queue.cancel();
            } else {
                queue.close();
                queue.close();
            }
            assert!(queue.is_closed());
            assert_eq!([0, 1, 2, 3].map(|index| queue.is_awaited(index)), [!cancelled, false, false, false]);
            drop(chunk);
            assert!((0..4).all(|index| queue.is_done(index)));
        }
    }

    #[test]
    fn workers_begin_apart_and_every_chunk_is_taken_once() {
        let pieces: Vec<HostRange> = [2, 0, 3, 1, 4].map(|pmds| piece(0, pmds * PMD)).into();
        // The node of each piece; that of the empty piece is never requested.
        let on = [Some(0), Some(9), Some(0), None, Some(1)];
        let queue = Queue::of(&pieces, Layout::new(&pieces, PMD, |index| (PMD, on[index])), None);
        let groups: Vec<_> = queue
            .groups
            .iter()
            .map(|group| (group.node, group.next.load(Ordering::Relaxed), group.end))
            .collect();
        assert_eq!(groups, [(Some(0), 0, 5), (None, 5, 6), (Some(1), 6, 10)]);
        let mut workers: Vec<Worker<'_>> = (0..4).map(|number| queue.worker(number)).collect();
        let mut taken = Vec::new();
        for turn in 0.. {
            let Some(number) = queue.take(&mut workers[turn % 4].group) else { break };
            taken.push(number);
        }
        assert_eq!(taken, [0, 5, 6, 1, 2, 7, 8, 3, 4, 9]);
    }
}
