//! What L1 lets the devices of L2 access, and the bytes that are moved.

use serde::{Deserialize, Serialize};

use crate::test_data;

/// The virtio-serial port that L2 gets its orders from, one JSON object per line.
pub const PORT: &str = "vft.orders";

/// The smallest page of the IOMMU, which translates each page on its own.
pub const PAGE: u64 = 4096;
/// The maximum length of an access, and how much of a device's buffer it has for itself.
pub const SLOT: u64 = 32;
/// The buffer's first half is what a device writes, the second half is what it reads.
pub const HALF: u64 = PAGE / 2;
/// Accesses that a device makes for one order.
pub const SLOTS: u64 = HALF / SLOT;
/// What is in the second half before a read: no byte of a canary.
pub const UNREAD: u8 = 2;
/// What a device reads in place of what it may not: nothing, or one of these.
const NOTHING_READ: [u8; 3] = [UNREAD, 0, 0xff];

/// The bytes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub at: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The devices read.
    Read,
    /// The devices write.
    Write,
    /// L2's processor puts canaries into a BAR.
    Fill,
    /// L2's processor reads a BAR.
    Look,
}

/// What L2 does next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub number: u64,
    pub action: Action,
    pub accesses: Vec<Access>,
}

impl Access {
    /// What devices try at an edge, where `next` is the first address after it: two bytes before it, one after it, bytes
    /// on both sides at once, and bytes on each side with a page in between. No access leaves the 64-bit space.
    ///
    /// The last byte before the edge is not accessed alone: QEMU's virtio-iommu also translates the byte before each
    /// mapping.
    pub fn around(next: u128) -> Vec<Self> {
        let (page, slot) = (i128::from(PAGE), i128::from(SLOT));
        let places = [(-2, 2), (0, 1), (-4, 8), (-page - slot, slot), (page, slot)];
        let access = |(from, bytes): (i128, i128)| {
            let at = i128::try_from(next).ok()? + from;
            u64::try_from(at + (bytes - 1)).ok()?;
            Some(Self { at: u64::try_from(at).ok()?, bytes: u64::try_from(bytes).ok()? })
        };
        places.into_iter().filter_map(access).collect()
    }

    /// What it is in each page: the offset in the access, and the bytes.
    pub fn parts(self) -> impl Iterator<Item = (usize, Self)> {
        let first = self.bytes.min(PAGE - self.at % PAGE);
        let parts = [(0, first), (first, self.bytes - first)];
        parts
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(move |(offset, bytes)| (offset as usize, Self { at: self.at + offset, bytes }))
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.at <= other.at + (other.bytes - 1) && other.at <= self.at + (self.bytes - 1)
    }
}

/// What is in memory from `at` on, a multiple of 8, before devices attack it: odd bytes below 128.
pub fn canary(seed: u64, at: u64, bytes: &mut [u8]) {
    test_data::fill(seed, at, bytes);
    bytes.iter_mut().for_each(|byte| *byte = *byte & 0x7f | 1);
}

/// What the access of that number writes, if it writes: even bytes from 128 on.
pub fn written(seed: u64, order: u64, access: u64) -> [u8; SLOT as usize] {
    let mut bytes = [0; SLOT as usize];
    test_data::fill(seed ^ order.rotate_left(32), access * SLOT, &mut bytes);
    bytes.map(|byte| byte & 0x7e | 0x80)
}

/// Whether that is what a device gets whose read is refused.
pub fn is_nothing(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| NOTHING_READ.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(next: u128) -> Vec<(u64, u64)> {
        Access::around(next).into_iter().map(|access| (access.at, access.bytes)).collect()
    }

    #[test]
    fn accesses_are_on_both_sides_of_an_edge() {
        let expected = [(0x4ffe, 2), (0x5000, 1), (0x4ffc, 8), (0x3fe0, 32), (0x6000, 32)];
        assert_eq!(around(0x5000), expected);
    }

    #[test]
    fn there_is_nothing_beyond_the_ends() {
        assert_eq!(around(0), [(0, 1), (0x1000, 32)]);
        assert_eq!(around(1 << 64), [(u64::MAX - 1, 2), (u64::MAX - 4096 - 31, 32)]);
    }

    #[test]
    fn an_access_has_a_part_in_each_page() {
        let parts = |at, bytes| -> Vec<(usize, u64, u64)> {
            Access { at, bytes }.parts().map(|(offset, part)| (offset, part.at, part.bytes)).collect()
        };
        assert_eq!(parts(0x4ffc, 8), [(0, 0x4ffc, 4), (4, 0x5000, 4)]);
        assert_eq!(parts(0x5000, 32), [(0, 0x5000, 32)]);
        assert_eq!(parts(u64::MAX - 1, 2), [(0, u64::MAX - 1, 2)]);
    }

    #[test]
    fn canaries_and_what_is_written_and_nothing_differ() {
        let mut bytes = [0; 4096];
        canary(1, 0x5000, &mut bytes);
        assert!(!bytes.iter().any(|byte| is_nothing(&[*byte])));
        assert!(
            !(0..64)
                .any(|n| written(1, 2, n).iter().any(|byte| is_nothing(&[*byte]) || bytes.contains(byte)))
        );
        assert_ne!(written(1, 2, 3), written(1, 2, 4));
        assert_ne!(written(1, 2, 3), written(1, 3, 3));
    }
}
