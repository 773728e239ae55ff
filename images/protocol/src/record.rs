//! What the machines report: one JSON object per line, on a channel that carries nothing else.

use serde::{Deserialize, Serialize};

use crate::job::Mode;
use crate::memory::MemoryKind;

/// Name of the virtio-serial port the records of L1 leave through.
pub const L1_PORT: &str = "vft.records";
/// Milliseconds between two heartbeats of L1.
pub const HEARTBEAT_MS: u64 = 2000;
/// Name of the virtio-serial port the events of L2 leave through.
pub const L2_PORT: &str = "vft.events";

/// The log of the pages where a scenario lets the IOMMU report faults, one address per line.
pub const DEVICE_FAULTS: &str = "device-faults";

/// What L1 reports to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// L1 began something.
    Step {
        what: String,
        /// Milliseconds since L1's kernel started.
        at_ms: u64,
    },
    /// A check was made.
    Check {
        /// One of the scenario's names; the host expects all of them.
        name: String,
        ok: bool,
        detail: String,
    },
    /// A line for a log file of that name.
    Log {
        /// File name without a folder.
        file: String,
        /// The line, without its end.
        line: String,
    },
    /// What was counted until the measured part of the run ended.
    Facts(Facts),
    /// One start of L2, timed.
    Start(Start),
    /// A guest with a vIOMMU moved data.
    Traffic(Traffic),
    /// A request that the guest has not fulfilled was sent again.
    Retry {
        /// Which request.
        cause: String,
    },
    /// Nothing new, but L1 is alive: sent every [`HEARTBEAT_MS`] while there is a job.
    Alive,
    /// L1 could not go on.
    Fatal { error: String },
    /// L1 has done its job and powers off. A run without this record was cut short.
    End,
}

/// The numbers of one run, from QEMU's start to the end of the measured part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// MAP_DMA calls the kernel saw (system call tracepoint).
    pub map_calls: u64,
    /// UNMAP_DMA calls the kernel saw.
    pub unmap_calls: u64,
    /// Bytes mapped as the IOMMU core counted them, less what VFIO maps to probe a new domain.
    pub map_bytes: u64,
    /// Bytes unmapped, likewise.
    pub unmap_bytes: u64,
    /// Bytes VFIO mapped and unmapped to probe a new domain (taken out of the two above).
    pub probe_bytes: u64,
    /// Bytes mapped by ioctls whose memory is RAM or ROM, from the ioctl witness.
    pub ram_map_bytes: u64,
    /// Bytes the flat view wanted reachable at the end, RAM and BARs.
    pub wanted_bytes: u64,
    /// RAM and ROM alone.
    pub wanted_ram_bytes: u64,
    /// Nanoseconds spent inside MAP_DMA.
    pub map_ns: u64,
    /// Nanoseconds spent inside UNMAP_DMA.
    pub unmap_ns: u64,
    /// Nanoseconds the library spent populating; 0 without it.
    pub populate_ns: u64,
    /// Of that, what BARs cost.
    pub bars: BarCosts,
    /// Milliseconds from QEMU's start to the first byte on L2's console, where that is measured.
    pub first_output_ms: Option<u64>,
}

/// What mapping BARs took, from the ioctl witness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarCosts {
    pub map_calls: u64,
    /// Bytes they mapped.
    pub map_bytes: u64,
    /// Nanoseconds inside them.
    pub map_ns: u64,
    /// Bytes unmapped by calls that unmapped BARs and nothing else.
    pub unmap_bytes: u64,
    /// Nanoseconds inside these.
    pub unmap_ns: u64,
}

/// How L2's RAM is filled and mapped in a start that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// QEMU's own listener maps, which faults the memory in.
    Stock,
    /// Two threads of QEMU fault the memory in (`prealloc=on,prealloc-threads=2`), then its own listener maps.
    Prealloc,
    /// The same with threads of a context that may use both CPUs (`prealloc-context`), which QEMU uses where its main
    /// thread is pinned.
    PreallocContext,
    /// The library faults in and maps.
    Fast,
    /// The same in the background: the guest starts before (`x-dma-mapper-background=on`).
    Background,
    /// No device is passed through, so nothing is filled and mapped.
    NoDevice,
}

impl Order {
    pub const ALL: [Self; 6] =
        [Self::Stock, Self::Prealloc, Self::PreallocContext, Self::Fast, Self::Background, Self::NoDevice];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Prealloc => "prealloc",
            Self::PreallocContext => "prealloc-context",
            Self::Fast => "fast",
            Self::Background => "background",
            Self::NoDevice => "no-device",
        }
    }

    /// The listener that maps.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Stock | Self::Prealloc | Self::PreallocContext | Self::NoDevice => Mode::Stock,
            Self::Fast | Self::Background => Mode::Fast,
        }
    }

    /// The properties of a vfio-pci device besides those of its mode, with a leading comma.
    pub const fn properties(self) -> &'static str {
        match self {
            Self::Background => ",x-dma-mapper-background=on",
            _ => "",
        }
    }
}

