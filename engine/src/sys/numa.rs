//! The NUMA node that a memory policy prefers, and the binding of a worker to it.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;

use super::cpu::{CpuSet, listed};
use super::proc;
use crate::addr::HostVa;
use crate::error::Errno;

/// Maximum number of nodes: that of the kernel's largest configuration.
const MAX_NODES: usize = 1024;
/// Reads the policy of an address instead of the thread's.
const MPOL_F_ADDR: libc::c_ulong = 2;
/// Reads the nodes that the thread may allocate on.
const MPOL_F_MEMS_ALLOWED: libc::c_ulong = 4;
const MPOL_DEFAULT: libc::c_int = 0;
const MPOL_PREFERRED: libc::c_int = 1;
const MPOL_BIND: libc::c_int = 2;
const MPOL_LOCAL: libc::c_int = 4;
/// The mode without its flags (MPOL_F_STATIC_NODES and similar), which are in the upper bits.
const MODE: libc::c_int = 0x1fff;

/// The machine's nodes and their CPUs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Nodes(BTreeMap<usize, Vec<usize>>);

impl Nodes {
    /// `None` if there is no choice: there is only one node, or none is known.
    pub fn read() -> Option<Self> {
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir("/sys/devices/system/node").ok()?.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok());
            if let Some(number) = number {
                let cpus = listed(&proc::read(entry.path().join("cpulist").to_str()?)?)?;
                nodes.insert(number, cpus);
            }
        }
        // Memory without CPUs of its own (CXL) is equally far from all of them.
        nodes.retain(|_, cpus| !cpus.is_empty());
        (nodes.len() > 1).then_some(Self(nodes))
    }

    /// The node that the policy of the memory at `hva` selects, if it selects one and that node has CPUs.
    pub fn node_of(&self, hva: HostVa) -> Option<usize> {
        policy(hva).filter(|node| self.0.contains_key(node))
    }
}

/// The CPUs that a worker may run on, and the node it is bound to.
pub(crate) struct NodeBinding<'a> {
    nodes: &'a Nodes,
    /// The thread's original CPUs; `None` if the kernel does not report them.
    allowed: Option<CpuSet>,
    at: Option<usize>,
}

impl<'a> NodeBinding<'a> {
    /// For the calling thread, which must be a worker, because its original CPUs are not restored.
    pub fn of_current_thread(nodes: &'a Nodes) -> Self {
        Self { nodes, allowed: CpuSet::of_current_thread(), at: None }
    }

    /// Moves the thread to the allowed CPUs of a node, or with `None` to all allowed CPUs. If a sandbox refuses that,
    /// the thread stays where it is, which is only slower.
    pub fn move_to(&mut self, node: Option<usize>) {
        if self.at == node {
            return;
        }
        self.at = node;
        let Some(allowed) = &self.allowed else { return };
        let near = node.and_then(|node| self.nodes.0.get(&node)).and_then(|cpus| allowed.only(cpus));
        let _ = near.as_ref().unwrap_or(allowed).apply();
    }
}

/// The node that the policy of the memory at `hva` selects, if it selects exactly one.
fn policy(hva: HostVa) -> Option<usize> {
    let (mode, nodes) = get_mempolicy(hva.raw(), MPOL_F_ADDR).ok()?;
    if !matches!(mode & MODE, MPOL_BIND | MPOL_PREFERRED) {
        return None;
    }
    let first = nodes.iter().position(|word| *word != 0)?;
    (count(&nodes) == 1).then(|| first * 64 + nodes[first].trailing_zeros() as usize)
}

/// Whether the calling thread may allocate memory on more than one node. This needs no file, and so works in a
/// sandbox that hides the list of nodes.
pub(crate) fn several_nodes() -> bool {
    get_mempolicy(0, MPOL_F_MEMS_ALLOWED).is_ok_and(|(_, nodes)| count(&nodes) > 1)
}

/// Whether memory without a policy of its own is allocated on the node of the thread that faults it in: the calling
/// thread has no other policy that its workers inherit (as with numactl's --membind or --interleave).
pub(crate) fn allocates_locally() -> bool {
    get_mempolicy(0, 0).is_ok_and(|(mode, _)| matches!(mode & MODE, MPOL_DEFAULT | MPOL_LOCAL))
}

/// Makes the calling thread allocate memory without a policy of its own on that node, as long as the node has any.
pub(crate) fn prefer(node: usize) -> Result<(), Errno> {
    let mut nodes: NodeMask = [0; MAX_NODES / 64];
    *nodes.get_mut(node / 64).ok_or(Errno::EINVAL)? |= 1 << (node % 64);
    // The kernel reads one bit less than the number that it is given.
    let bits = MAX_NODES as libc::c_ulong + 1;
    // SAFETY: the call reads a mask of MAX_NODES bits.
    match unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_PREFERRED, nodes.as_ptr(), bits) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

