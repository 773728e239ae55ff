//! What happened, in numbers that any thread may change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vfio_fast_engine::populate::Report;

use crate::aside::Aside;
use crate::request::Kind;

/// The calls of one kind.
#[derive(Debug, Default)]
pub struct Calls {
    pub calls: AtomicU64,
    pub failed: AtomicU64,
    pub bytes: AtomicU64,
    pub ns: AtomicU64,
    pub longest_ns: AtomicU64,
}

/// What was faulted in.
#[derive(Debug, Default)]
pub struct FaultedIn {
    pub calls: AtomicU64,
    pub bytes: AtomicU64,
    pub huge_bytes: AtomicU64,
    pub ns: AtomicU64,
    /// The most threads of one call.
    pub threads: AtomicU64,
    pub not_started: AtomicU64,
}

/// The map calls that were passed on for one reason.
#[derive(Debug, Default)]
pub struct PassedOn {
    pub calls: AtomicU64,
    pub bytes: AtomicU64,
    /// Time that was spent on finding out.
    pub ns: AtomicU64,
}

/// All of it.
#[derive(Debug)]
pub struct Counters {
    pub calls: [Calls; Kind::ALL.len()],
    pub faulted_in: FaultedIn,
    pub passed_on: [PassedOn; Aside::ALL.len()],
}

impl Calls {
    const fn new() -> Self {
        let [calls, failed, bytes, ns, longest_ns] = [const { AtomicU64::new(0) }; 5];
        Self { calls, failed, bytes, ns, longest_ns }
    }
}

impl FaultedIn {
    const fn new() -> Self {
        let [calls, bytes, huge_bytes, ns, threads, not_started] = [const { AtomicU64::new(0) }; 6];
        Self { calls, bytes, huge_bytes, ns, threads, not_started }
    }
}

impl PassedOn {
    const fn new() -> Self {
        let [calls, bytes, ns] = [const { AtomicU64::new(0) }; 3];
        Self { calls, bytes, ns }
    }
}

impl Counters {
    pub const fn new() -> Self {
        Self {
            calls: [const { Calls::new() }; Kind::ALL.len()],
            faulted_in: FaultedIn::new(),
            passed_on: [const { PassedOn::new() }; Aside::ALL.len()],
        }
    }

    /// Counts a call that the kernel has answered; `bytes` are those that it mapped or unmapped.
    pub fn answered(&self, kind: Kind, succeeded: bool, bytes: u64, took: Duration) {
        let of = &self.calls[kind as usize];
        add(&of.calls, 1);
        match succeeded {
            true => add(&of.bytes, bytes),
            false => add(&of.failed, 1),
        }
        add(&of.ns, ns(took));
        of.longest_ns.fetch_max(ns(took), Ordering::Relaxed);
    }

    /// Counts memory that was made present.
    pub fn faulted_in(&self, report: &Report, took: Duration) {
        let of = &self.faulted_in;
        add(&of.calls, 1);
        add(&of.bytes, report.bytes);
        add(&of.huge_bytes, report.huge_bytes.min(report.bytes));
        add(&of.ns, ns(took));
        of.threads.fetch_max(report.threads, Ordering::Relaxed);
        add(&of.not_started, report.thread_start_failures);
    }

    /// Counts a call that is passed on.
    pub fn passed_on(&self, aside: Aside, bytes: u64, took: Duration) {
        let of = &self.passed_on[aside as usize];
        add(&of.calls, 1);
        add(&of.bytes, bytes);
        add(&of.ns, ns(took));
    }

    /// Forgets everything: a process that was forked has made no calls.
    pub fn clear(&self) {
        let calls =
            self.calls.iter().flat_map(|of| [&of.calls, &of.failed, &of.bytes, &of.ns, &of.longest_ns]);
        let passed_on = self.passed_on.iter().flat_map(|of| [&of.calls, &of.bytes, &of.ns]);
        let of = &self.faulted_in;
        let faulted_in = [&of.calls, &of.bytes, &of.huge_bytes, &of.ns, &of.threads, &of.not_started];
        for counter in calls.chain(passed_on).chain(faulted_in) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// The value of a counter.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn ns(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}
