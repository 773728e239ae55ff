//! The calls that map and unmap, and their arguments as the kernel reads them.

use vfio_fast_engine::limits::MemlockScope;

use crate::aside::Aside;

/// The type of VFIO's and iommufd's commands, `;`.
const TYPE: u32 = 0x3b;
const VFIO_IOMMU_MAP_DMA: u32 = 0x3b71;
const VFIO_IOMMU_UNMAP_DMA: u32 = 0x3b72;
const IOMMU_IOAS_MAP: u32 = 0x3b85;
const IOMMU_IOAS_UNMAP: u32 = 0x3b86;
const IOMMU_IOAS_MAP_FILE: u32 = 0x3b8f;

/// VFIO_DMA_MAP_FLAG_READ and VFIO_DMA_MAP_FLAG_WRITE.
const READ: u32 = 1;
const WRITE: u32 = 2;
/// IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_WRITEABLE and IOMMU_IOAS_MAP_READABLE.
const FIXED_IOVA: u32 = 1;
const WRITEABLE: u32 = 2;
const READABLE: u32 = 4;

/// The longest argument.
pub const LONGEST: usize = 40;

const PAGE: u64 = 4096;

/// A call that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Map,
    Unmap,
    IoasMap,
    IoasUnmap,
    IoasMapFile,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Map, Self::Unmap, Self::IoasMap, Self::IoasUnmap, Self::IoasMapFile];

    /// The call with this command, of which the kernel reads 32 bits. `None`, after one comparison, for everything else.
    pub fn of(command: u64) -> Option<Self> {
        let command = command as u32;
        if command >> 8 != TYPE {
            return None;
        }
        match command {
            VFIO_IOMMU_MAP_DMA => Some(Self::Map),
            VFIO_IOMMU_UNMAP_DMA => Some(Self::Unmap),
            IOMMU_IOAS_MAP => Some(Self::IoasMap),
            IOMMU_IOAS_UNMAP => Some(Self::IoasUnmap),
            IOMMU_IOAS_MAP_FILE => Some(Self::IoasMapFile),
            _ => None,
        }
    }

    /// The name in the summary.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Map => "type1 map",
            Self::Unmap => "type1 unmap",
            Self::IoasMap => "iommufd map",
            Self::IoasUnmap => "iommufd unmap",
            Self::IoasMapFile => "iommufd map by file",
        }
    }

    pub const fn is_map(self) -> bool {
        matches!(self, Self::Map | Self::IoasMap | Self::IoasMapFile)
    }

    /// Bytes of the argument.
    pub const fn length(self) -> usize {
        match self {
            Self::Map => 32,
            Self::Unmap | Self::IoasUnmap => 24,
            Self::IoasMap | Self::IoasMapFile => 40,
        }
    }

    /// What the kernel counts the memory against.
    pub const fn scope(self) -> MemlockScope {
        match self {
            Self::Map | Self::Unmap => MemlockScope::Process,
            Self::IoasMap | Self::IoasUnmap | Self::IoasMapFile => MemlockScope::User,
        }
    }

    /// Bytes that the call maps, or after it has succeeded, that it unmapped.
    pub fn bytes(self, argument: &[u8]) -> u64 {
        match self {
            Self::Map | Self::IoasMap | Self::IoasMapFile => word(argument, 24),
            Self::Unmap | Self::IoasUnmap => word(argument, 16),
        }
    }
}

/// Memory of the program that a device is to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    pub address: u64,
    pub bytes: u64,
}

impl Memory {
    /// The memory that a map call names, if it is an ordinary one: whatever the kernel might refuse, or read in another
    /// way, is not.
    pub fn of(kind: Kind, argument: &[u8]) -> Result<Self, Aside> {
        let (size, flags) = (half(argument, 0), half(argument, 4));
        let (known, writes, address) = match kind {
            Kind::Map => (READ | WRITE, WRITE, word(argument, 8)),
            Kind::IoasMap => (FIXED_IOVA | WRITEABLE | READABLE, WRITEABLE, word(argument, 16)),
            Kind::IoasMapFile => return Err(Aside::ByFile),
            Kind::Unmap | Kind::IoasUnmap => return Err(Aside::NotUnderstood),
        };
        let bytes = kind.bytes(argument);
        let whole = address % PAGE == 0 && bytes % PAGE == 0 && address.checked_add(bytes).is_some();
        if (size as usize) < kind.length() || flags & !known != 0 || bytes == 0 || !whole {
            return Err(Aside::NotUnderstood);
        }
        if flags & writes == 0 {
            return Err(Aside::ReadOnly);
        }
        Ok(Self { address, bytes })
    }
}

