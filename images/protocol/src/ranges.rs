//! Address ranges with a permission, in one normal form, so that two descriptions of what a
//! device can access are comparable however they are divided.

use std::fmt;

/// `start..=last`, reachable for reading, and for writing if `write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// First address.
    pub start: u64,
    /// Last address, inclusive.
    pub last: u64,
    /// Whether the device may write.
    pub write: bool,
}

impl Reach {
    /// So many bytes from `start` on, reachable for reading and writing.
    pub fn writable(start: u64, bytes: u64) -> Self {
        Self { start, last: start + (bytes - 1), write: true }
    }

    /// How many bytes.
    pub fn bytes(self) -> u64 {
        self.last - self.start + 1
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let perm = if self.write { "rw" } else { "ro" };
        write!(f, "[{:#x}, {:#x}] {perm}", self.start, self.last)
    }
}

/// Sorts and joins neighbours of equal permission. Overlaps are kept as they are: they are never
/// right, so a comparison has to fail on them.
pub fn normalise(mut reach: Vec<Reach>) -> Vec<Reach> {
    reach.sort_unstable();
    let mut out: Vec<Reach> = Vec::with_capacity(reach.len());
    for next in reach {
        match out.last_mut() {
            Some(prev) if prev.last.checked_add(1) == Some(next.start) && prev.write == next.write => {
                prev.last = next.last;
            }
            _ => out.push(next),
        }
    }
    out
}

/// What is in `a` and not in `b`, or the other way round, in words; empty if both are equal.
pub fn differences(a_name: &str, a: Vec<Reach>, b_name: &str, b: Vec<Reach>) -> Vec<String> {
    let (a, b) = (normalise(a), normalise(b));
    let only = |name: &str, these: &[Reach], those: &[Reach]| -> Vec<String> {
        let extra = these.iter().filter(|r| !those.contains(r));
        extra.map(|r| format!("only {name}: {r}")).collect()
    };
    let mut out = only(a_name, &a, &b);
    out.extend(only(b_name, &b, &a));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rw(start: u64, last: u64) -> Reach {
        Reach { start, last, write: true }
    }

    #[test]
    fn cuts_do_not_matter() {
        let fine = vec![rw(0x2000, 0x2fff), rw(0, 0xfff), rw(0x1000, 0x1fff)];
        assert!(differences("a", fine, "b", vec![rw(0, 0x2fff)]).is_empty());
    }

    #[test]
    fn permission_matters() {
        let ro = Reach { write: false, ..rw(0, 0xfff) };
        assert_eq!(differences("a", vec![ro], "b", vec![rw(0, 0xfff)]).len(), 2);
    }

    #[test]
    fn the_end_of_the_address_space_does_not_wrap() {
        let all = vec![rw(0, u64::MAX), rw(0, 0xfff)];
        assert_eq!(normalise(all).len(), 2);
    }
}
