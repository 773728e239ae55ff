//! Pages that devices have written to: bits, copied between bitmaps that begin at different pages.

use std::collections::BTreeMap;

use crate::addr::IovaRange;
use crate::error::{Errno, KernelResult};

/// Bits per word.
const BITS: u64 = u64::BITS as u64;

/// The number of words for the bits of `range`, with one bit per page of `page` bytes.
pub fn words_for(range: IovaRange, page: u64) -> u64 {
    (range.length() / page).div_ceil(BITS)
}

/// A bitmap of zeros for `range`. ENOMEM if it cannot be allocated: its size is the caller's.
pub fn bitmap_for(range: IovaRange, page: u64) -> KernelResult<Vec<u64>> {
    let words = usize::try_from(words_for(range, page)).map_err(|_| Errno::ENOMEM)?;
    let mut bitmap = Vec::new();
    bitmap.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
    bitmap.resize(words, 0);
    Ok(bitmap)
}

/// Pages that were written to and not reported yet, all of one size.
#[derive(Clone, Debug)]
pub struct DirtyPages {
    page: u64,
    /// Words by the number of their first page, a multiple of 64. No word is zero.
    words: BTreeMap<u64, u64>,
}

impl DirtyPages {
    /// An empty set. `page` is a power of two.
    pub fn none(page: u64) -> Self {
        Self { page, words: BTreeMap::new() }
    }

    /// Bytes of one page.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Adds every page of `range`.
    pub fn add_all(&mut self, range: IovaRange) {
        let (first, last) = self.pages(range);
        for start in (first & !(BITS - 1)..=last).step_by(BITS as usize) {
            let (shifted, mask) = clip(start, u64::MAX, first, last);
            self.or(shifted, mask);
        }
    }

    /// Adds the pages of `bitmap`, in which the first bit is the first page of `range`.
    pub fn add(&mut self, range: IovaRange, bitmap: &[u64]) {
        let (first, last) = self.pages(range);
        for (start, word) in (first..=last).step_by(BITS as usize).zip(bitmap) {
            let (start, word) = clip(start, *word, first, last);
            self.or(start, word);
        }
    }

    /// Moves the pages inside `part` to `bitmap`, in which the first bit is the first page of `whole`; bits that are
    /// already set stay set. `part` lies in `whole`, and `bitmap` has enough words for `whole`.
    pub fn take(&mut self, part: IovaRange, whole: IovaRange, bitmap: &mut [u64]) {
        let (first, _) = self.pages(whole);
        self.remove(part, |start, word| {
            let offset = start - first;
            let (index, shift) = ((offset / BITS) as usize, offset % BITS);
            bitmap[index] |= word << shift;
            if shift > 0 && word >> (BITS - shift) != 0 {
                bitmap[index + 1] |= word >> (BITS - shift);
            }
        });
    }

    /// Drops the pages inside `range`.
    pub fn forget(&mut self, range: IovaRange) {
        self.remove(range, |_, _| ());
    }

    fn remove(&mut self, range: IovaRange, mut each: impl FnMut(u64, u64)) {
        let (first, last) = self.pages(range);
        let mut empty = Vec::new();
        for (start, word) in self.words.range_mut(first & !(BITS - 1)..=last) {
            let (shifted, inside) = clip(*start, *word, first, last);
            *word &= !(inside << (shifted - start));
            if *word == 0 {
                empty.push(*start);
            }
            if inside != 0 {
                each(shifted, inside);
            }
        }
        for start in empty {
            self.words.remove(&start);
        }
    }

    /// The numbers of the first and the last page of `range`.
    fn pages(&self, range: IovaRange) -> (u64, u64) {
        (range.start() / self.page, range.last() / self.page)
    }

    /// Sets the bits of `word`, in which the first bit is page `start`.
    fn or(&mut self, start: u64, word: u64) {
        let (base, shift) = (start & !(BITS - 1), start % BITS);
        let mut set = |base, bits| {
            if bits != 0 {
                *self.words.entry(base).or_default() |= bits;
            }
        };
        set(base, word << shift);
        if shift > 0 {
            set(base + BITS, word >> (BITS - shift));
        }
    }
}