fn half(argument: &[u8], at: usize) -> u32 {
    let bytes = argument.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

fn word(argument: &[u8], at: usize) -> u64 {
    let bytes = argument.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_ne_bytes(bytes.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type1(argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64) -> Vec<u8> {
        let mut bytes = [argsz, flags].map(u32::to_ne_bytes).concat();
        bytes.extend([vaddr, iova, size].map(u64::to_ne_bytes).concat());
        bytes
    }

    fn ioas(size: u32, flags: u32, address: u64, length: u64) -> Vec<u8> {
        let mut bytes = [size, flags, 7, 0].map(u32::to_ne_bytes).concat();
        bytes.extend([address, length, 0x5000].map(u64::to_ne_bytes).concat());
        bytes
    }

    #[test]
    fn the_commands_are_those_of_the_kernel() {
        for kind in Kind::ALL {
            assert!(kind.length() <= LONGEST && Kind::ALL[kind as usize] == kind);
        }
        assert_eq!(Kind::of(0x3b71), Some(Kind::Map));
        // The kernel ignores the upper half.
        assert_eq!(Kind::of(0xffff_ffff_0000_3b86), Some(Kind::IoasUnmap));
        for other in [0, 0x3b64, 0x3b70, 0x3b73, 0x3b84, 0x1_3b71, 0x4000_3b71, 0xae46] {
            assert_eq!(Kind::of(other), None, "{other:#x}");
        }
    }

    #[test]
    fn an_ordinary_map_is_understood() {
        let memory = Ok(Memory { address: 0x7000, bytes: 0x3000 });
        for flags in [WRITE, READ | WRITE] {
            assert_eq!(Memory::of(Kind::Map, &type1(32, flags, 0x7000, 0, 0x3000)), memory);
        }
        let flags = FIXED_IOVA | WRITEABLE | READABLE;
        assert_eq!(Memory::of(Kind::IoasMap, &ioas(40, flags, 0x7000, 0x3000)), memory);
        assert_eq!(Kind::IoasMap.bytes(&ioas(40, flags, 0x7000, 0x3000)), 0x3000);
    }

    #[test]
    fn whatever_is_in_doubt_is_passed_on() {
        let aside = |argument: Vec<u8>| Memory::of(Kind::Map, &argument).unwrap_err();
        assert_eq!(aside(type1(32, READ, 0x7000, 0, 0x3000)), Aside::ReadOnly);
        for argument in [
            type1(31, 3, 0x7000, 0, 0x3000),
            type1(32, 4, 0x7000, 0, 0x3000),
            type1(32, 7, 0x7000, 0, 0x3000),
            type1(32, 3, 0x7001, 0, 0x3000),
            type1(32, 3, 0x7000, 0, 0x3001),
            type1(32, 3, 0x7000, 0, 0),
            type1(32, 3, 0u64.wrapping_sub(0x1000), 0, 0x2000),
            Vec::new(),
        ] {
            assert_eq!(aside(argument), Aside::NotUnderstood);
        }
        let aside = |argument: Vec<u8>| Memory::of(Kind::IoasMap, &argument).unwrap_err();
        assert_eq!(aside(ioas(40, 8 | WRITEABLE, 0x7000, 0x3000)), Aside::NotUnderstood);
        assert_eq!(aside(ioas(40, READABLE, 0x7000, 0x3000)), Aside::ReadOnly);
        assert_eq!(Memory::of(Kind::IoasMapFile, &[]), Err(Aside::ByFile));
    }
}
