//! What the native bench prints: one JSON object a line. `cargo xtask bench` reads the same types.

use serde::{Deserialize, Serialize};

use crate::memory::MemoryKind;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// The first line.
    Machine(Machine),
    /// One measurement.
    Sample(Sample),
    /// What the rest of the machine did during one round.
    Others(Others),
    /// What was asked for and could not be measured here.
    LeftOut(LeftOut),
}

/// Where it was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// CPUs this process may run on.
    pub cpus: usize,
    /// Their name.
    pub cpu: String,
    /// Whether the CPUs say that a hypervisor is below them.
    pub virtual_machine: bool,
    /// `uname -r`.
    pub kernel: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that could be had when the run began.
    pub available: u64,
    /// `transparent_hugepage/enabled`.
    pub thp: String,
    /// `transparent_hugepage/shmem_enabled`.
    pub shmem_thp: String,
    /// The load of the last minute when the run began. Above about 1 the times are of a machine that does other things.
    pub load: f64,
    /// What stands in for the map ioctl.
    pub pins: String,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Cold memory, mapped as stock QEMU does: one map per region, which faults the memory in on its way.
    Stock,
    /// Cold memory, faulted in by threads that take an equal part of it each, then mapped by one call per region: QEMU's
    /// order of calls with `prealloc=on,prealloc-threads=N`.
    Prealloc,
    /// The same, but the threads fault in one region after the other: cloud-hypervisor's order with `prefault=on`.
    RegionByRegion,
    /// Cold memory, one commit of the engine.
    Engine,
    /// The same, but everything is faulted in before the first entry is mapped.
    InTurn,
    /// Cold memory, one commit of the engine, which leaves faulting in to the map calls.
    MapsOnly,
    /// As [`Case::Engine`], but memory is mapped by its address where it could be by its file.
    ByAddress,
    /// Cold memory, faulted in by calls of `pages_per_call` pages, then mapped entry by entry.
    Batch,
    /// Memory that is there already, mapped as stock QEMU does.
    RemapStock,
    /// Memory that is there already, one commit of the engine.
    RemapEngine,
    /// What was mapped as stock QEMU does, unmapped by one call per region.
    UnmapStock,
    /// What one commit of the engine mapped, unmapped by another.
    UnmapEngine,
    /// Limit: memory that is there already, cleared by all threads.
    Clear,
    /// Limit: one process per thread, each faulting in its own memory, no lock shared.
    Bare,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// In which alternation, from 0; samples of one round were taken next to each other.
    pub round: u32,
    /// What was timed.
    pub case: Case,
    /// The memory.
    pub memory: MemoryKind,
    /// How much of it.
    pub bytes: u64,
    /// Threads allowed (for [`Case::Bare`]: processes).
    pub threads: usize,
    /// 4 KiB pages per call that faults in, for [`Case::Batch`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pages_per_call: Option<u64>,
    /// Wall time of the whole.
    pub seconds: f64,
    /// Of that, faulting in before the map calls; unknown where the two are not apart.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub populate_seconds: Option<f64>,
    /// Of that, in the calls that pin.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pin_seconds: Option<f64>,
    /// Bytes that were in huge pages afterwards.
    pub huge_bytes: u64,
}

/// How much the measurement had to share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Others {
    /// The round.
    pub round: u32,
    /// Its memory.
    pub memory: MemoryKind,
    /// How much of it.
    pub bytes: u64,
    /// The part of all CPUs' time that other processes used.
    pub share: f64,
}

/// Something that could not be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    /// The memory.
    pub memory: MemoryKind,
    /// How much of it; 0: any.
    pub bytes: u64,
    /// Why, and what to change.
    pub why: String,
}
