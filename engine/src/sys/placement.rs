//! Where workers run, at which priority, and where the memory that they fault in lands.
#![allow(unsafe_code)]

use super::cpu::{self, CpuSet};
use super::numa;
use crate::error::Errno;

/// The CPUs that workers may run on: `configured`, or else those of the process's main thread, or of the calling
/// thread if these are more. A thread that is bound to a few CPUs (a vCPU, a poller) would otherwise bind every worker
/// to them. `None` if the kernel does not report CPUs.
pub(crate) fn cpus(configured: Option<&CpuSet>) -> Option<CpuSet> {
    if let Some(configured) = configured {
        return Some(*configured);
    }
    let [process, caller] = [CpuSet::of_main_thread(), CpuSet::of_current_thread()];
    // Of two that are equally large, the process's.
    [caller, process].into_iter().flatten().max_by_key(CpuSet::count)
}

/// What a worker has to change: a thread begins with the CPUs, the scheduling policy and the memory policy of the
/// thread that created it. A call that changes nothing is not made, because a sandbox may end the process for it.
#[derive(Debug)]
pub(crate) struct Placement {
    cpus: Option<CpuSet>,
    /// The nice value to take after giving up a real-time policy.
    leave_real_time: Option<libc::c_int>,
    /// The node for memory that has no policy of its own.
    node: Option<usize>,
}

impl Placement {
    /// For workers that the calling thread is about to create.
    pub fn of_workers(configured: Option<&CpuSet>) -> Self {
        let caller = CpuSet::of_current_thread();
        Self {
            cpus: cpus(configured).filter(|cpus| Some(*cpus) != caller),
            leave_real_time: is_real_time().then(nice_of_main_thread),
            // Without a policy, the kernel allocates on the node of the thread that faults. Without workers that would
            // be the calling thread, and pinned pages never move.
            node: if numa::several_nodes() && numa::allocates_locally() { cpu::node() } else { None },
        }
    }

    /// Places the calling thread, a worker. Fails if the kernel or a sandbox refuses the CPUs: the thread then stays
    /// where it is, which is only slower.
    pub fn enter(&self) -> Result<(), Errno> {
        if let Some(nice) = self.leave_real_time {
            leave_real_time(nice);
        }
        if let Some(node) = self.node {
            // If it is refused, memory lands on the nodes of the workers.
            let _ = numa::prefer(node);
        }
        self.cpus.as_ref().map_or(Ok(()), CpuSet::apply)
    }
}

/// Whether the calling thread has a real-time policy, which its threads would inherit.
fn is_real_time() -> bool {
    // The function of this name in musl always fails.
    // SAFETY: the call has no pointer arguments; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    // A thread with SCHED_RESET_ON_FORK has that flag in its policy, and its threads do not inherit the policy.
    [libc::SCHED_FIFO, libc::SCHED_RR].map(libc::c_long::from).contains(&policy)
}

fn nice_of_main_thread() -> libc::c_int {
    // SAFETY: the call has no pointer arguments. -1 is a nice value as well as an error, for a thread that exists.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
}

/// Gives the calling thread the default policy and that nice value. What is refused stays as it is.
fn leave_real_time(nice: libc::c_int) {
    // `struct sched_param` of the kernel.
    let priority: libc::c_int = 0;
    // SAFETY: the call reads the parameter; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority) };
    // SAFETY: the call has no pointer arguments; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_already_is_not_changed() {
        let own = CpuSet::of_main_thread().unwrap();
        let placement = Placement::of_workers(None);
        assert_eq!((placement.cpus, placement.leave_real_time), (None, None));
        assert_eq!(Placement::of_workers(Some(&own)).cpus, None);
        assert_eq!(placement.node.is_some(), numa::several_nodes() && numa::allocates_locally());
    }

    #[test]
    fn the_process_has_more_cpus_than_a_bound_thread() {
        std::thread::spawn(|| {
            let process = CpuSet::of_main_thread().unwrap();
            let one = process.only(&process.numbers()[..1]).unwrap();
            one.apply().unwrap();
            assert_eq!(cpus(None), Some(process));
            assert_eq!(cpus(Some(&one)), Some(one));
            let moved = Some(process).filter(|process| process.count() > 1);
            assert_eq!(Placement::of_workers(None).cpus, moved);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn cpus_that_are_refused_are_reported() {
        std::thread::spawn(|| {
            let before = CpuSet::of_current_thread();
            let nowhere =
                Placement { cpus: Some(CpuSet::empty_for_test()), leave_real_time: None, node: None };
            assert_eq!(nowhere.enter(), Err(Errno::EINVAL));
            assert_eq!(CpuSet::of_current_thread(), before);
        })
        .join()
        .unwrap();
    }
}