/// Cuts a word, in which the first bit is page `start`, to the pages from `first` to `last`. Returns the rest and the
/// page of its first bit.
fn clip(start: u64, word: u64, first: u64, last: u64) -> (u64, u64) {
    let before = first.saturating_sub(start);
    let (start, word) = (start + before, if before < BITS { word >> before } else { 0 });
    let room = last - start + 1;
    (start, if room < BITS { word & ((1 << room) - 1) } else { word })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::addr::Iova;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 400;

    fn range(first: u64, pages: u64) -> IovaRange {
        IovaRange::new(Iova(first * PAGE), pages * PAGE).unwrap()
    }

    fn bitmap(first: u64, pages: u64, set: &BTreeSet<u64>) -> Vec<u64> {
        let mut words = vec![0; words_for(range(first, pages), PAGE) as usize];
        for page in set.range(first..first + pages) {
            let bit = page - first;
            words[(bit / BITS) as usize] |= 1 << (bit % BITS);
        }
        words
    }

    #[derive(Clone, Debug)]
    enum Step {
        AddAll(u64, u64),
        Add(u64, u64, BTreeSet<u64>),
        Take(u64, u64),
        Forget(u64, u64),
    }

    fn span() -> impl Strategy<Value = (u64, u64)> {
        (0..PAGES).prop_flat_map(|first| (Just(first), 1..=PAGES - first))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            span().prop_map(|(first, pages)| Step::AddAll(first, pages)),
            (span(), prop::collection::btree_set(0..PAGES, 0..60))
                .prop_map(|((first, pages), set)| Step::Add(first, pages, set)),
            span().prop_map(|(first, pages)| Step::Take(first, pages)),
            span().prop_map(|(first, pages)| Step::Forget(first, pages)),
        ]
    }

    proptest! {
        #[test]
        fn every_bit_is_where_a_set_has_it(steps in prop::collection::vec(step(), 1..30)) {
            let mut dirty = DirtyPages::none(PAGE);
            let mut set = BTreeSet::new();
            for step in steps {
                match step {
                    Step::AddAll(first, pages) => {
                        dirty.add_all(range(first, pages));
                        set.extend(first..first + pages);
                    }
                    Step::Add(first, pages, written) => {
                        // Bits after the end of the range are ignored.
                        let mut words = bitmap(first, pages, &written);
                        if pages % BITS != 0 {
                            *words.last_mut().unwrap() |= u64::MAX << (pages % BITS);
                        }
                        dirty.add(range(first, pages), &words);
                        set.extend(written.range(first..first + pages));
                    }
                    Step::Take(first, pages) => {
                        let mut words = vec![0; words_for(range(first, pages), PAGE) as usize];
                        dirty.take(range(first, pages), range(first, pages), &mut words);
                        prop_assert_eq!(words, bitmap(first, pages, &set));
                        set.retain(|page| !(first..first + pages).contains(page));
                    }
                    Step::Forget(first, pages) => {
                        dirty.forget(range(first, pages));
                        set.retain(|page| !(first..first + pages).contains(page));
                    }
                }
            }
            prop_assert_eq!(dirty.is_empty(), set.is_empty());
            let mut words = vec![0; words_for(range(0, PAGES), PAGE) as usize];
            dirty.take(range(0, PAGES), range(0, PAGES), &mut words);
            prop_assert_eq!(words, bitmap(0, PAGES, &set));
            prop_assert!(dirty.is_empty());
        }
    }

    #[test]
    fn the_last_page_of_the_space_has_a_bit() {
        let mut dirty = DirtyPages::none(PAGE);
        let top = IovaRange::from_bounds(u64::MAX - (PAGE - 1), u64::MAX).unwrap();
        dirty.add_all(top);
        let mut words = [0];
        dirty.take(top, top, &mut words);
        assert_eq!(words, [1]);
        assert!(dirty.is_empty());
    }
}
