//! Finds out, before any thread is started, whether something is missing.

use super::{HostRange, MIN_PARALLEL_BYTES, PopulateOptions, Report, access};
use crate::addr::{HUGE_PAGE, HostVa};
use crate::populate::layout::last_byte;
use crate::sys::pagemap::{PageRegion, Pagemap};

/// Bytes that one call scans: large enough to make scanning present memory cheap, small enough that little is scanned
/// a second time where something is missing.
const STRETCH: u64 = 256 << 20;

/// Bytes of base pages after which other threads help to scan: those take 0.7 ms, ten times as long as starting a
/// thread.
const ENOUGH_SMALL: u64 = 1 << 30;

/// What the calling thread has found out by itself.
pub(super) struct Survey {
    /// The pieces without what is known to be present: some are shortened from the front, and some are empty.
    pub rest: Vec<HostRange>,
    /// Bytes that are missing, or were not looked at.
    pub missing: u64,
    /// What is present in front of the rest.
    pub done: Report,
}

impl Survey {
    /// Looks at `pieces` in order until enough is missing for all threads. Memory that cannot be scanned counts as
    /// missing: faulting in present memory is slower, but harmless.
    pub fn of(pieces: &[HostRange], options: PopulateOptions, pagemap: Option<&Pagemap>) -> Self {
        let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
        let mut survey = Self { rest: pieces.to_vec(), missing: 0, done: Report::default() };
        let Some(pagemap) = pagemap else { return Self { missing: total, ..survey } };
        let enough = (options.threads as u64).saturating_mul(HUGE_PAGE).max(MIN_PARALLEL_BYTES);
        let mut looked_at = 0u64;
        let mut found = [PageRegion::default(); 64];
        for (index, piece) in pieces.iter().enumerate() {
            let mut next = Some(piece.hva.raw());
            while let (Some(start), Some(last)) = (next, last_byte(piece)) {
                let small = survey.done.small_anonymous_bytes + survey.done.small_file_bytes;
                let unknown = looked_at - survey.done.present_bytes;
                if survey.missing >= enough || small.saturating_add(unknown) >= ENOUGH_SMALL {
                    survey.missing = survey.missing.saturating_add(total.saturating_sub(looked_at));
                    return survey;
                }
                let end = (start - start % STRETCH).saturating_add(STRETCH - 1).min(last);
                let (hva, bytes) = (HostVa::from_raw(start), end - start + 1);
                looked_at = looked_at.saturating_add(bytes);
                let count = pagemap.missing(hva, bytes, access(piece), &mut found);
                match count.map(|count| &found[..count]) {
                    Ok([]) if survey.missing == 0 => survey.present(index, hva, bytes, pagemap),
                    Ok(regions) => {
                        survey.missing += regions.iter().map(|region| region.end - region.start).sum::<u64>()
                    }
                    Err(_) => survey.missing = survey.missing.saturating_add(bytes),
                }
                next = (end < last).then(|| end + 1);
            }
        }
        survey
    }

    /// The next `bytes` bytes of piece `index`, at `hva`, are present.
    fn present(&mut self, index: usize, hva: HostVa, bytes: u64, pagemap: &Pagemap) {
        let rest = &mut self.rest[index];
        self.done.present_bytes += bytes;
        if let Ok(mapped) = pagemap.kinds(hva, bytes, access(rest)) {
            self.done.count(mapped);
        }
        *rest = HostRange {
            hva: hva.checked_add(bytes).unwrap_or(hva),
            bytes: rest.bytes.saturating_sub(bytes),
            ..*rest
        };
    }
}
