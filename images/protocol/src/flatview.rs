//! Reads what `info mtree -f` prints: what a device without a virtual IOMMU can access.

use crate::ranges::Reach;

const PAGE: u64 = 4096;

/// One row of a flat view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// First address.
    pub start: u64,
    /// Last address, inclusive.
    pub last: u64,
    /// `ram`, `rom`, `ramd`, `romd` or `i/o`.
    pub kind: String,
    /// The memory region.
    pub name: String,
    /// Where in the region the row starts.
    pub offset: u64,
}

/// How the names of the flash that holds OVMF begin.
const FLASH: &str = "system.flash";

impl Row {
    /// Whether this is a device's own memory (a BAR).
    pub fn is_device(&self) -> bool {
        self.kind == "ramd"
    }

    /// The device and the number of the BAR, if QEMU has named the row after one.
    pub fn bar(&self) -> Option<(&str, usize)> {
        let (device, rest) = self.name.split_once(" BAR ")?;
        Some((device, rest.split(' ').next()?.parse().ok()?))
    }

    /// The whole pages of the row, if DMA to it is mapped: RAM, ROM and mapped BARs are, MMIO and
    /// ROM devices are not. What cannot be written of flash is printed as `rom`, and is a ROM device
    /// all the same. Starts round up and ends round down, as QEMU's listener does.
    pub fn reach(&self) -> Option<Reach> {
        if !matches!(self.kind.as_str(), "ram" | "rom" | "ramd") || self.name.starts_with(FLASH) {
            return None;
        }
        let start = self.start.checked_next_multiple_of(PAGE)?;
        // Bytes up to and including `last`, in whole pages; counted in pages because the byte
        // after the last one may not be a number.
        let end_page = self.last / PAGE + u64::from(self.last % PAGE == PAGE - 1);
        if start / PAGE >= end_page {
            return None;
        }
        let last = (end_page - 1) * PAGE + (PAGE - 1);
        Some(Reach { start, last, write: self.kind != "rom" })
    }
}

/// The rows of the flat view that renders address space `name`; `None` if no view does.
pub fn rows_of(text: &str, name: &str) -> Option<Vec<Row>> {
    let wanted = format!(" AS \"{name}\", root: ");
    let mut found = false;
    let mut rows = Vec::new();
    for line in text.lines().map(|l| l.trim_end_matches('\r')) {
        if line.starts_with("FlatView #") {
            if found {
                break;
            }
        } else if line.starts_with(&wanted) {
            found = true;
        } else if found && let Some(row) = parse_row(line) {
            rows.push(row);
        }
    }
    found.then_some(rows)
}

/// `  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM`
fn parse_row(line: &str) -> Option<Row> {
    let (span, rest) = line.trim_start().split_once(" (prio ")?;
    let (start, last) = span.split_once('-')?;
    let (attributes, name) = rest.split_once("): ")?;
    let (_, kind) = attributes.split_once(", ")?;
    let name = name.strip_suffix(" KVM").unwrap_or(name);
    let (name, offset) = match name.rsplit_once(" @") {
        Some((name, offset)) => (name, u64::from_str_radix(offset, 16).ok()?),
        None => (name, 0),
    };
    Some(Row {
        start: u64::from_str_radix(start, 16).ok()?,
        last: u64::from_str_radix(last, 16).ok()?,
        kind: kind.trim_start_matches("nv-").to_owned(),
        name: name.to_owned(),
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n  \
        0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\nFlatView #1\r\n \
        AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n Root memory region: system\r\n  \
        0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\r\n  \
        00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM\r\n  \
        00000000000e0000-00000000000effff (prio 1, rom): isa-bios @0000000000020000 KVM\r\n  \
        0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM\r\n  \
        00000000fe000000-00000000fe001fff (prio 0, ramd): 0000:00:04.0 BAR 0 mmaps[0] KVM\r\n  \
        00000000fe002000-00000000fe00241f (prio 0, i/o): msix-table\r\n  \
        0000000100000800-00000001000017ff (prio 0, ram): odd\r\n\r\n";

    #[test]
    fn rows_are_read() {
        let rows = rows_of(TEXT, "memory").unwrap();
        assert_eq!(rows.len(), 7);
        assert_eq!(rows[2].offset, 0x20000);
        assert_eq!(rows[2].name, "isa-bios");
        assert_eq!(rows[3].name, "pc.ram");
        assert!(rows[4].is_device());
        assert_eq!(rows[4].name, "0000:00:04.0 BAR 0 mmaps[0]");
        assert_eq!(rows[4].bar(), Some(("0000:00:04.0", 0)));
        assert_eq!(rows[3].bar(), None);
        assert!(rows_of(TEXT, "cpu-memory-0").is_some());
        assert!(rows_of(TEXT, "no such space").is_none());
    }

    #[test]
    fn only_whole_pages_of_memory_are_reached() {
        let rows = rows_of(TEXT, "memory").unwrap();
        let reach: Vec<_> = rows.iter().map(Row::reach).collect();
        assert_eq!(reach[0], Some(Reach { start: 0, last: 0x9ffff, write: true }));
        assert_eq!(reach[1], Some(Reach { start: 0xc0000, last: 0xdffff, write: false }));
        assert_eq!(reach[5], None, "MMIO is not DMA memory");
        assert_eq!(reach[6], None, "no whole page in it");
    }

    #[test]
    fn flash_is_not_reached_whatever_it_is_printed_as() {
        for kind in ["rom", "romd"] {
            let name = "system.flash0".into();
            let row = Row { start: 0xe0000, last: 0xfffff, kind: kind.into(), name, offset: 0x35c000 };
            assert_eq!(row.reach(), None);
        }
    }

    #[test]
    fn a_row_may_end_with_the_address_space() {
        let row = Row {
            start: u64::MAX - 0xffff,
            last: u64::MAX,
            kind: "ram".into(),
            name: "top".into(),
            offset: 0,
        };
        assert_eq!(row.reach().unwrap().last, u64::MAX);
    }
}
