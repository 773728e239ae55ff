//! The machine that L1 is, apart from its IOMMU and the devices under test.

/// A NUMA node of L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub mib: u64,
    pub cpus: u32,
}

/// Memory and CPUs of L1, and options of its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Each is a socket, so all have as many CPUs. With one node, L1's kernel sees a machine without NUMA.
    pub nodes: Vec<Node>,
    /// Added to the kernel's command line.
    pub kernel_options: &'static str,
}

impl Machine {
    /// Two CPUs and that much memory.
    pub fn of_mib(mib: u64) -> Self {
        Self { nodes: vec![Node { mib, cpus: 2 }], kernel_options: "" }
    }

    /// The memory of all nodes.
    pub fn mib(&self) -> u64 {
        self.nodes.iter().map(|node| node.mib).sum()
    }

    /// The CPUs of all nodes.
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().map(|node| node.cpus).sum()
    }
}
