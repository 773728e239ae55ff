//! Sizes of memory, as people read them.

use std::fmt;

/// 1 GiB.
pub const GIB: u64 = 1 << 30;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl fmt::Display for Size {
    /// In the largest unit of which there is one, with a decimal if it is not a whole number of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{} bytes", self.0);
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        // Rounded down: a limit must not look larger than it is.
        match (u128::from(rest) * 10) >> shift {
            0 => write!(f, "{whole} {unit}"),
            tenths => write!(f, "{whole}.{tenths} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_in_their_largest_unit() {
        let printed = [0, 4096, 8 << 20, 1536 << 20, 512 << 30, (1 << 40) - 1, u64::MAX];
        let printed = printed.map(|bytes| Size(bytes).to_string());
        let expected = ["0 bytes", "4 KiB", "8 MiB", "1.5 GiB", "512 GiB", "1023.9 GiB", "16777215.9 TiB"];
        assert_eq!(printed, expected);
    }
}
