//! The work of a populate, shared among threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use super::{HostRange, PopulateOptions, Report};
use crate::addr::{HUGE_PAGE, HostVa};
use crate::error::Errno;
use crate::sys::madvise::{self, Access};
use crate::sys::numa::{NodeBinding, Nodes};
use crate::sys::pagemap::Pagemap;
use crate::sys::vma;

/// Bytes that one call scans for missing pages: large enough to make scanning present memory cheap, small enough to
/// leave ranges for all threads.
const SCAN_BYTES: u64 = 256 << 20;

/// Pieces cut into chunks. Threads take one chunk after the other; none is assigned in advance, because the time that
/// a chunk takes is unknown (present memory takes none, huge pages take less). The first thread in a scan range of
/// [`SCAN_BYTES`] finds the missing pages for all of its chunks.
pub(super) struct Queue<'a> {
    pieces: &'a [HostRange],
    options: PopulateOptions<'a>,
    stretch: u64,
    /// For each piece, the number of stretches in the pieces before it.
    first_stretch: Vec<u64>,
    /// For each stretch that was scanned, how many bytes from its beginning are present.
    stretches: Vec<OnceLock<u64>>,
    /// For each piece, the number of chunks in the pieces before it.
    first_chunk: Vec<u64>,
    chunks: u64,
    groups: Vec<Group>,
    nodes: Option<Nodes>,
    /// For each piece, the number of its chunks that are not done.
    left: Vec<AtomicU64>,
    cancelled: AtomicBool,
    /// Notified when the last chunk of a piece is done, and when the queue is cancelled.
    settled: (Mutex<()>, Condvar),
    /// For each piece, whether it is device memory, once that was checked.
    device: Vec<OnceLock<bool>>,
    /// For each piece, whether huge pages were requested: before its first fault, and never if it has none.
    advised: Vec<OnceLock<()>>,
    /// Used to find memory that is already present.
    pagemap: Option<Pagemap>,
}

/// Adjacent pieces with memory on the same NUMA node, or without a preferred node.
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
    pub fn new(pieces: &'a [HostRange], options: PopulateOptions<'a>) -> Self {
        let stretch = SCAN_BYTES.max(options.chunk);
        let (first_stretch, stretches) = numbered(pieces, stretch);
        let (first_chunk, chunks) = numbered(pieces, options.chunk);
        let nodes = if options.threads > 1 && chunks > 1 { Nodes::read() } else { None };
        let groups = grouped(&first_chunk, chunks, |index| nodes.as_ref()?.node_of(pieces[index].hva));
        Self {
            pieces,
            options,
            stretch,
            first_stretch,
            stretches: (0..stretches).map(|_| OnceLock::new()).collect(),
            first_chunk,
            chunks,
            groups,
            nodes,
            left: pieces.iter().map(|piece| AtomicU64::new(cells_of(piece, options.chunk))).collect(),
            cancelled: AtomicBool::new(false),
            settled: (Mutex::new(()), Condvar::new()),
            device: pieces.iter().map(|_| OnceLock::new()).collect(),
            advised: pieces.iter().map(|_| OnceLock::new()).collect(),
            pagemap: if chunks > 0 { Pagemap::open() } else { None },
        }
    }

    pub fn chunks(&self) -> u64 {
        self.chunks
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
        let Some(number) = self.take(&mut worker.group) else { return false };
        if let Some(binding) = &mut worker.binding {
            binding.move_to(self.groups[worker.group].node);
        }
        let index = holder(&self.first_chunk, number);
        let _finished = Finished { queue: self, index };
        // Every chunk of device memory fails in the same way.
        if self.device[index].get() != Some(&true) {
            self.fault_in(index, number, &mut worker.done);
        }
        true
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
            let mut next = untaken.start;
            while next < untaken.end {
                let index = holder(&self.first_chunk, next);
                let end =
                    self.first_chunk.get(index + 1).map_or(untaken.end, |&first| first.min(untaken.end));
                self.left[index].fetch_sub(end - next, Ordering::AcqRel);
                next = end;
            }
        }
        self.notify();
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
        !self.is_done(index) && !self.cancelled.load(Ordering::Acquire)
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

    /// The number of bytes present from the beginning of stretch `number`. The first caller scans, and others wait
    /// for it.
    fn present_in(&self, index: usize, number: u64, done: &mut Report) -> u64 {
        let slot = usize::try_from(number).map(|number| &self.stretches[number]);
        let Ok(slot) = slot else { return 0 };
        *slot.get_or_init(|| {
            let (hva, bytes) = cell_of(&self.pieces[index], self.stretch, number - self.first_stretch[index]);
            self.look(index, hva, bytes, done)
        })
    }

    /// Returns and counts the bytes present from `hva` on. Memory that cannot be scanned counts as missing: faulting
    /// in present memory is slower, but harmless.
    fn look(&self, index: usize, hva: HostVa, bytes: u64, done: &mut Report) -> u64 {
        let asked =
            self.pagemap.as_ref().map(|pagemap| pagemap.present(hva, bytes, access(&self.pieces[index])));
        let Some(Ok(mapped)) = asked else { return 0 };
        done.present_bytes += mapped.bytes();
        done.count(mapped);
        mapped.bytes()
    }

    /// Makes chunk `number` of piece `index` present, from its first missing byte on.
    fn fault_in(&self, index: usize, number: u64, done: &mut Report) {
        let piece = &self.pieces[index];
        let (hva, bytes) = cell_of(piece, self.options.chunk, number - self.first_chunk[index]);
        let end = hva.raw() + (bytes - 1);
        let ahead = hva.raw() / self.stretch - piece.hva.raw() / self.stretch;
        let (stretch, _) = cell_of(piece, self.stretch, ahead);
        let known = self.present_in(index, self.first_stretch[index] + ahead, done);
        let seen_missing = stretch.checked_add(known).unwrap_or(stretch);
        if seen_missing.raw() > end {
            return;
        }
        let missing = if seen_missing.raw() >= hva.raw() {
            seen_missing
        } else {
            let present = self.look(index, hva, bytes, done);
            if present == bytes {
                return;
            }
            hva.checked_add(present).unwrap_or(hva)
        };
        if self.options.huge_pages {
            self.advised[index].get_or_init(|| prefer_huge_pages(piece));
        }
        let left = end - missing.raw() + 1;
        done.calls += 1;
        match madvise::populate(missing, left, access(piece)) {
            Ok(()) => {
                done.bytes += left;
                let asked = self.pagemap.as_ref().map(|pagemap| pagemap.kinds(missing, left, access(piece)));
                if let Some(Ok(mapped)) = asked {
                    done.count(mapped);
                }
            }
            Err(Errno::EINVAL) if self.is_device(index) => {}
            Err(errno) => done.left_to_the_map(left, errno),
        }
    }

    /// Whether piece `index` is device memory. Looked up once, on the first EINVAL.
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

