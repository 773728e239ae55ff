//! Contiguous runs in an array of pages.

use crate::addr::{HostVa, Iova};

/// Pages that are adjacent in IOVA space and in host memory, so that one entry can map them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    /// The IOVA of the first page.
    pub iova: Iova,
    /// The host address of the first page.
    pub hva: HostVa,
    /// The number of pages, of the size passed to [`runs`].
    pub pages: u64,
}

/// Groups pages of `page` bytes, in order: pages {1, 5, 6, 7, 9} become the runs {1}, {5, 6, 7}, {9}.
///
/// A page that comes before its neighbour in memory starts a new run: sort the pages to get longer runs.
pub fn runs(pages: impl IntoIterator<Item = (Iova, HostVa)>, page: u64) -> impl Iterator<Item = PageRun> {
    let mut pages = pages.into_iter().peekable();
    std::iter::from_fn(move || {
        let (iova, hva) = pages.next()?;
        let mut run = PageRun { iova, hva, pages: 1 };
        let (mut next_iova, mut next_hva) = (iova.0.checked_add(page), hva.checked_add(page));
        while pages.next_if(|(iova, hva)| (Some(iova.0), Some(*hva)) == (next_iova, next_hva)).is_some() {
            run.pages += 1;
            next_iova = next_iova.and_then(|iova| iova.checked_add(page));
            next_hva = next_hva.and_then(|hva| hva.checked_add(page));
        }
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn grouped(pages: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let addresses = pages.iter().map(|&(iova, hva)| (Iova(iova * PAGE), HostVa::from_raw(hva * PAGE)));
        runs(addresses, PAGE).map(|run| (run.iova.0 / PAGE, run.hva.raw() / PAGE, run.pages)).collect()
    }

    #[test]
    fn neighbours_for_device_and_host_are_one_run() {
        let same = |pages: &[u64]| grouped(&pages.iter().map(|&page| (page, page + 100)).collect::<Vec<_>>());
        assert_eq!(same(&[1, 5, 6, 7, 9]), [(1, 101, 1), (5, 105, 3), (9, 109, 1)]);
        assert_eq!(same(&[]), []);
        assert_eq!(same(&[3, 2, 1]), [(3, 103, 1), (2, 102, 1), (1, 101, 1)], "downwards");
        assert_eq!(same(&[4, 4]), [(4, 104, 1), (4, 104, 1)], "the same page twice");
        assert_eq!(grouped(&[(1, 1), (2, 3)]), [(1, 1, 1), (2, 3, 1)], "apart in the host's memory");
        assert_eq!(grouped(&[(1, 1), (3, 2)]), [(1, 1, 1), (3, 2, 1)], "apart for the device");
    }

    #[test]
    fn the_last_page_of_the_address_space_has_no_neighbour() {
        let last = u64::MAX / PAGE;
        assert_eq!(grouped(&[(last - 1, 0), (last, 1), (0, 2)]), [(last - 1, 0, 2), (0, 2, 1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn runs_are_the_pages_again_and_none_could_be_longer(
            pages in prop::collection::vec((0u64..6, 0u64..6), 0..40)
        ) {
            let runs = grouped(&pages);
            let again: Vec<(u64, u64)> = runs
                .iter()
                .flat_map(|&(iova, hva, pages)| (0..pages).map(move |page| (iova + page, hva + page)))
                .collect();
            prop_assert_eq!(again, pages);
            for pair in runs.windows(2) {
                let ((iova, hva, pages), next) = (pair[0], pair[1]);
                prop_assert!((next.0, next.1) != (iova + pages, hva + pages));
            }
        }
    }
}
