//! How the work is cut: chunks that threads take, none smaller than the page that backs the memory.

use std::ops::Range;

use super::HostRange;
use crate::addr::HostVa;

/// A piece, or pieces that follow each other in the middle of a page: two threads must not share it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub pieces: Range<usize>,
    pub start: u64,
    /// The last byte. A run that extends past the end of the address space ends there; no such memory exists, and the
    /// kernel returns an error.
    pub last: u64,
    /// Its chunks begin and end at multiples of this.
    pub unit: u64,
    pub node: Option<usize>,
    /// The number of its first chunk.
    first: u64,
}

/// All runs, in the order of the pieces, and their chunks, numbered in that order.
#[derive(Debug)]
pub(super) struct Layout {
    runs: Vec<Run>,
    chunks: u64,
}

/// The part of a run between two multiples of its unit: what a thread takes at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    /// The pieces that have bytes in it.
    pub pieces: Range<usize>,
    pub start: u64,
    /// The last byte.
    pub last: u64,
}

impl Layout {
    /// `of` returns the unit and the node of the piece with an index. Pieces that share a page of more than `shared`
    /// bytes are one run.
    pub fn new(pieces: &[HostRange], shared: u64, of: impl Fn(usize) -> (u64, Option<usize>)) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let Some(last) = last_byte(piece) else { continue };
            let start = piece.hva.raw();
            let (unit, node) = of(index);
            match runs.last_mut() {
                Some(run)
                    if unit > shared
                        && start % unit != 0
                        && run.pieces.end == index
                        && run.last.checked_add(1) == Some(start)
                        && (run.unit, run.node) == (unit, node) =>
                {
                    (run.last, run.pieces.end) = (last, index + 1);
                }
                _ => runs.push(Run { pieces: index..index + 1, start, last, unit, node, first: 0 }),
            }
        }
        let mut chunks = 0;
        for run in &mut runs {
            run.first = chunks;
            chunks += run.chunk_of(run.last) + 1;
        }
        Self { runs, chunks }
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The numbers of the chunks of a run.
    pub fn chunks_of_run(&self, run: &Run) -> Range<u64> {
        run.first..run.first + run.chunk_of(run.last) + 1
    }

    /// The run that contains chunk `number`.
    pub fn run_of(&self, number: u64) -> &Run {
        &self.runs[self.runs.partition_point(|run| run.first <= number) - 1]
    }

    /// Chunk `number`, which must exist. `pieces` are the ones that this was made of.
    pub fn chunk(&self, pieces: &[HostRange], number: u64) -> Chunk {
        let run = self.run_of(number);
        let floor = (run.start / run.unit + (number - run.first)) * run.unit;
        let start = floor.max(run.start);
        let last = floor.saturating_add(run.unit - 1).min(run.last);
        let inside = &pieces[run.pieces.clone()];
        let begin = inside.partition_point(|piece| last_byte(piece) < Some(start));
        let end = inside.partition_point(|piece| piece.hva.raw() <= last);
        let pieces = run.pieces.start + begin..run.pieces.start + end;
        Chunk { pieces, start, last }
    }

    /// The numbers of the chunks that contain bytes of the piece with this index.
    pub fn chunks_of(&self, pieces: &[HostRange], index: usize) -> Range<u64> {
        let Some(last) = last_byte(&pieces[index]) else { return 0..0 };
        let run = &self.runs[self.runs.partition_point(|run| run.pieces.start <= index) - 1];
        run.first + run.chunk_of(pieces[index].hva.raw())..run.first + run.chunk_of(last) + 1
    }
}

impl Chunk {
    /// The bytes of a piece that are in this chunk: one of `pieces`.
    pub fn part_of(&self, piece: &HostRange) -> (HostVa, u64) {
        let start = self.start.max(piece.hva.raw());
        let last = last_byte(piece).map_or(self.last, |last| last.min(self.last));
        (HostVa::from_raw(start), last - start + 1)
    }
}

impl Run {
    /// The number, within the run, of the chunk that contains an address of it.
    fn chunk_of(&self, address: u64) -> u64 {
        address / self.unit - self.start / self.unit
    }
}

