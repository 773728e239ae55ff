//! Calls as text in which two runs of the same program are equal.

use super::{Call, VFIO};

/// The calls of VFIO and iommufd as text in which two runs of the same program are equal: host addresses become the
/// ordinal of the memory they belong to, descriptors the ordinal of their first use, and times
/// and threads are left out. A device that comes back has its BARs where there is room: memory is counted anew then.
pub fn sequence(calls: &[Call]) -> Vec<String> {
    let mut memories: Vec<u64> = Vec::new();
    let mut fds: Vec<u32> = Vec::new();
    let mut lines = Vec::with_capacity(calls.len());
    for call in calls.iter().filter(|c| c.cmd >> 8 == VFIO) {
        let fd = ordinal(&mut fds, call.fd);
        if call.leaves_container() || call.destroys() {
            memories.clear();
        }
        let memory = if call.is_map() {
            // Pieces of one block of host memory have the same distance to their IOVA.
            format!(" m{}", ordinal(&mut memories, call.distance()))
        } else {
            String::new()
        };
        lines.push(format!(
            "{:#x} f{fd} iova={:#x} size={:#x} flags={:#x} ret={} errno={} out={:#x} object={}{memory}",
            call.cmd, call.iova, call.size, call.flags, call.ret, call.errno, call.out, call.object
        ));
    }
    lines
}

fn ordinal<T: PartialEq>(seen: &mut Vec<T>, value: T) -> usize {
    seen.iter().position(|s| *s == value).unwrap_or_else(|| {
        seen.push(value);
        seen.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const LOW: &str = "3b71 9 0 a0000 3 7f0000000000 0 0 0 100 10 77 0\n";
    const HIGH: &str = "3b71 9 100000 7ff00000 3 7f0000100000 0 0 0 200 20 77 0\n";

    #[test]
    fn sequences_do_not_depend_on_addresses() {
        let here = sequence(&parse(&format!("{LOW}{HIGH}")).unwrap());
        let there = format!("{LOW}{HIGH}").replace("7f00", "7e10").replace(" 9 ", " b ");
        assert_eq!(here, sequence(&parse(&there).unwrap()));
        let other = sequence(&parse(&format!("{HIGH}{LOW}")).unwrap());
        assert_ne!(here, other);
        let again = |address| {
            let back = LOW.replace("7f0000000000", address);
            sequence(&parse(&format!("{LOW}3b69 8 0 0 0 0 0 0 0 150 5 77 0\n{back}")).unwrap())
        };
        assert_eq!(again("7f0000000000"), again("7e1000000000"));
    }
}