fn access(piece: &HostRange) -> Access {
    if piece.writable { Access::Write } else { Access::Read }
}

/// Requests huge pages if the piece can contain one. If the kernel cannot provide them, that is not an error.
fn prefer_huge_pages(piece: &HostRange) {
    if piece.writable && piece.bytes >= HUGE_PAGE {
        // Ignored, because only the pages show the effect: a kernel can accept the advice and never follow it.
        let _ = madvise::prefer_huge_pages(piece.hva, piece.bytes);
    }
}

/// For each piece, the number of cells of `size` in the pieces before it; and the total number.
fn numbered(pieces: &[HostRange], size: u64) -> (Vec<u64>, u64) {
    let mut total = 0;
    let first = pieces.iter().map(|piece| {
        let before = total;
        total += cells_of(piece, size);
        before
    });
    let first = first.collect();
    (first, total)
}

/// Groups adjacent pieces that have chunks and are on the same node.
fn grouped(first: &[u64], chunks: u64, node: impl Fn(usize) -> Option<usize>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, &begin) in first.iter().enumerate() {
        let end = first.get(index + 1).copied().unwrap_or(chunks);
        if begin == end {
            continue;
        }
        let node = node(index);
        match groups.last_mut() {
            Some(last) if last.node == node => last.end = end,
            _ => groups.push(Group { node, next: AtomicU64::new(begin), end }),
        }
    }
    groups
}

/// The piece that contains cell `number`: the last that starts at or before it. Empty pieces start where the next one
/// does.
fn holder(first: &[u64], number: u64) -> usize {
    first.partition_point(|&first| first <= number) - 1
}

/// The last byte of a piece, unless that is empty. A piece that extends past the end of the address space ends there;
/// no such memory exists, and the kernel returns an error.
fn last_byte(piece: &HostRange) -> Option<u64> {
    piece.bytes.checked_sub(1).map(|more| piece.hva.raw().saturating_add(more))
}

/// The number of cells of a piece: the parts into which multiples of `size` cut it.
fn cells_of(piece: &HostRange, size: u64) -> u64 {
    last_byte(piece).map_or(0, |last| last / size - piece.hva.raw() / size + 1)
}

