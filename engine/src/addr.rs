//! Addresses and ranges: device addresses ([`Iova`]), host addresses ([`HostVa`]), and page sizes.
//!
//! The two address spaces are separate types without arithmetic operators. The checked methods below are the only way
//! to compute an address, so an IOVA cannot be used as a host address and no sum can wrap unnoticed.

use std::fmt;

/// Bytes of the smallest huge page, which one PMD maps.
pub const HUGE_PAGE: u64 = 2 << 20;

/// An I/O virtual address in bytes: the address that a device puts on the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// A host virtual address in bytes, of memory that its owner has agreed to expose to a device.
///
/// Outside this crate the only constructor is [`crate::host_va`], with a contract that makes mapping safe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostVa(u64);

impl HostVa {
    /// Wraps a raw address. The caller must meet the contract of [`crate::host_va`].
    pub(crate) const fn from_raw(address: u64) -> Self {
        Self(address)
    }

    /// The raw address in bytes.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// This address moved up by `bytes`; `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

/// A non-empty range of IOVAs with an inclusive last byte, so that it can end at the very end of the 64-bit space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    start: u64,
    last: u64,
}

impl IovaRange {
    /// The whole 64-bit space: the only range with a length that does not fit in 64 bits.
    pub const ALL: Self = Self { start: 0, last: u64::MAX };

    /// The range of `length` bytes from `start`; `None` if it is empty or would extend past 2^64 - 1.
    pub fn new(start: Iova, length: u64) -> Option<Self> {
        let last = start.0.checked_add(length.checked_sub(1)?)?;
        Some(Self { start: start.0, last })
    }