/// One start of L2: how long until it executes, and what was mapped for it by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// In which alternation, from 0; the orders of one round ran right after each other.
    pub round: u32,
    pub order: Order,
    /// What L2's RAM is made of.
    pub memory: MemoryKind,
    /// Nanoseconds from QEMU's start to the end of the greeting on its monitor.
    pub greeting_ns: u64,
    /// Nanoseconds from QEMU's start until as many bytes had been mapped as the guest has RAM; 0 without a device.
    pub mapped_ns: u64,
    /// Nanoseconds from QEMU's start until the device could access memory: its bus mastering was on. 0 without a device.
    pub device_ns: u64,
    /// When the firmware had written its first byte: the guest executes.
    pub first_instruction: Moment,
    /// When L2's kernel had written its first byte: the firmware has changed the memory map for the last time.
    pub kernel: Moment,
    /// Bytes mapped in the end, from the ioctl witness.
    pub held_bytes: u64,
    /// Bytes QEMU had locked in the end, as L1's kernel accounts them (VmLck).
    pub locked_bytes: u64,
    /// Bytes of shmem, a memfd among it, that QEMU had in the end.
    pub shmem_bytes: u64,
    /// Bytes of QEMU's memory in huge pages in the end.
    pub huge_bytes: u64,
    /// Nanoseconds from `quit` until QEMU's process was gone; L2 ran until then.
    pub exit_ns: u64,
}

impl Start {
    /// The end of the names of its checks, like `anon-4k-stock-0`.
    pub fn name_of(memory: MemoryKind, order: Order, round: u32) -> String {
        format!("{}-{}-{round}", memory.name(), order.name())
    }

    /// The end of the names of its checks.
    pub fn name(&self) -> String {
        Self::name_of(self.memory, self.order, self.round)
    }
}

/// What had happened since QEMU was started, up to a moment. Times of calls are the ioctl witness's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Nanoseconds since then.
    pub at_ns: u64,
    pub map_calls: u64,
    /// UNMAP_DMA calls.
    pub unmap_calls: u64,
    /// Bytes they mapped.
    pub map_bytes: u64,
    /// Nanoseconds inside MAP_DMA.
    pub map_ns: u64,
    /// Nanoseconds inside UNMAP_DMA.
    pub unmap_ns: u64,
    /// Nanoseconds the library spent faulting in; 0 without it.
    pub populate_ns: u64,
}

/// What it cost QEMU that a guest with a strict vIOMMU moved data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// In which alternation, from 0.
    pub round: u32,
    pub mode: Mode,
    pub map_calls: u64,
    pub unmap_calls: u64,
    /// Bytes that the guest read.
    pub bytes: u64,
    /// CPU time of QEMU outside the guest, the kernel's work for it included.
    pub qemu_ns: u64,
    /// CPU time of the guest.
    pub guest_ns: u64,
    pub wall_ns: u64,
}

/// What L2 reports to L1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// User space is up.
    Up {
        /// Which boot this is, counted from 0.
        boot: u64,
    },
    /// A part of the disk was read and is as expected, or was written.
    Moved {
        /// `read` or `write`.
        what: String,
        bytes: u64,
        /// Lowest physical address used for DMA.
        lowest: u64,
        /// Highest one.
        highest: u64,
        /// How many distinct 64 MiB slots of physical memory were used.
        slots: u64,
    },
    /// A device has read and written another's BAR.
    Peer {
        /// The guest-physical address of the BAR.
        bar: u64,
        /// Bytes that were read from it and are as expected.
        read: u64,
        /// Bytes that were written to it.
        written: u64,
    },
    /// A device writes to memory from now on.
    Writing {
        /// The guest-physical address of the first page.
        at: u64,
        /// How many pages it writes to.
        pages: u64,
        /// How often it has written.
        written: u64,
    },
    /// L2 was migrated while a device wrote to memory, and has compared.
    Migrated {
        /// How often the device had written when it was loaded at the destination.
        loaded: u64,
        /// How often until it was stopped.
        written: u64,
        /// How many words are not what the device wrote there last, and the address of the first one.
        lost: u64,
        first_lost: Option<u64>,
        /// Words elsewhere that are not what L2 wrote before the migration.
        changed: u64,
    },
    /// An order of that number was carried out.
    Attacked {
        order: u64,
        /// What each access has read, if it reads.
        found: Vec<Vec<u8>>,
    },
    /// A message of L2's kernel, from /dev/kmsg.
    Dmesg {
        /// `<level>[seconds] text`.
        line: String,
    },
    /// How much memory L2's kernel uses, sent when it changes.
    Memory { mib: u64 },
    /// L2 is done with this boot and waits to be reset, unplugged or stopped.
    Ready { boot: u64 },
    /// L2 could not go on.
    Failed { error: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_one_line_each() {
        let record = Record::Check { name: "data".into(), ok: false, detail: "a\nb".into() };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.starts_with(r#"{"kind":"check","#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn facts_are_flat() {
        let text = serde_json::to_string(&Record::Facts(Facts::default())).unwrap();
        assert!(text.starts_with(r#"{"kind":"facts","map_calls":0"#), "{text}");
    }
}
