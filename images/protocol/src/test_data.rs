//! The expected bytes: SplitMix64 counted by position, so that any part of a disk can be made or
//! checked without making what lies before it.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The 8 bytes at `index * 8` of the stream of `seed`.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `bytes` with the stream of `seed` as it stands at `offset` (both whole words).
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8));
    for (index, chunk) in (offset / 8..).zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes());
    }
}

/// Where `bytes` first differ from the stream of `seed` at `offset`: the offset of that word.
pub fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8));
    (offset / 8..)
        .zip(bytes.chunks_exact(8))
        .find(|(index, chunk)| *chunk != word(seed, *index).to_le_bytes())
        .map(|(index, _)| index * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The first three outputs of SplitMix64 seeded with 1234567 (the reference vector of its
        // authors).
        assert_eq!(word(1234567, 0), 6457827717110365317);
        assert_eq!(word(1234567, 1), 3203168211198807973);
        assert_eq!(word(1234567, 2), 9817491932198370423);
    }

    #[test]
    fn parts_join() {
        let mut whole = [0u8; 64];
        fill(7, 0, &mut whole);
        let mut part = [0u8; 24];
        fill(7, 16, &mut part);
        assert_eq!(part, whole[16..40]);
        assert_eq!(first_difference(7, 16, &part), None);
    }

    #[test]
    fn one_flipped_bit_is_found() {
        let mut bytes = [0u8; 4096];
        fill(9, 8192, &mut bytes);
        bytes[100] ^= 4;
        assert_eq!(first_difference(9, 8192, &bytes), Some(8192 + 96));
    }
}