    /// The range from `start` to the inclusive `last`; `None` if `last` lies before `start`.
    pub fn from_bounds(start: u64, last: u64) -> Option<Self> {
        (start <= last).then_some(Self { start, last })
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The last byte, inclusive.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// The length in bytes. Exact for every range except [`IovaRange::ALL`], where it saturates at `u64::MAX`.
    pub const fn length(self) -> u64 {
        (self.last - self.start).saturating_add(1)
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// The bytes both ranges share.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::from_bounds(self.start.max(other.start), self.last.min(other.last))
    }

    /// The parts of this range before and after `hole`.
    pub fn without(self, hole: Self) -> (Option<Self>, Option<Self>) {
        if !self.overlaps(hole) {
            return if self.last < hole.start { (Some(self), None) } else { (None, Some(self)) };
        }
        let before = hole.start.checked_sub(1).and_then(|last| Self::from_bounds(self.start, last));
        let after = hole.last.checked_add(1).and_then(|start| Self::from_bounds(start, self.last));
        (before, after)
    }
}

/// A number of bytes in a message: `5242880 bytes (5 MiB)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        write!(f, "{} bytes", self.0)?;
        let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return Ok(());
        };
        // With one digit after the point, rounded down.
        let (whole, tenth) = (self.0 >> shift, ((self.0 >> (shift - 10)) % 1024) * 10 / 1024);
        if tenth == 0 { write!(f, " ({whole} {unit})") } else { write!(f, " ({whole}.{tenth} {unit})") }
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for HostVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x}]", self.start, self.last)
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bitmap of supported IOMMU page sizes: bit n stands for 2^n bytes (VFIO's `iova_pgsizes`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageSizes(u64);

impl PageSizes {
    /// 4 KiB pages only: the minimum that any IOMMU driver supports.
    pub const FOUR_KIB: Self = Self(0x1000);

    /// Converts the kernel's bitmap. If it is empty, or has no size of 4 KiB or more, the result is 4 KiB only.
    pub fn from_bitmap(bitmap: u64) -> Self {
        // Sizes below the CPU's page are useless, because the kernel pins whole pages.
        let usable = bitmap & !0xfff;
        if usable == 0 { Self::FOUR_KIB } else { Self(usable) }
    }

    /// The raw bitmap.
    pub const fn bitmap(self) -> u64 {
        self.0
    }

    /// The smallest page in bytes: every address and length must be a multiple of it.
    pub const fn smallest(self) -> u64 {
        1 << self.0.trailing_zeros()
    }

    /// The steps between the page sizes.
    pub const fn superpages(self) -> Superpages {
        if self.0.count_ones() == 1 {
            return Superpages::Unknown;
        }
        // AMD's bitmap has a gap at the top, so only the step above a base page is checked.
        if self.0 & (self.smallest() << 1) != 0 { Superpages::Fine } else { Superpages::Coarse }
    }
}

/// The steps between an IOMMU's page sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Superpages {
    /// Only one size is known. iommufd reports nothing else.
    #[default]
    Unknown,
    /// A few sizes, one per page-table level: VT-d's 4 KiB, 2 MiB, 1 GiB. Memory that is not aligned to one of them
    /// is mapped with the next smaller size.
    Coarse,
    /// Every power of two up to some size, as in AMD-Vi's v1 page tables. Any aligned block is one page.
    Fine,
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_reach_both_ends_of_the_space() {
        let top = IovaRange::new(Iova(u64::MAX - 0xfff), 0x1000).unwrap();
        assert_eq!(top.last(), u64::MAX);
        assert_eq!(top.length(), 0x1000);
        assert_eq!(IovaRange::new(Iova(u64::MAX - 0xfff), 0x1001), None);
        assert_eq!(IovaRange::new(Iova(0), 0), None);
        assert_eq!(IovaRange::new(Iova(0), u64::MAX).unwrap().last(), u64::MAX - 1);
        assert_eq!(IovaRange::ALL.length(), u64::MAX);
    }

    #[test]
    fn a_hole_leaves_what_is_outside_it() {
        let range = |a, b| IovaRange::from_bounds(a, b).unwrap();
        assert_eq!(range(10, 19).without(range(12, 13)), (Some(range(10, 11)), Some(range(14, 19))));
        assert_eq!(range(10, 19).without(range(0, 13)), (None, Some(range(14, 19))));
        assert_eq!(range(10, 19).without(range(15, 30)), (Some(range(10, 14)), None));
        assert_eq!(range(10, 19).without(range(0, 30)), (None, None));
        assert_eq!(range(10, 19).without(range(20, 30)), (Some(range(10, 19)), None));
        assert_eq!(range(10, 19).without(range(0, 9)), (None, Some(range(10, 19))));
        assert_eq!(IovaRange::ALL.without(range(0, u64::MAX)), (None, None));
    }

    #[test]
    fn bytes_are_written_exactly_and_readably() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(0), "0 bytes");
        assert_eq!(text(1023), "1023 bytes");
        assert_eq!(text(4096), "4096 bytes (4 KiB)");
        assert_eq!(text(5 << 20), "5242880 bytes (5 MiB)");
        assert_eq!(text((3 << 30) / 2), "1610612736 bytes (1.5 GiB)");
        assert_eq!(text((1 << 30) - 1), "1073741823 bytes (1023.9 MiB)");
        assert_eq!(text(u64::MAX), "18446744073709551615 bytes (16777215.9 TiB)");
    }

    #[test]
    fn page_sizes_never_promise_less_than_a_cpu_page() {
        assert_eq!(PageSizes::from_bitmap(0x4020_1000).smallest(), 0x1000);
        assert_eq!(PageSizes::from_bitmap(0x1).smallest(), 0x1000);
        assert_eq!(PageSizes::from_bitmap(0).smallest(), 0x1000);
        assert_eq!(PageSizes::from_bitmap(0x2001_0000).smallest(), 0x10000);
    }

    #[test]
    fn the_style_of_superpages_is_seen_in_the_bitmap() {
        let style = |bitmap| PageSizes::from_bitmap(bitmap).superpages();
        assert_eq!(style(0x4020_1000), Superpages::Coarse, "VT-d");
        assert_eq!(style(0x000f_ff7f_ffff_f000), Superpages::Fine, "AMD-Vi");
        assert_eq!(style(0xffff_ffff_ffff_f000), Superpages::Fine, "virtio-iommu");
        assert_eq!(style(0x1000), Superpages::Unknown);
        assert_eq!(style(0), Superpages::Unknown);
        assert_eq!(style(0x2001_0000), Superpages::Coarse, "64 KiB granule");
    }
}
