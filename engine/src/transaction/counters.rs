//! The counters and log messages of an engine.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, Outcome, State};
use crate::execute::Executed;
use crate::log::Level;
use crate::populate::{self, Report, ThreadLimit};

/// The messages that are logged once per handle, and were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Logged {
    base_pages: bool,
    refused_threads: bool,
    refused_cpus: bool,
}

impl Engine {
    pub(super) fn record_executed(&self, executed: &Executed) {
        let mut stats = self.stats_mut();
        stats.map_calls += executed.map_calls;
        stats.map_bytes += executed.map_bytes;
        stats.map_ns += nanoseconds(executed.map_time);
        stats.unmap_calls += executed.unmap_calls;
        stats.unmap_bytes += executed.unmap_bytes;
        stats.unmap_ns += nanoseconds(executed.unmap_time);
        stats.max_unmap_ns = stats.max_unmap_ns.max(nanoseconds(executed.unmap_longest));
        let Some(report) = &executed.populated else { return };
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
        stats.thread_start_failures += report.thread_start_failures;
        stats.threads_peak = stats.threads_peak.max(report.threads);
    }

    /// Counts a successful commit, except for its calls, which are counted already.
    pub(super) fn record_commit(&self, outcome: &Outcome) {
        let mut stats = self.stats_mut();
        stats.commits += 1;
        stats.kept_entries += outcome.kept_entries;
        stats.kept_bytes += outcome.kept_bytes;
        stats.remapped_bytes += outcome.remapped_bytes;
        stats.device_failures += outcome.executed.refusals.len() as u64;
    }

    pub(super) fn record_state(&self, state: &State) {
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

    pub(super) fn log_executed(&self, state: &mut State, executed: &Executed) {
        if let Some(report) = &executed.populated {
            self.log_base_pages(state, report);
            self.log_refused_threads(state, report);
        }
        for entry in &executed.devices {
            self.log.write(
                Level::Info,
                format_args!(
                    "The memory at {:?} (IOVA {}) is device memory: not faulted in",
                    entry.hva, entry.range
                ),
            );
        }
        for refusal in &executed.refusals {
            self.log.write(
                Level::Warn,
                format_args!(
                    "Mapping device memory at IOVA {} failed: {}: no peer-to-peer with it",
                    refusal.region, refusal.errno
                ),
            );
        }
    }

    /// Logs once why commits use fewer threads than there are CPUs.
    pub(super) fn log_limit(&self, limit: ThreadLimit) {
        if limit.is_short() && !self.logged_limit.swap(true, Ordering::Relaxed) {
            self.log.write(Level::Info, format_args!("{limit}"));
        }
    }

    /// Logs what was refused to threads, each once.
    fn log_refused_threads(&self, state: &mut State, report: &Report) {
        let once = |logged: &mut bool, message: fmt::Arguments<'_>| {
            if !std::mem::replace(logged, true) {
                self.log.write(Level::Info, message);
            }
        };
        let Logged { refused_threads, refused_cpus, .. } = &mut state.logged;
        if report.thread_start_failures > 0 {
            let (failed, worked) = (report.thread_start_failures, report.threads);
            let all = failed + worked;
            once(
                refused_threads,
                format_args!("{failed} of {all} threads could not be started (sandbox, RLIMIT_NPROC)"),
            );
        }
        if report.threads_not_moved > 0 {
            let message =
                "The library's threads may not leave the CPUs of the calling thread (sandbox, cpuset)";
            once(refused_cpus, format_args!("{message}"));
        }
    }

    /// Logs once why the host does not provide huge pages.
    fn log_base_pages(&self, state: &mut State, report: &Report) {
        if !self.huge_pages || state.logged.base_pages {
            return;
        }
        if let Some(hint) = populate::hint(report) {
            state.logged.base_pages = true;
            self.log.write(Level::Warn, format_args!("{hint}"));
        }
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