type NodeMask = [u64; MAX_NODES / 64];

fn count(nodes: &NodeMask) -> u32 {
    nodes.iter().map(|word| word.count_ones()).sum()
}

/// The policy at an address (with MPOL_F_ADDR) or of the calling thread, and its nodes; or with MPOL_F_MEMS_ALLOWED
/// the nodes that the thread may allocate on.
fn get_mempolicy(address: u64, flags: libc::c_ulong) -> Result<(libc::c_int, NodeMask), Errno> {
    let mut mode: libc::c_int = 0;
    let mut nodes: NodeMask = [0; MAX_NODES / 64];
    let (to_mode, bits) = (&raw mut mode, MAX_NODES as libc::c_ulong);
    // SAFETY: the call writes one int and a mask of `MAX_NODES` bits, and looks up the mapping at an address; an
    // address without a mapping fails with an error.
    let answer =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, to_mode, nodes.as_mut_ptr(), bits, address, flags) };
    if answer == 0 { Ok((mode, nodes)) } else { Err(Errno::last()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_where_its_policy_says() {
        const BYTES: usize = 8192;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        let hva = HostVa::from_raw(memory as u64);
        assert_eq!(policy(hva), None, "the default");
        for (mode, nodes, expected) in
            [(MPOL_BIND, 1u64, Some(0)), (MPOL_PREFERRED, 1, Some(0)), (0, 0, None)]
        {
            let mask: *const u64 = if nodes == 0 { std::ptr::null() } else { &raw const nodes };
            // SAFETY: the range is the mapping's, and the mask has 64 bits, of which the call reads less.
            let answer = unsafe { libc::syscall(libc::SYS_mbind, memory, BYTES, mode, mask, 64u64, 0) };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
            assert_eq!(policy(hva), expected, "mode {mode}");
        }
        // SAFETY: the range is the mapping's, and no reference into it exists.
        unsafe { libc::munmap(memory, BYTES) };
        assert_eq!(policy(HostVa::from_raw(1 << 63)), None, "no mapping");
    }

    /// The CPUs that the calling thread may run on.
    fn now() -> Vec<usize> {
        CpuSet::of_current_thread().unwrap().numbers()
    }

    #[test]
    fn a_preferred_node_is_the_policy_of_the_thread() {
        let own = std::thread::spawn(|| {
            assert!(allocates_locally(), "tests run without a policy");
            prefer(0).unwrap();
            assert!(!allocates_locally());
            let (mode, nodes) = get_mempolicy(0, 0).unwrap();
            assert_eq!((mode & MODE, nodes[0], count(&nodes)), (MPOL_PREFERRED, 1, 1));
            assert_eq!(prefer(MAX_NODES), Err(Errno::EINVAL));
            assert_eq!(prefer(MAX_NODES - 1), Err(Errno::EINVAL), "a node that does not exist");
            // A thread that this one creates begins with the same policy.
            assert!(!std::thread::spawn(allocates_locally).join().unwrap());
        });
        own.join().unwrap();
        assert!(allocates_locally());
    }

    #[test]
    fn a_worker_goes_to_its_node_and_back() {
        let own = std::thread::spawn(move || {
            let before = now();
            let one = before[0];
            // A machine with two nodes, on one of which this thread may not run.
            let nodes = Nodes(BTreeMap::from([(0, vec![one]), (1, vec![1023])]));
            let mut binding = NodeBinding::of_current_thread(&nodes);
            for (node, expected) in [(Some(0), vec![one]), (Some(1), before.clone()), (None, before)] {
                binding.move_to(node);
                assert_eq!(now(), expected);
            }
        });
        own.join().unwrap();
    }

    #[test]
    fn a_worker_that_may_not_move_stays() {
        let own = std::thread::spawn(move || {
            let before = now();
            // The kernel refuses a set without an existing CPU.
            let nothing = CpuSet::empty_for_test();
            assert_eq!(nothing.apply(), Err(Errno::EINVAL));
            let nodes = Nodes(BTreeMap::from([(0, before.clone()), (1, vec![1023])]));
            let mut binding = NodeBinding { nodes: &nodes, allowed: Some(nothing), at: None };
            for node in [Some(0), Some(1), None] {
                binding.move_to(node);
                assert_eq!(now(), before);
            }
        });
        own.join().unwrap();
    }
}
