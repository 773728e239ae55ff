//! What the machines say: one JSON object per line, on a channel that carries nothing else.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port the records of L1 leave through.
pub const L1_PORT: &str = "vft.records";
/// Name of the virtio-serial port the events of L2 leave through.
pub const L2_PORT: &str = "vft.events";

/// From L1 to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// L1 began something.
    Step {
        /// What.
        what: String,
        /// Milliseconds since L1's kernel started.
        at_ms: u64,
    },
    /// Something that has to hold was looked at.
    Check {
        /// Stable name; the host knows which names it expects.
        name: String,
        /// Whether it held.
        ok: bool,
        /// What was seen.
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
    /// L1 could not go on.
    Fatal {
        /// Why.
        error: String,
    },
    /// L1 is through and powers off. A run without it was cut short.
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
    /// Milliseconds from QEMU's start to the first byte on L2's console; only where that is measured.
    pub first_output_ms: Option<u64>,
}

/// From L2 to L1.
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
        /// Bytes.
        bytes: u64,
        /// Lowest physical address used for DMA.
        lowest: u64,
        /// Highest.
        highest: u64,
        /// How many distinct 64 MiB slots of physical memory were used.
        slots: u64,
    },
    /// A message of L2's kernel, from /dev/kmsg.
    Dmesg {
        /// `<level>[seconds] text`.
        line: String,
    },
    /// How much memory L2's kernel uses, told when it changes.
    Memory {
        /// MiB.
        mib: u64,
    },
    /// L2 is done with this boot and waits to be reset, unplugged or stopped.
    Ready {
        /// Which boot.
        boot: u64,
    },
    /// L2 could not go on.
    Failed {
        /// Why.
        error: String,
    },
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
