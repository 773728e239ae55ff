//! Reads what the ioctl witness wrote: every call of VFIO, iommufd and KVM that maps memory.

use anyhow::{Context, Result, ensure};

mod dirty;
mod replay;
mod sequence;

pub use dirty::Dirty;
pub use replay::{
    Mapping, MappingSet, Space, commits, guest_memory, last_leaving, memory_distances, reach, replay,
};
pub use sequence::sequence;

/// The type of VFIO's and iommufd's commands.
const VFIO: u32 = 0x3b;
const SET_IOMMU: u32 = 0x3b66;
const UNSET_CONTAINER: u32 = 0x3b69;
const MAP_DMA: u32 = 0x3b71;
const UNMAP_DMA: u32 = 0x3b72;
/// What iommufd has instead: IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP, IOMMU_IOAS_MAP_FILE.
const DESTROY: u32 = 0x3b80;
const IOAS_ALLOC: u32 = 0x3b81;
const IOAS_MAP: u32 = 0x3b85;
const IOAS_UNMAP: u32 = 0x3b86;
const IOAS_MAP_FILE: u32 = 0x3b8f;
/// IOMMU_IOAS_CHANGE_PROCESS.
const CHANGE_PROCESS: u32 = 0x3b92;
const SET_MEMORY: [u32; 2] = [0xae46, 0xae49];

/// VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE.
const FLAG_READ: u32 = 1;
const FLAG_WRITE: u32 = 2;
/// IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_WRITEABLE, IOMMU_IOAS_MAP_READABLE.
const FLAG_FIXED: u32 = 1;
const FLAG_WRITEABLE: u32 = 2;
const FLAG_READABLE: u32 = 4;
/// VFIO_DMA_UNMAP_FLAG_ALL.
const FLAG_ALL: u32 = 2;
/// VFIO_DMA_MAP_FLAG_VADDR and VFIO_DMA_UNMAP_FLAG_VADDR: the call changes no mapping, but which process it belongs to.
const FLAG_VADDR: u32 = 4;
/// KVM_MEM_READONLY.
const SLOT_READONLY: u32 = 2;

const ENOENT: i32 = 2;

/// One ioctl of VFIO or iommufd, or one that gives memory to KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Type and number of the command.
    pub cmd: u32,
    /// File descriptor.
    pub fd: u32,
    /// IOVA of a map or unmap.
    pub iova: u64,
    /// Size of a map or unmap, as asked.
    pub size: u64,
    /// Flags of a map or unmap.
    pub flags: u32,
    /// Host address of a map; of a map by file, where the process has that part of it, and 0 if it has not.
    pub vaddr: u64,
    /// What the ioctl returned.
    pub ret: i32,
    /// errno if it failed.
    pub errno: i32,
    /// Bytes an unmap took out; the slot number of KVM memory.
    pub out: u64,
    /// When the call began, on the monotonic clock.
    pub start_ns: u64,
    pub duration_ns: u64,
    pub pid: u64,
    /// The IOAS that was made, mapped or unmapped in, or the object that was destroyed; 0 with type1.
    pub object: u32,
}

impl Call {
    /// Whether this is a map that worked.
    pub fn mapped(&self) -> bool {
        self.is_map() && self.ret == 0
    }

    /// Whether this is an unmap that worked.
    pub fn unmapped(&self) -> bool {
        self.is_unmap() && self.ret == 0
    }

    /// Whether this gives memory to KVM, or takes it away.
    pub fn gives_memory(&self) -> bool {
        SET_MEMORY.contains(&self.cmd) && self.ret == 0
    }

    /// Whether this is an attempt to map.
    pub fn is_map(&self) -> bool {
        matches!(self.cmd, MAP_DMA | IOAS_MAP | IOAS_MAP_FILE) && !self.is_handover()
    }

    /// Whether this hands mappings of type1 over to another process, or takes one over.
    fn is_handover(&self) -> bool {
        matches!(self.cmd, MAP_DMA | UNMAP_DMA) && self.flags & FLAG_VADDR != 0
    }

    /// Whether this took one mapping of type1 over from another process.
    pub fn takes_over(&self) -> bool {
        self.cmd == MAP_DMA && self.is_handover() && self.ret == 0
    }