/// The last byte of a piece, unless that is empty.
pub(super) fn last_byte(piece: &HostRange) -> Option<u64> {
    piece.bytes.checked_sub(1).map(|more| piece.hva.raw().saturating_add(more))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::HUGE_PAGE;

    const PMD: u64 = HUGE_PAGE;
    const GIB: u64 = 1 << 30;

    fn piece(start: u64, bytes: u64) -> HostRange {
        HostRange { hva: HostVa::from_raw(start), bytes, writable: true }
    }

    fn layout(pieces: &[HostRange], unit: u64) -> Layout {
        Layout::new(pieces, PMD, |_| (unit, None))
    }

    /// Every chunk, as (start, bytes).
    fn chunks(pieces: &[HostRange], unit: u64) -> Vec<(u64, u64)> {
        let layout = layout(pieces, unit);
        let chunks = (0..layout.chunks()).map(|number| layout.chunk(pieces, number));
        chunks.map(|chunk| (chunk.start, chunk.last - chunk.start + 1)).collect()
    }

    #[test]
    fn chunks_begin_and_end_on_multiples() {
        assert_eq!(chunks(&[piece(0, 0)], PMD), []);
        assert_eq!(chunks(&[piece(PMD - 0x1000, 0x1000)], PMD), [(PMD - 0x1000, 0x1000)]);
        assert_eq!(
            chunks(&[piece(PMD - 0x1000, PMD + 0x3000)], PMD),
            [(PMD - 0x1000, 0x1000), (PMD, PMD), (2 * PMD, 0x2000)]
        );
        assert_eq!(chunks(&[piece(PMD, 2 * PMD)], PMD), [(PMD, PMD), (2 * PMD, PMD)]);
        // The very end of the address space, and beyond.
        let top = u64::MAX - PMD + 1;
        assert_eq!(chunks(&[piece(top - 0x1000, PMD + 0x1000)], PMD), [(top - 0x1000, 0x1000), (top, PMD)]);
        assert_eq!(chunks(&[piece(u64::MAX - 0xfff, u64::MAX)], PMD), [(u64::MAX - 0xfff, 0x1000)]);
    }

    #[test]
    fn no_page_is_in_two_chunks_however_the_entries_cut_it() {
        // A PC's RAM as entries: cut at 1 MiB, then at every GiB of the device's address, which is not the host's.
        let odd = GIB - 3 * PMD;
        let pieces = [piece(GIB, 1 << 20), piece(GIB + (1 << 20), odd), piece(GIB + (1 << 20) + odd, GIB)];
        let layout = layout(&pieces, GIB);
        assert_eq!(layout.chunks(), 2);
        assert_eq!(layout.chunk(&pieces, 0), Chunk { pieces: 0..3, start: GIB, last: 2 * GIB - 1 });
        let second = Chunk { pieces: 2..3, start: 2 * GIB, last: pieces[2].hva.raw() + GIB - 1 };
        assert_eq!(layout.chunk(&pieces, 1), second);
        assert_eq!([0, 1, 2].map(|index| layout.chunks_of(&pieces, index)), [0..1, 0..1, 0..2]);
    }

    #[test]
    fn a_run_ends_where_the_memory_does_or_the_page_or_the_node_changes() {
        let pieces = [0, 1, 2, 3, 4, 5, 7].map(|number| piece(number * PMD, PMD));
        let on = Some(1);
        let of = [(PMD, None), (PMD, None), (GIB, None), (GIB, None), (GIB, on), (GIB, on), (GIB, on)];
        let layout = Layout::new(&pieces, PMD, |index| of[index]);
        let runs: Vec<_> = layout.runs().iter().map(|run| run.pieces.clone()).collect();
        assert_eq!(runs, [0..1, 1..2, 2..4, 4..6, 6..7]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn chunks_cover_every_byte_once(
            sizes in prop::collection::vec((0u64..1 << 32, 0u64..64, any::<bool>()), 0..20),
            unit_pmds in 1u64..40,
        ) {
            let unit = unit_pmds * PMD;
            let mut end = 0;
            let pieces: Vec<HostRange> = sizes.iter().map(|&(start, pages, follows)| {
                let piece = piece(if follows { end } else { start & !0xfff }, pages * 0x71000);
                end = piece.hva.raw() + piece.bytes;
                piece
            }).collect();
            let layout = layout(&pieces, unit);
            let mut covered = vec![0; pieces.len()];
            let mut found = vec![Vec::new(); pieces.len()];
            for number in 0..layout.chunks() {
                let chunk = layout.chunk(&pieces, number);
                prop_assert!(chunk.start <= chunk.last && chunk.start / unit == chunk.last / unit);
                prop_assert!(!chunk.pieces.is_empty());
                for index in chunk.pieces.clone() {
                    covered[index] += chunk.part_of(&pieces[index]).1;
                    found[index].push(number);
                }
            }
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(covered[index], piece.bytes);
                prop_assert_eq!(&found[index], &layout.chunks_of(&pieces, index).collect::<Vec<_>>());
            }
        }
    }
}
