//! Parses the description of a type1 container: `struct vfio_iommu_type1_info` and the chain of capabilities after
//! it.

use std::mem::{offset_of, size_of};

use vfio_bindings::bindings::vfio as uapi;
use vfio_bindings::bindings::vfio::{
    vfio_info_cap_header as Header, vfio_iommu_type1_info as Info,
    vfio_iommu_type1_info_cap_iova_range as Ranges, vfio_iommu_type1_info_cap_migration as CapMigration,
    vfio_iommu_type1_info_dma_avail as CapDmaAvail, vfio_iova_range as Range,
};

use crate::addr::IovaRange;

const _: () = {
    assert!(size_of::<Info>() == 24 && offset_of!(Info, argsz) == 0 && offset_of!(Info, flags) == 4);
    assert!(offset_of!(Info, iova_pgsizes) == 8 && offset_of!(Info, cap_offset) == 16);
    assert!(size_of::<Header>() == 8 && offset_of!(Header, id) == 0);
    assert!(offset_of!(Header, version) == 2 && offset_of!(Header, next) == 4);
    assert!(size_of::<Ranges>() == 16 && offset_of!(Ranges, nr_iovas) == 8);
    assert!(offset_of!(Ranges, iova_ranges) == 16);
    assert!(size_of::<Range>() == 16 && offset_of!(Range, start) == 0 && offset_of!(Range, end) == 8);
    assert!(size_of::<CapMigration>() == 32 && offset_of!(CapMigration, pgsize_bitmap) == 16);
    assert!(offset_of!(CapMigration, max_dirty_bitmap_size) == 24);
    assert!(size_of::<CapDmaAvail>() == 12 && offset_of!(CapDmaAvail, avail) == 8);
};

/// The only version of each capability so far. The layout of other versions is unknown.
const KNOWN_VERSION: u16 = 1;

/// A container's description, as far as the kernel reports it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Type1Info {
    /// Bitmap of IOMMU page sizes; 0 if the kernel does not report them.
    pub(crate) page_sizes: u64,
    /// IOVAs that can be mapped, ascending; empty if the kernel does not report them.
    pub(crate) iova_ranges: Vec<IovaRange>,
    /// The number of entries that still fit.
    pub(crate) dma_avail: Option<u32>,
    /// The properties of dirty tracking.
    pub(crate) migration: Option<Migration>,
}

/// The properties of a container's dirty tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Migration {
    /// Bitmap of the page sizes for which it can track dirty pages.
    pub(crate) page_sizes: u64,
    /// Maximum size of a bitmap in bytes.
    pub(crate) max_bitmap_bytes: u64,
}

/// The reason why a description cannot be parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    /// The description ends inside the fixed part.
    Short,
    /// A capability extends outside the description.
    OutOfBounds,
    /// The capabilities overlap, or their chain has a loop.
    Endless,
    /// A range of IOVAs ends before it starts.
    BackwardRange,
}

impl Malformed {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Short => "the container's description ends too early",
            Self::OutOfBounds => "a capability of the container reaches outside its description",
            Self::Endless => "the container's capabilities form no chain",
            Self::BackwardRange => "a range of valid IOVAs ends before it starts",
        }
    }
}

/// Parses a description. `bytes` is all of it: nothing is trusted, because a length that is wrong by one byte would
/// read memory out of bounds in the process of the virtual machine.
pub(crate) fn parse(bytes: &[u8]) -> Result<Type1Info, Malformed> {
    if bytes.len() < size_of::<Info>() {
        return Err(Malformed::Short);
    }
    let flags = u32_at(bytes, offset_of!(Info, flags))?;
    let mut info = Type1Info::default();
    if flags & uapi::VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = u64_at(bytes, offset_of!(Info, iova_pgsizes))?;
    }
    if flags & uapi::VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(info);
    }
    let mut offset = u32_at(bytes, offset_of!(Info, cap_offset))?;
    // Capabilities do not overlap, so there can be no more of them than headers fit in the description.
    for _ in 0..=bytes.len() / size_of::<Header>() {
        // An offset of 0 ends the chain; an offset into the fixed part is as invalid as one past the end.
        let start = match usize::try_from(offset) {
            Ok(0) => return Ok(info),
            Ok(start) if start >= size_of::<Info>() => start,
            _ => return Err(Malformed::OutOfBounds),
        };
        let capability = bytes.get(start..).ok_or(Malformed::OutOfBounds)?;
        info.add(capability)?;
        offset = u32_at(capability, offset_of!(Header, next))?;
    }
    Err(Malformed::Endless)
}