    /// Whether this took all mappings of an iommufd over from another process.
    pub fn changes_process(&self) -> bool {
        self.cmd == CHANGE_PROCESS && self.ret == 0
    }

    /// Whether what it maps is named by a descriptor, of a file of memory or a dma-buf, and not by its address.
    pub fn is_by_file(&self) -> bool {
        self.cmd == IOAS_MAP_FILE
    }

    /// Whether this is an attempt to unmap.
    pub fn is_unmap(&self) -> bool {
        matches!(self.cmd, UNMAP_DMA | IOAS_UNMAP) && !self.is_handover()
    }

    /// Host address less guest or IO address: the same for all of one block of memory.
    pub fn distance(&self) -> u64 {
        self.vaddr.wrapping_sub(self.iova)
    }

    /// The container this maps or unmaps in.
    pub fn space(&self) -> Space {
        Space { fd: self.fd, ioas: self.object }
    }

    /// READ and WRITE of a map, in the words of type1.
    pub fn permission(&self) -> Result<u32> {
        if self.cmd == MAP_DMA {
            return Ok(self.flags);
        }
        ensure!(self.flags & FLAG_FIXED != 0, "a map without an address of its own: {:#x}", self.iova);
        let flag = |theirs, ours| if self.flags & theirs != 0 { ours } else { 0 };
        Ok(flag(FLAG_READABLE, FLAG_READ) | flag(FLAG_WRITEABLE, FLAG_WRITE))
    }

    /// Whether a group left its container here.
    fn leaves_container(&self) -> bool {
        self.cmd == UNSET_CONTAINER && self.ret == 0
    }

    /// Whether an object of iommufd ended here.
    fn destroys(&self) -> bool {
        self.cmd == DESTROY && self.ret == 0
    }

    /// Whether something that holds mappings was made here: a container's IOMMU, or an IOAS.
    pub fn makes_space(&self) -> bool {
        self.sets_iommu() || self.cmd == IOAS_ALLOC && self.ret == 0
    }

    /// Whether a container got its IOMMU, and its first group a domain, here.
    pub fn sets_iommu(&self) -> bool {
        self.cmd == SET_IOMMU && self.ret == 0
    }
}

/// Reads the witness's whole record.
pub fn parse(text: &str) -> Result<Vec<Call>> {
    let calls = text.lines().enumerate();
    calls
        .map(|(n, line)| parse_line(line).with_context(|| format!("witness line {}: `{line}`", n + 1)))
        .collect()
}

fn parse_line(line: &str) -> Result<Call> {
    let fields: Vec<&str> = line.split(' ').collect();
    ensure!(fields.len() == 13, "{} fields, expected 13", fields.len());
    let hex = |n: usize| u64::from_str_radix(fields[n], 16).context("not a hexadecimal number");
    Ok(Call {
        cmd: hex(0)?.try_into()?,
        fd: hex(1)?.try_into()?,
        iova: hex(2)?,
        size: hex(3)?,
        flags: hex(4)?.try_into()?,
        vaddr: hex(5)?,
        // Printed as an unsigned 32-bit number: the bits are the value.
        ret: u32::try_from(hex(6)?)?.cast_signed(),
        errno: fields[7].parse()?,
        out: hex(8)?,
        start_ns: fields[9].parse()?,
        duration_ns: fields[10].parse()?,
        pid: fields[11].parse()?,
        object: hex(12)?.try_into()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_over_is_not_mapping() {
        let lines = "3b72 9 0 0 6 0 0 0 a0000 1 1 7 0\n3b71 9 0 a0000 4 7f00 0 0 0 2 1 7 0\n\
                     3b71 9 0 a0000 3 7f00 0 0 0 3 1 7 0\n3b92 8 0 0 0 0 0 0 0 4 1 7 0\n";
        let calls = parse(lines).unwrap();
        let kinds = |call: &Call| (call.mapped(), call.unmapped(), call.takes_over(), call.changes_process());
        assert_eq!(
            calls.iter().map(kinds).collect::<Vec<_>>(),
            [
                (false, false, false, false),
                (false, false, true, false),
                (true, false, false, false),
                (false, false, false, true)
            ]
        );
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert!(parse("3b71 9 0 a0000 3").is_err());
    }
}
