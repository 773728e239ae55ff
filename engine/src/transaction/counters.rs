//! The counters and log messages of an engine.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, Outcome, State};
use crate::error::Errno;
use crate::execute::Executed;
use crate::explain;
use crate::log::Level;
use crate::populate::{self, Report, ThreadLimit};
use crate::stats::Counter;

/// The messages that are logged once per handle, and were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Logged {
    base_pages: bool,
    refused_threads: bool,
    refused_cpus: bool,
}

impl Engine {
    /// Enters into `state` and the counters what calls have done, whether they succeeded or not.
    pub(super) fn record_executed(&self, state: &mut State, executed: &Executed) {
        state.contradicted |= executed.contradicted;
        let counters = &self.counters;
        counters.map_calls.add(executed.map_calls);
        counters.map_bytes.add(executed.map_bytes);
        counters.map_ns.add(nanoseconds(executed.map_time));
        counters.unmap_calls.add(executed.unmap_calls);
        counters.unmap_bytes.add(executed.unmap_bytes);
        counters.unmap_ns.add(nanoseconds(executed.unmap_time));
        raise(&counters.max_unmap_ns, nanoseconds(executed.unmap_longest));
        counters.thread_start_failures.add(executed.thread_start_failures);
        let Some(report) = &executed.populated else { return };
        counters.populate_ns.add(nanoseconds(report.duration));
        counters.populate_calls.add(report.calls);
        counters.populate_bytes.add(report.bytes);
        counters.populate_present.add(report.present_bytes);
        counters.populate_huge.add(report.huge_bytes);
        counters.populate_small.add(report.small_anonymous_bytes + report.small_file_bytes);
        counters.populate_skipped.add(report.skipped_bytes);
        counters.populate_einval.add(report.einval);
        counters.populate_efault.add(report.efault);
        counters.populate_enomem.add(report.enomem);
        counters.populate_ehwpoison.add(report.ehwpoison);
        counters.populate_other.add(report.other);
        counters.thread_start_failures.add(report.thread_start_failures);
        raise(&counters.threads_peak, report.threads);
    }

    /// Counts a successful commit, except for its calls, which are counted already.
    pub(super) fn record_commit(&self, outcome: &Outcome) {
        let counters = &self.counters;
        counters.commits.add(1);
        counters.kept_entries.add(outcome.kept_entries);
        counters.kept_bytes.add(outcome.kept_bytes);
        counters.remapped_bytes.add(outcome.remapped_bytes);
        self.record_refusals(&outcome.executed);
    }

    pub(super) fn record_refusals(&self, executed: &Executed) {
        self.counters.device_failures.add(executed.refusals.len() as u64);
    }

    pub(super) fn record_state(&self, state: &State) {
        let (counters, totals) = (&self.counters, state.table.totals());
        counters.regions.set(state.wanted.len());
        counters.wanted_bytes.set(state.wanted.bytes());
        counters.entries.set(state.table.len());
        counters.mapped_bytes.set(totals.bytes);
        counters.congruent_2m_bytes.set(totals.congruent_2m);
        counters.congruent_1g_bytes.set(totals.congruent_1g);
        counters.superpages.set(state.limits.page_sizes.superpages() as u64);
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
        if executed.refusals.iter().any(|refusal| refusal.errno == Errno::ENOSPC) {
            // Another user of the container has taken entries since.
            self.ask_limits(state);
        }
        for refusal in &executed.refusals {
            let error = explain::refusal(refusal, &state.limits, &state.table, &state.wanted);
            self.log.write(Level::Warn, format_args!("{error}: no peer-to-peer DMA to it"));
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

/// Raises a counter to `value`.
fn raise(counter: &Counter, value: u64) {
    counter.set(counter.get().max(value));
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
