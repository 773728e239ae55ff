//! Faulting memory in on many threads before it is mapped.
//!
//! A type1 container pins on one thread, under one lock, and most of that time goes into finding and clearing pages that
//! were never touched. Made present beforehand, on every CPU at once, they are only pinned. This is an optimisation and
//! nothing else: whatever goes wrong here is counted and left to the map call, which does the same work slower or knows
//! the right error.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use crate::addr::HostVa;
use crate::error::Errno;
use crate::sys::madvise::{self, Access};
use crate::sys::pagemap::Pagemap;
use crate::sys::{thread, vma};

/// Bytes faulted in by one call. A multiple of every PMD, and chunks begin and end on multiples of it, so no huge page
/// is ever shared by two threads; small enough that the last chunk does not keep one thread busy while the others wait.
pub const CHUNK: u64 = 64 << 20;

/// The smallest huge page.
const HUGE: u64 = 2 << 20;

/// Below so many bytes a thread costs more than it brings.
const ALONE_BELOW: u64 = 4 << 20;

/// A contiguous piece of host memory that is about to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its first byte; page aligned.
    pub hva: HostVa,
    /// Its length in bytes; a multiple of the page.
    pub bytes: u64,
    /// Whether the device may write: then pages are made writable now and not at the pin.
    pub writable: bool,
}

/// How to fault in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct How {
    /// Most threads, the calling one included.
    pub threads: usize,
    /// Whether to ask for huge pages first, where there is something to fault in.
    pub huge_pages: bool,
    /// Bytes per call and per turn of a thread; a power of two of at least a page. [`CHUNK`] unless measuring.
    pub chunk: u64,
}

/// What [`populate`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Calls that fault in, whatever they answered.
    pub calls: u64,
    /// Bytes made present by them.
    pub bytes: u64,
    /// Bytes that were present before, and passed over.
    pub present_bytes: u64,
    /// Bytes that are mapped by huge pages now.
    pub huge_bytes: u64,
    /// Bytes of anonymous memory that are mapped by base pages now.
    pub small_anonymous_bytes: u64,
    /// Bytes of files (shmem and memfd are files) that are mapped by base pages now.
    pub small_file_bytes: u64,
    /// Bytes in chunks that were left to the map call, for one of the five reasons below.
    pub skipped_bytes: u64,
    /// Chunks that answered EINVAL: a kernel before 5.14, a special mapping, or one without the permission.
    pub einval: u64,
    /// Chunks that answered EFAULT: an access would raise SIGBUS, as behind the end of a file.
    pub efault: u64,
    /// Chunks that answered ENOMEM: not mapped, or no memory left.
    pub enomem: u64,
    /// Chunks that answered EHWPOISON: a broken page.
    pub ehwpoison: u64,
    /// Chunks that answered anything else.
    pub other: u64,
    /// Threads that worked, the calling one included.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_fallbacks: u64,
    /// Indices, ascending, of the pieces that turned out to be device memory. Nothing is wrong with them: of the numbers
    /// above they are in `calls` only.
    pub device_pieces: Vec<usize>,
    /// Wall time.
    pub duration: Duration,
}

impl Report {
    fn left_to_the_map(&mut self, bytes: u64, errno: Errno) {
        self.skipped_bytes += bytes;
        *match errno {
            Errno::EINVAL => &mut self.einval,
            Errno::EFAULT => &mut self.efault,
            Errno::ENOMEM => &mut self.enomem,
            Errno::EHWPOISON => &mut self.ehwpoison,
            _ => &mut self.other,
        } += 1;
    }

    /// Adds what one thread did.
    fn add(&mut self, done: &Self) {
        self.calls += done.calls;
        self.bytes += done.bytes;
        self.present_bytes += done.present_bytes;
        self.huge_bytes += done.huge_bytes;
        self.small_anonymous_bytes += done.small_anonymous_bytes;
        self.small_file_bytes += done.small_file_bytes;
        self.skipped_bytes += done.skipped_bytes;
        self.einval += done.einval;
        self.efault += done.efault;
        self.enomem += done.enomem;
        self.ehwpoison += done.ehwpoison;
        self.other += done.other;
        self.threads += 1;
    }
}

