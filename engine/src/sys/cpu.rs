//! Sets of CPUs, and the threads that are bound to them.
#![allow(unsafe_code)]

use std::mem::size_of_val;

use super::proc;
use crate::error::Errno;

/// Maximum number of CPUs: that of the kernel's largest configuration.
pub(crate) const MAX_CPUS: usize = 8192;
/// Words of a set.
const WORDS: usize = MAX_CPUS / u64::BITS as usize;

/// A set of CPUs, not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// The set in the format of sched_setaffinity(2): an array of unsigned longs. CPUs that no kernel can have are
    /// ignored. `None` if no CPU is left.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut set = [0; WORDS];
        for (word, bytes) in set.iter_mut().zip(bytes.chunks(size_of::<u64>())) {
            let mut whole = [0; size_of::<u64>()];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        Self(set).not_empty()
    }

    /// The CPUs that the calling thread may run on; `None` if the kernel does not report them.
    pub(crate) fn of_current_thread() -> Option<Self> {
        Self::of_thread(0)
    }

    /// The CPUs that the main thread of this process may run on; `None` if the kernel does not report them.
    pub(crate) fn of_main_thread() -> Option<Self> {
        Self::of_thread(std::process::id() as libc::pid_t)
    }

    fn of_thread(tid: libc::pid_t) -> Option<Self> {
        let mut set = [0u64; WORDS];
        // SAFETY: the call writes at most the size of `set`. The C library's wrapper takes any size, in bytes.
        let answer = unsafe { libc::sched_getaffinity(tid, size_of_val(&set), set.as_mut_ptr().cast()) };
        if answer == 0 { Self(set).not_empty() } else { None }
    }

    /// The number of CPUs.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The members of `cpus` that are in this set; `None` if there are none.
    pub(crate) fn only(&self, cpus: &[usize]) -> Option<Self> {
        let mut only = [0; WORDS];
        for (word, bit) in cpus.iter().map(|cpu| (cpu / 64, cpu % 64)).filter(|(word, _)| *word < WORDS) {
            only[word] |= self.0[word] & 1 << bit;
        }
        Self(only).not_empty()
    }

    /// Binds the calling thread to this set.
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        // SAFETY: the call reads the size of the set.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), self.0.as_ptr().cast()) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }

    fn not_empty(self) -> Option<Self> {
        (self.count() > 0).then_some(self)
    }

    /// The set of the CPUs with these numbers. Those that no kernel can have are ignored; `None` if none is left.
    pub fn of_numbers(cpus: &[usize]) -> Option<Self> {
        Self([u64::MAX; WORDS]).only(cpus)
    }

    /// A set without a CPU, which the kernel refuses.
    #[cfg(test)]
    pub fn empty_for_test() -> Self {
        Self([0; WORDS])
    }

    /// The numbers of the CPUs, ascending.
    #[cfg(test)]
    pub fn numbers(&self) -> Vec<usize> {
        (0..WORDS * 64).filter(|cpu| self.only(&[*cpu]).is_some()).collect()
    }
}

/// Parses a list of CPUs in the kernel's format: "0-3,8". `None` if it has a CPU that no kernel can have, or is longer
/// than that of all CPUs.
pub(crate) fn listed(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()?);
        if to >= MAX_CPUS || numbers.len() > MAX_CPUS {
            return None;
        }
        numbers.extend(from..=to);
    }
    Some(numbers)
}

/// The number of CPUs that are online; 1 if it is unknown.
pub(crate) fn online() -> usize {
    // glibc's sysconf() reads this file as well. musl's counts the CPUs that the calling thread may run on.
    let online = proc::read("/sys/devices/system/cpu/online").and_then(|list| listed(&list));
    if let Some(cpus) = online.filter(|cpus| !cpus.is_empty()) {
        return cpus.len();
    }
    // SAFETY: the call has no arguments but the name of a value.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// The CPU and the NUMA node that the calling thread runs on now.
pub(crate) fn node() -> Option<usize> {
    let mut node: libc::c_uint = 0;
    let nothing = std::ptr::null_mut::<libc::c_uint>();
    // SAFETY: the call writes one number; the kernel has ignored the third argument since 2.6.24.
    let answer = unsafe { libc::syscall(libc::SYS_getcpu, nothing, &raw mut node, nothing) };
    if answer == 0 { usize::try_from(node).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(listed("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!((listed("\n"), listed("x")), (Some(vec![]), None));
        assert_eq!(listed("8190-8191"), Some(vec![8190, 8191]));
        assert_eq!((listed("0-8192"), listed("0-18446744073709551615")), (None, None));
        assert_eq!(listed(&"0-8191,".repeat(3)), None);
    }

    #[test]
    fn a_set_is_read_as_the_kernel_reads_it() {
        let word = |word: u64| word.to_ne_bytes().to_vec();
        assert_eq!(CpuSet::from_bytes(&word(0b1010)).unwrap().numbers(), [1, 3]);
        assert_eq!(CpuSet::from_bytes(&[word(0), word(1 << 63)].concat()).unwrap().numbers(), [127]);
        assert_eq!(CpuSet::from_bytes(&[]), None);
        assert_eq!(CpuSet::from_bytes(&[0; 128]), None);
        let beyond = [vec![0; WORDS * 8], word(1)].concat();
        assert_eq!(CpuSet::from_bytes(&beyond), None);
        let most = CpuSet::from_bytes(&[0xff; 2 * WORDS * 8]).unwrap();
        assert_eq!(most.count(), WORDS * 64);
        assert_eq!(most.only(&[5, WORDS * 64]).unwrap().numbers(), [5]);
        assert_eq!(most.only(&[WORDS * 64]), None);
    }

    #[test]
    fn a_thread_is_bound_to_a_set() {
        std::thread::spawn(|| {
            let before = CpuSet::of_current_thread().unwrap();
            let one = before.only(&before.numbers()[..1]).unwrap();
            one.apply().unwrap();
            assert_eq!(CpuSet::of_current_thread(), Some(one));
            assert_eq!(CpuSet::empty_for_test().apply(), Err(Errno::EINVAL));
            assert_eq!(CpuSet::of_current_thread(), Some(one));
        })
        .join()
        .unwrap();
    }
}
