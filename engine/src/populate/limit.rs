//! The number of threads for a commit, and why it is not larger.

use std::fmt;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use crate::sys::cpu::{self, CpuSet};
use crate::sys::{cgroup, placement, proc};

/// The maximum number of threads for a commit, including the calling one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThreadLimit {
    /// The number, at least 1.
    pub threads: usize,
    /// The CPUs of the machine that are online.
    pub online: usize,
    /// What sets the number.
    pub cause: Cause,
}

/// What sets the number of threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The caller's configuration: a number.
    Configured,
    /// The caller's configuration: a set of CPUs.
    CpuSet,
    /// The CPUs that the process may run on.
    Affinity,
    /// The CPU quota of a cgroup.
    Quota,
}

impl ThreadLimit {
    /// One per CPU that the threads may run on (`cpus`, or else the affinity mask), but no more than `configured`, or
    /// if that is 0, than they may use (cgroup quota).
    pub fn new(configured: usize, cpus: Option<&CpuSet>) -> Self {
        let online = cpu::online();
        let allowed = placement::cpus(cpus).map_or(online, |cpus| cpus.count().min(online));
        let cause = if cpus.is_some() { Cause::CpuSet } else { Cause::Affinity };
        if (1..=allowed).contains(&configured) {
            return Self { threads: configured, online, cause: Cause::Configured };
        }
        // More are not started: threads that wait for a CPU hold pieces that others would have finished.
        let quota = if configured == 0 { quota(allowed) } else { None };
        match quota.filter(|quota| *quota < allowed) {
            Some(threads) => Self { threads, online, cause: Cause::Quota },
            None => Self { threads: allowed, online, cause },
        }
    }

    /// How many of `threads` do work that nobody waits for: one CPU that the process may use is left to its other threads.
    pub fn beside_others(threads: usize) -> usize {
        threads.min(Self::new(0, None).threads.saturating_sub(1).max(1))
    }

    /// Whether CPUs stay idle.
    pub const fn is_short(&self) -> bool {
        self.threads < self.online
    }
}

impl fmt::Display for ThreadLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, online, cause } = self;
        write!(f, "Commits use {threads} of {online} CPUs: ")?;
        f.write_str(match cause {
            Cause::Configured => "this number of threads is configured",
            Cause::CpuSet => "the configured CPU set has no more",
            Cause::Affinity => "the affinity mask of the process has no more",
            Cause::Quota => "the CPU quota of the cgroup allows no more",
        })
    }
}

/// The cgroup's CPU quota in CPUs; `None` if it is no less than `allowed`.
fn quota(allowed: usize) -> Option<usize> {
    // The standard library would try to read the file each time.
    if proc::is_denied("/proc/self/cgroup") {
        return None;
    }
    // The standard library knows both versions of cgroups, but stops counting at the calling thread's affinity mask.
    let counted = available_parallelism().map_or(1, NonZeroUsize::get);
    let own = CpuSet::of_current_thread().map_or(allowed, |own| own.count());
    if counted < own { Some(counted) } else { (own < allowed).then(cgroup::cpu_quota).flatten() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_threads_than_cpus() {
        let limit = |configured, cpus| ThreadLimit::new(configured, cpus);
        let all = limit(0, None);
        assert_eq!(all.threads, available_parallelism().unwrap().get());
        let process = CpuSet::of_main_thread().unwrap();
        for configured in 1..=process.count() {
            let expected = ThreadLimit { threads: configured, cause: Cause::Configured, ..all };
            assert_eq!(limit(configured, None), expected);
        }
        let expected = ThreadLimit { threads: process.count(), cause: Cause::Affinity, ..all };
        assert_eq!(limit(process.count() + 7, None), expected);
        let one = process.only(&process.numbers()[..1]).unwrap();
        let expected = ThreadLimit { threads: 1, cause: Cause::CpuSet, ..all };
        assert_eq!([0, 3].map(|configured| limit(configured, Some(&one))), [expected; 2]);
        let most = CpuSet::from_bytes(&[0xff; 1024]).unwrap();
        assert_eq!(limit(0, Some(&most)).threads.max(all.threads), all.online.max(all.threads));
    }

    #[test]
    fn a_bound_thread_may_use_the_cpus_of_the_process() {
        let all = ThreadLimit::new(0, None);
        std::thread::spawn(move || {
            let process = CpuSet::of_main_thread().unwrap();
            process.only(&process.numbers()[..1]).unwrap().apply().unwrap();
            assert_eq!(ThreadLimit::new(0, None), all);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn work_that_nobody_waits_for_leaves_a_cpu() {
        let all = ThreadLimit::new(0, None);
        let fewer = all.threads.saturating_sub(1).max(1);
        assert_eq!(ThreadLimit::beside_others(all.threads), fewer);
        let configured = |threads| ThreadLimit::beside_others(ThreadLimit::new(threads, None).threads);
        assert_eq!((configured(1), configured(all.threads + 7)), (1, fewer));
    }

    #[test]
    fn the_line_says_how_many_and_why() {
        let limit = ThreadLimit { threads: 1, online: 4, cause: Cause::Affinity };
        assert!(limit.is_short());
        let expected = "Commits use 1 of 4 CPUs: the affinity mask of the process has no more";
        assert_eq!(limit.to_string(), expected);
        assert!(!ThreadLimit { threads: 4, ..limit }.is_short());
    }
}