/// How many threads may work at once: one per CPU that the calling thread may run on (affinity mask) and is given time
/// on (cgroup quota), at most `most` of them unless that is 0.
pub fn allowed_threads(most: usize) -> usize {
    let allowed = available_parallelism().map_or(1, NonZeroUsize::get);
    if most == 0 { allowed } else { most.min(allowed) }
}

/// Makes `pieces` present on up to `how.threads` threads, the calling one included, as far as that is possible.
///
/// No other thread is left when this returns.
pub fn populate(pieces: &[Piece], how: How) -> Report {
    let started = Instant::now();
    let queue = Queue::new(pieces, how);
    if queue.chunks == 0 {
        return Report::default();
    }
    let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
    let useful = if total < ALONE_BELOW { 1 } else { usize::try_from(queue.chunks).unwrap_or(usize::MAX) };
    let report = Mutex::new(Report::default());
    let refused = thread::run(how.threads.min(useful).saturating_sub(1), || {
        let done = queue.work();
        report.lock().unwrap_or_else(PoisonError::into_inner).add(&done);
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.thread_fallbacks = refused as u64;
    report.device_pieces = queue.device_pieces();
    report.duration = started.elapsed();
    report
}

/// The work, cut into chunks that threads take one after the other: how long one takes is not known beforehand (what is
/// present already costs nothing, huge pages cost less), so none is dealt out in advance.
struct Queue<'a> {
    pieces: &'a [Piece],
    how: How,
    /// For each piece, how many chunks come before its first.
    first: Vec<u64>,
    /// For each piece, whether it is device memory, once that has been asked.
    device: Vec<OnceLock<bool>>,
    /// For each piece, whether huge pages were asked for: before its first fault, and not at all if it has none.
    advised: Vec<OnceLock<()>>,
    /// To see what is there already.
    pagemap: Option<Pagemap>,
    chunks: u64,
    next: AtomicU64,
}

impl<'a> Queue<'a> {
    fn new(pieces: &'a [Piece], how: How) -> Self {
        let mut chunks = 0;
        let mut first = Vec::with_capacity(pieces.len());
        for piece in pieces {
            first.push(chunks);
            chunks += chunks_of(piece, how.chunk);
        }
        let device = pieces.iter().map(|_| OnceLock::new()).collect();
        let advised = pieces.iter().map(|_| OnceLock::new()).collect();
        let pagemap = Pagemap::open();
        Self { pieces, how, first, device, advised, pagemap, chunks, next: AtomicU64::new(0) }
    }

    /// Takes chunks until there are none left.
    fn work(&self) -> Report {
        let mut done = Report::default();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.chunks {
                return done;
            }
            // The last piece that starts at or before this chunk; empty pieces start where their successor does.
            let index = self.first.partition_point(|&first| first <= number) - 1;
            let piece = &self.pieces[index];
            // Chunks of a piece that is known to be device memory would all be answered alike.
            if self.device[index].get() == Some(&true) {
                continue;
            }
            let chunk = chunk_of(piece, self.how.chunk, number - self.first[index]);
            self.fault_in(index, chunk, &mut done);
        }
    }

    /// Makes one chunk of piece `index` present, from its first missing byte on.
    fn fault_in(&self, index: usize, (hva, bytes): (HostVa, u64), done: &mut Report) {
        let piece = &self.pieces[index];
        let access = if piece.writable { Access::Write } else { Access::Read };
        let present = self.look(hva, bytes, access, done);
        done.present_bytes += present;
        let Some(missing) = hva.checked_add(present).filter(|_| present < bytes) else { return };
        if self.how.huge_pages {
            self.advised[index].get_or_init(|| prefer_huge_pages(piece));
        }
        let left = bytes - present;
        done.calls += 1;
        match madvise::populate(missing, left, access) {
            Ok(()) => done.bytes += left,
            Err(Errno::EINVAL) if self.is_device(index) => return,
            Err(errno) => done.left_to_the_map(left, errno),
        }
        self.look(missing, left, access, done);
    }

    /// Counts how the pages at `hva` are mapped, up to the first that is missing; answers how many bytes those are. What
    /// cannot be looked at is taken for missing: faulting in what is there is slower and does no harm.
    fn look(&self, hva: HostVa, bytes: u64, access: Access, done: &mut Report) -> u64 {
        let Some(Ok(mapped)) = self.pagemap.as_ref().map(|pagemap| pagemap.present(hva, bytes, access))
        else {
            return 0;
        };
        done.huge_bytes += mapped.huge;
        done.small_anonymous_bytes += mapped.small_anonymous;
        done.small_file_bytes += mapped.small_file;
        mapped.bytes()
    }

    /// Whether piece `index` is device memory: looked up once, on the first EINVAL.
    fn is_device(&self, index: usize) -> bool {
        let piece = &self.pieces[index];
        // Where the flags cannot be read nothing is known, and unknown memory is the map call's to judge.
        *self.device[index].get_or_init(|| vma::is_device(piece.hva, piece.bytes).unwrap_or(false))
    }

    fn device_pieces(&self) -> Vec<usize> {
        let known = self.device.iter().enumerate();
        known.filter(|(_, device)| device.get() == Some(&true)).map(|(index, _)| index).collect()
    }
}

