//! What an engine counts, and what it says once.

use std::time::Duration;

use super::{Engine, State};
use crate::execute::Done;
use crate::log::Level;
use crate::populate::{self, Report};

impl Engine {
    pub(super) fn note_populated(&self, report: &Report) {
        let mut stats = self.stats_mut();
        stats.populate_ns += nanoseconds(report.duration);
        stats.populate_calls += report.calls;
        stats.populate_bytes += report.bytes;
        stats.populate_present += report.present_bytes;
        stats.populate_huge += report.huge_bytes;
        stats.populate_small += report.small_anonymous_bytes + report.small_file_bytes;
        stats.populate_skipped += report.skipped_bytes;
        stats.populate_einval += report.einval;
        stats.populate_efault += report.efault;
        stats.populate_enomem += report.enomem;
        stats.populate_ehwpoison += report.ehwpoison;
        stats.populate_other += report.other;
        stats.thread_fallbacks += report.thread_fallbacks;
        stats.threads_peak = stats.threads_peak.max(report.threads);
    }

    /// Says once what keeps the host from giving huge pages.
    pub(super) fn tell_of_small_pages(&self, state: &mut State, report: &Report) {
        if !self.huge_pages || state.told_of_small_pages {
            return;
        }
        if let Some(hint) = populate::hint(report) {
            state.told_of_small_pages = true;
            self.log.write(Level::Warn, format_args!("{hint}"));
        }
    }

    pub(super) fn note_done(&self, done: &Done) {
        let mut stats = self.stats_mut();
        stats.map_calls += done.map_calls;
        stats.map_bytes += done.map_bytes;
        stats.map_ns += nanoseconds(done.map_time);
        stats.unmap_calls += done.unmap_calls;
        stats.unmap_bytes += done.unmap_bytes;
        stats.unmap_ns += nanoseconds(done.unmap_time);
        stats.unmap_longest_ns = stats.unmap_longest_ns.max(nanoseconds(done.unmap_longest));
    }

    pub(super) fn note_state(&self, state: &State) {
        let totals = state.table.totals();
        let mut stats = self.stats_mut();
        stats.regions = state.wanted.len();
        stats.wanted_bytes = state.wanted.bytes();
        stats.entries = state.table.len();
        stats.mapped_bytes = totals.bytes;
        stats.congruent_2m_bytes = totals.congruent_2m;
        stats.congruent_1g_bytes = totals.congruent_1g;
        stats.superpages = state.limits.page_sizes.superpages();
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