impl Type1Info {
    /// Parses the capability at the start of `bytes`. Ignores unknown ones.
    fn add(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let id = u32::from(u16_at(bytes, offset_of!(Header, id))?);
        if u16_at(bytes, offset_of!(Header, version))? != KNOWN_VERSION {
            return Ok(());
        }
        match id {
            uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let count = u32_at(bytes, offset_of!(Ranges, nr_iovas))?;
                let length =
                    usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<Range>()));
                let ranges = bytes
                    .get(offset_of!(Ranges, iova_ranges)..)
                    .and_then(|rest| rest.get(..length?))
                    .ok_or(Malformed::OutOfBounds)?;
                self.iova_ranges =
                    ranges.chunks_exact(size_of::<Range>()).map(range).collect::<Result<_, _>>()?;
                self.iova_ranges.sort_unstable_by_key(|range| range.start());
            }
            uapi::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                self.migration = Some(Migration {
                    page_sizes: u64_at(bytes, offset_of!(CapMigration, pgsize_bitmap))?,
                    max_bitmap_bytes: u64_at(bytes, offset_of!(CapMigration, max_dirty_bitmap_size))?,
                });
            }
            uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                self.dma_avail = Some(u32_at(bytes, offset_of!(CapDmaAvail, avail))?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Parses one element of the IOVA range capability.
fn range(bytes: &[u8]) -> Result<IovaRange, Malformed> {
    let start = u64_at(bytes, offset_of!(Range, start))?;
    let last = u64_at(bytes, offset_of!(Range, end))?;
    IovaRange::from_bounds(start, last).ok_or(Malformed::BackwardRange)
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Malformed> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(Malformed::OutOfBounds)
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, Malformed> {
    array_at(bytes, offset).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, Malformed> {
    array_at(bytes, offset).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, Malformed> {
    array_at(bytes, offset).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fixed part: pages of 4K, 2M and 1G, and capabilities from `cap_offset` on.
    fn fixed(cap_offset: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((uapi::VFIO_IOMMU_INFO_PGSIZES | uapi::VFIO_IOMMU_INFO_CAPS).to_ne_bytes());
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        bytes.extend(cap_offset.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes
    }

    fn capability(bytes: &mut Vec<u8>, id: u32, version: u16, next: u32, body: &[&[u8]]) {
        bytes.extend(u16::try_from(id).unwrap().to_ne_bytes());
        bytes.extend(version.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body.concat());
    }

    /// The result of a 6.12 kernel on an emulated VT-d: migration, then dma_avail, then two ranges around the MSI
    /// window.
    fn kernel() -> Vec<u8> {
        let mut bytes = fixed(24);
        let zero = 0u32.to_ne_bytes();
        let migration: &[&[u8]] = &[&zero, &zero, &0x1000u64.to_ne_bytes(), &(1u64 << 28).to_ne_bytes()];
        capability(&mut bytes, uapi::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, 56, migration);
        let avail: &[&[u8]] = &[&65535u32.to_ne_bytes(), &zero];
        capability(&mut bytes, uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, 72, avail);
        let ranges: &[&[u8]] = &[
            &2u32.to_ne_bytes(),
            &zero,
            &0xfef0_0000u64.to_ne_bytes(),
            &0x7f_ffff_ffffu64.to_ne_bytes(),
            &0u64.to_ne_bytes(),
            &0xfedf_ffffu64.to_ne_bytes(),
        ];
        capability(&mut bytes, uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, 0, ranges);
        bytes
    }

    fn expected() -> Type1Info {
        let range = |start, last| IovaRange::from_bounds(start, last).unwrap();
        Type1Info {
            page_sizes: 0x4020_1000,
            iova_ranges: vec![range(0, 0xfedf_ffff), range(0xfef0_0000, 0x7f_ffff_ffff)],
            dma_avail: Some(65535),
            migration: Some(Migration { page_sizes: 0x1000, max_bitmap_bytes: 1 << 28 }),
        }
    }

    fn put(bytes: &mut [u8], offset: usize, value: u32) {
        bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }

    #[test]
    fn a_whole_description_is_read() {
        assert_eq!(parse(&kernel()), Ok(expected()));
    }

    #[test]
    fn without_flags_nothing_is_believed() {
        let mut bytes = kernel();
        put(&mut bytes, 4, 0);
        assert_eq!(parse(&bytes), Ok(Type1Info::default()));
        put(&mut bytes, 4, uapi::VFIO_IOMMU_INFO_PGSIZES);
        assert_eq!(parse(&bytes), Ok(Type1Info { page_sizes: 0x4020_1000, ..Default::default() }));
        assert_eq!(parse(&fixed(0)), Ok(Type1Info { page_sizes: 0x4020_1000, ..Default::default() }));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = kernel();
        for length in 0..24 {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::Short), "{length} bytes");
        }
        // The padding after dma_avail belongs to no capability; everything else is needed.
        for length in 24..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::OutOfBounds), "{length} bytes");
        }
    }

    #[test]
    fn loops_end() {
        let next_of_last = 72 + offset_of!(Header, next);
        for target in [24, 56, 72] {
            let mut bytes = kernel();
            put(&mut bytes, next_of_last, target);
            assert_eq!(parse(&bytes), Err(Malformed::Endless), "back to {target}");
        }
    }

    #[test]
    fn offsets_outside_are_refused() {
        let length = u32::try_from(kernel().len()).unwrap();
        for target in [1, 23, length - 7, length, length + 1, u32::MAX - 7, u32::MAX] {
            let mut bytes = kernel();
            put(&mut bytes, offset_of!(Info, cap_offset), target);
            assert_eq!(parse(&bytes), Err(Malformed::OutOfBounds), "first at {target}");
            let mut bytes = kernel();
            put(&mut bytes, 72 + offset_of!(Header, next), target);
            assert_eq!(parse(&bytes), Err(Malformed::OutOfBounds), "next at {target}");
        }
    }

    #[test]
    fn range_counts_are_bounded() {
        for count in [3, 0x1000_0000, u32::MAX] {
            let mut bytes = kernel();
            put(&mut bytes, 72 + offset_of!(Ranges, nr_iovas), count);
            assert_eq!(parse(&bytes), Err(Malformed::OutOfBounds), "{count} ranges");
        }
        let mut bytes = kernel();
        put(&mut bytes, 72 + offset_of!(Ranges, nr_iovas), 0);
        assert_eq!(parse(&bytes).unwrap().iova_ranges, []);
    }

    #[test]
    fn a_backward_range_is_refused() {
        let mut bytes = kernel();
        let first = 72 + offset_of!(Ranges, iova_ranges);
        bytes[first + 8..first + 16].fill(0);
        assert_eq!(parse(&bytes), Err(Malformed::BackwardRange));
    }

    #[test]
    fn unknown_capabilities_and_versions_are_passed_over() {
        let mut bytes = kernel();
        bytes[24] = 0x77;
        assert_eq!(parse(&bytes), Ok(Type1Info { migration: None, ..expected() }));
        let mut bytes = kernel();
        bytes[56 + offset_of!(Header, version)] = 2;
        assert_eq!(parse(&bytes), Ok(Type1Info { dma_avail: None, ..expected() }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }

        /// Random bytes rarely contain a chain, so these start from a description that does.
        #[test]
        fn damaged_descriptions_never_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = kernel();
            for (index, value) in damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            bytes.truncate(length.index(bytes.len() + 1));
            if let Ok(info) = parse(&bytes) {
                prop_assert!(info.iova_ranges.is_sorted_by_key(|range| range.start()));
            }
        }
    }
}