/// Cell `number` of a piece: the part between two adjacent multiples of `size`.
fn cell_of(piece: &HostRange, size: u64, number: u64) -> (HostVa, u64) {
    let start = piece.hva.raw();
    let floor = (start / size + number) * size;
    let begin = floor.max(start);
    let end = floor.saturating_add(size - 1).min(last_byte(piece).unwrap_or(start));
    (HostVa::from_raw(begin), end - begin + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::populate::CHUNK_BYTES;

    const PMD: u64 = HUGE_PAGE;

    fn piece(start: u64, bytes: u64) -> HostRange {
        HostRange { hva: HostVa::from_raw(start), bytes, writable: true }
    }

    /// Every cell of `piece`, as (start, bytes).
    fn cells(piece: &HostRange, size: u64) -> Vec<(u64, u64)> {
        (0..cells_of(piece, size))
            .map(|number| cell_of(piece, size, number))
            .map(|(hva, bytes)| (hva.raw(), bytes))
            .collect()
    }

    #[test]
    fn cells_begin_and_end_on_multiples() {
        assert_eq!((CHUNK_BYTES % PMD, SCAN_BYTES % CHUNK_BYTES), (0, 0));
        assert_eq!(cells(&piece(0, 0), PMD), []);
        assert_eq!(cells(&piece(PMD - 0x1000, 0x1000), PMD), [(PMD - 0x1000, 0x1000)]);
        assert_eq!(
            cells(&piece(PMD - 0x1000, PMD + 0x3000), PMD),
            [(PMD - 0x1000, 0x1000), (PMD, PMD), (2 * PMD, 0x2000)]
        );
        assert_eq!(cells(&piece(PMD, 2 * PMD), PMD), [(PMD, PMD), (2 * PMD, PMD)]);
        // The very end of the address space, and beyond.
        let top = u64::MAX - PMD + 1;
        assert_eq!(cells(&piece(top - 0x1000, PMD + 0x1000), PMD), [(top - 0x1000, 0x1000), (top, PMD)]);
        assert_eq!(cells(&piece(u64::MAX - 0xfff, u64::MAX), PMD), [(u64::MAX - 0xfff, 0x1000)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cells_cover_every_byte_once(
            sizes in prop::collection::vec((0u64..1 << 32, 0u64..64), 0..20),
            size_pmds in 1u64..40,
        ) {
            let size = size_pmds * PMD;
            let pieces: Vec<HostRange> =
                sizes.iter().map(|&(start, pages)| piece(start & !0xfff, pages * 0x71000)).collect();
            let (first, all) = numbered(&pieces, size);
            let mut total = 0;
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(first[index], total);
                let mut next = piece.hva.raw();
                for (start, bytes) in cells(piece, size) {
                    prop_assert_eq!(holder(&first, total), index);
                    prop_assert_eq!(start, next);
                    prop_assert!(bytes > 0 && start / size == (start + bytes - 1) / size);
                    next = start + bytes;
                    total += 1;
                }
                prop_assert_eq!(next, piece.hva.raw() + piece.bytes);
            }
            prop_assert_eq!(all, total);
        }
    }

    impl Queue<'_> {
        /// Takes the first chunk, which is in progress until the result is dropped.
        pub fn take_for_test(&self) -> impl Drop {
            let number = self.take(&mut 0).expect("a chunk that no thread has taken");
            Finished { queue: self, index: holder(&self.first_chunk, number) }
        }

        /// Whether no chunk is left to take.
        pub fn is_closed(&self) -> bool {
            self.groups.iter().all(|group| group.next.load(Ordering::Acquire) >= group.end)
        }
    }

    #[test]
    fn what_is_cancelled_is_not_begun() {
        let pieces = [piece(0, 4 * PMD), piece(0, 0)];
        let queue =
            Queue::new(&pieces, PopulateOptions { threads: 1, cpus: None, huge_pages: false, chunk: PMD });
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
        let options = PopulateOptions { threads: 1, cpus: None, huge_pages: false, chunk: PMD };
        for cancelled in [false, true] {
            let queue = Queue::new(&pieces, options);
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
        let options = PopulateOptions { threads: 1, cpus: None, huge_pages: false, chunk: PMD };
        let (first, chunks) = numbered(&pieces, PMD);
        // The node of each piece; that of the empty piece is never requested.
        let on = [Some(0), Some(9), Some(0), None, Some(1)];
        let queue =
            Queue { groups: grouped(&first, chunks, |index| on[index]), ..Queue::new(&pieces, options) };
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