/// Asks for huge pages, if the piece could hold one. Whoever cannot give them says so and is left alone.
fn prefer_huge_pages(piece: &Piece) {
    if piece.writable && piece.bytes >= HUGE {
        // What came of it is seen in the pages, not in the answer: a host can accept the advice and never follow it.
        let _ = madvise::prefer_huge_pages(piece.hva, piece.bytes);
    }
}

/// The last byte of a piece that is not empty. A piece that runs past the end of the address space ends there: no such
/// memory exists and the kernel will say so.
fn last_byte(piece: &Piece) -> Option<u64> {
    piece.bytes.checked_sub(1).map(|more| piece.hva.raw().saturating_add(more))
}

/// How many multiples of `chunk` a piece has bytes between.
fn chunks_of(piece: &Piece, chunk: u64) -> u64 {
    last_byte(piece).map_or(0, |last| last / chunk - piece.hva.raw() / chunk + 1)
}

/// Chunk `number` of a piece: what lies between two neighbouring multiples of `chunk`.
fn chunk_of(piece: &Piece, chunk: u64, number: u64) -> (HostVa, u64) {
    let start = piece.hva.raw();
    let floor = (start / chunk + number) * chunk;
    let begin = floor.max(start);
    let end = floor.saturating_add(chunk - 1).min(last_byte(piece).unwrap_or(start));
    (HostVa::from_raw(begin), end - begin + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PMD: u64 = 2 << 20;

    fn piece(start: u64, bytes: u64) -> Piece {
        Piece { hva: HostVa::from_raw(start), bytes, writable: true }
    }

    fn in_chunks(pieces: &[Piece], threads: usize, chunk: u64) -> Report {
        populate(pieces, How { threads, huge_pages: false, chunk })
    }

    /// Every chunk of `piece`, as (start, bytes).
    fn chunks(piece: &Piece, chunk: u64) -> Vec<(u64, u64)> {
        (0..chunks_of(piece, chunk))
            .map(|number| chunk_of(piece, chunk, number))
            .map(|(hva, bytes)| (hva.raw(), bytes))
            .collect()
    }

    #[test]
    fn chunks_begin_and_end_on_multiples() {
        assert_eq!(CHUNK % PMD, 0);
        assert_eq!(chunks(&piece(0, 0), PMD), []);
        assert_eq!(chunks(&piece(PMD - 0x1000, 0x1000), PMD), [(PMD - 0x1000, 0x1000)]);
        assert_eq!(
            chunks(&piece(PMD - 0x1000, PMD + 0x3000), PMD),
            [(PMD - 0x1000, 0x1000), (PMD, PMD), (2 * PMD, 0x2000)]
        );
        assert_eq!(chunks(&piece(PMD, 2 * PMD), PMD), [(PMD, PMD), (2 * PMD, PMD)]);
        // The very end of the address space, and beyond.
        let top = u64::MAX - PMD + 1;
        assert_eq!(chunks(&piece(top - 0x1000, PMD + 0x1000), PMD), [(top - 0x1000, 0x1000), (top, PMD)]);
        assert_eq!(chunks(&piece(u64::MAX - 0xfff, u64::MAX), PMD), [(u64::MAX - 0xfff, 0x1000)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn chunks_cover_every_byte_once(
            sizes in prop::collection::vec((0u64..1 << 32, 0u64..64), 0..20),
            chunk_pmds in 1u64..40,
        ) {
            let chunk = chunk_pmds * PMD;
            let pieces: Vec<Piece> =
                sizes.iter().map(|&(start, pages)| piece(start & !0xfff, pages * 0x71000)).collect();
            let queue = Queue::new(&pieces, How { threads: 1, huge_pages: false, chunk });
            let mut total = 0;
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(queue.first[index], total);
                let mut next = piece.hva.raw();
                for (start, bytes) in chunks(piece, chunk) {
                    prop_assert_eq!(start, next);
                    prop_assert!(bytes > 0 && start / chunk == (start + bytes - 1) / chunk);
                    next = start + bytes;
                    total += 1;
                }
                prop_assert_eq!(next, piece.hva.raw() + piece.bytes);
            }
            prop_assert_eq!(queue.chunks, total);
        }
    }

    #[test]
    fn whatever_goes_wrong_is_counted_under_its_name() {
        // The first pages of the address space are never mapped (vm.mmap_min_addr), nor is its upper half.
        let report = in_chunks(&[piece(0, 0x1000), piece(1 << 63, 3 * PMD)], 1, PMD);
        assert_eq!((report.calls, report.bytes, report.enomem), (4, 0, 4));
        assert_eq!(report.skipped_bytes, 0x1000 + 3 * PMD);
        let mut report = Report::default();
        for errno in [libc::EINVAL, libc::EFAULT, libc::ENOMEM, libc::EHWPOISON, libc::EINTR, libc::EINTR] {
            report.left_to_the_map(0x1000, Errno(errno));
        }
        let counted = [report.einval, report.efault, report.enomem, report.ehwpoison, report.other];
        assert_eq!((counted, report.skipped_bytes), ([1, 1, 1, 1, 2], 0x6000));
    }

    #[test]
    fn of_device_memory_one_chunk_is_tried() {
        // The kernel maps its time data into every process as bare page frames, over several pages.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let vvar =
            maps.lines().find(|line| line.ends_with("[vvar]")).expect("a [vvar] mapping in this process");
        let (begin, end) = vvar.split(' ').next().unwrap().split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let piece = Piece { writable: false, ..piece(begin, end - begin) };
        assert!(chunks_of(&piece, 0x1000) > 1);
        let report = in_chunks(&[piece], 1, 0x1000);
        let expected = Report { calls: 1, threads: 1, device_pieces: vec![0], ..Report::default() };
        assert_eq!(Report { duration: Duration::ZERO, ..report }, expected);
    }

    #[test]
    fn threads_are_bounded_by_what_there_is_to_do() {
        let threads = |pieces: &[Piece], threads| in_chunks(pieces, threads, PMD).threads;
        assert_eq!(threads(&[], 8), 0);
        assert_eq!(threads(&[piece(0, 0), piece(PMD, 0)], 8), 0);
        assert_eq!(threads(&[piece(0, ALONE_BELOW - 0x1000)], 8), 1, "two chunks, but small");
        assert_eq!(threads(&[piece(0, ALONE_BELOW)], 8), 2, "two chunks");
        assert_eq!(threads(&[piece(0, 8 * PMD)], 3), 3);
        assert_eq!(threads(&[piece(0, 8 * PMD)], 0), 1, "the calling thread always works");
    }

    #[test]
    fn the_callers_number_of_threads_is_an_upper_bound() {
        let cpus = available_parallelism().unwrap().get();
        assert_eq!(allowed_threads(0), cpus);
        assert_eq!(allowed_threads(1), 1);
        assert_eq!(allowed_threads(cpus + 7), cpus);
    }
}
