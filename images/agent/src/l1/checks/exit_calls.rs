//! What QEMU did with its devices and mappings after it received `quit`.

use std::collections::BTreeSet;

use anyhow::Result;
use vfio_fast_protocol::witness::{self, Call};

/// A write of a device's command register, in the witness's record.
const WROTE_COMMAND: u32 = 1;
/// PCI_COMMAND_MASTER.
const BUS_MASTER: u32 = 4;

/// Whether this wrote a device's command register.
pub fn writes(call: &Call) -> bool {
    call.cmd == WROTE_COMMAND && call.ret == 0
}

/// Whether this turned off a device's bus mastering.
pub fn quiets(call: &Call) -> bool {
    writes(call) && call.flags & BUS_MASTER == 0
}

/// Whether this turned it on.
pub fn starts(call: &Call) -> bool {
    writes(call) && call.flags & BUS_MASTER != 0
}

/// What is wrong with an exit in which QEMU itself unmaps everything: `calls` are all it ever made, those from number
/// `quit` on after it received `quit`. First every one of its `devices` is quiet, then no call unmaps more than `largest`
/// bytes, and in the end nothing is mapped.
pub fn taken_away(calls: &[Call], quit: usize, devices: usize, largest: u64) -> Result<Vec<String>> {
    let end = &calls[quit..];
    let mut problems = Vec::new();
    let first = end.iter().position(Call::is_unmap).unwrap_or(end.len());
    if first == end.len() {
        problems.push("nothing was unmapped".to_owned());
    }
    let writes = |calls: &'_ [Call], master| -> BTreeSet<u32> {
        let on = |call: &&Call| (call.flags & BUS_MASTER != 0) == master;
        calls.iter().filter(|c| c.cmd == WROTE_COMMAND && c.ret == 0).filter(on).map(|c| c.fd).collect()
    };
    let quiet = writes(&end[..first], false).len();
    if quiet != devices {
        problems.push(format!("{quiet} of {devices} devices were quiet before the first unmap"));
    }
    if !writes(end, true).is_empty() {
        problems.push("bus mastering was turned on".to_owned());
    }
    for call in end.iter().filter(|call| call.is_unmap()) {
        if call.ret != 0 || call.out > largest {
            let Call { iova, size, errno, .. } = call;
            problems
                .push(format!("an unmap of {iova:#x} + {size:#x}, of at most {largest:#x}: errno {errno}"));
        }
    }
    for (iova, left) in witness::replay(calls)?.values().flatten() {
        problems.push(format!("still mapped: {iova:#x} + {:#x}", left.size));
    }
    Ok(problems)
}

/// What is wrong with an exit in which the kernel unmaps everything: no call of QEMU's maps, unmaps or stops a device.
pub fn left_alone(calls: &[Call], quit: usize) -> Vec<String> {
    let touches = |call: &&Call| call.is_map() || call.is_unmap() || call.cmd == WROTE_COMMAND;
    let end = calls[quit..].iter().filter(touches);
    end.map(|call| format!("{:#x} of {:#x} + {:#x}", call.cmd, call.iova, call.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two mappings of one device, and that it may do DMA.
    const BEFORE: &str = "1 9 0 2 7 0 0 0 0 1 1 7 0\n3b85 8 0 a0000 7 7f00 0 0 0 2 1 7 2\n\
                          3b85 8 100000 1000 7 8f00 0 0 0 3 1 7 2\n";
    const QUIET: &str = "1 9 0 2 3 0 0 0 0 4 1 7 0\n";
    const LOW: &str = "3b86 8 0 a0000 0 0 0 0 a0000 5 1 7 2\n";
    const HIGH: &str = "3b86 8 100000 1000 0 0 0 0 1000 6 1 7 2\n";

    fn problems(end: &str, devices: usize, largest: u64) -> Vec<String> {
        let calls = witness::parse(&format!("{BEFORE}{end}")).unwrap();
        taken_away(&calls, 3, devices, largest).unwrap()
    }

    #[test]
    fn each_check_can_fail() {
        let right = format!("{QUIET}{LOW}{HIGH}");
        assert_eq!(problems(&right, 1, 0xa0000), [""; 0]);
        let one = |end: &str, devices, largest, what: &str| {
            let problems = problems(end, devices, largest);
            assert!(problems.len() == 1 && problems[0].contains(what), "{problems:?}");
        };
        one(&right, 2, 0xa0000, "1 of 2 devices");
        one(&format!("{LOW}{QUIET}{HIGH}"), 1, 0xa0000, "0 of 1 devices");
        one(&format!("{}{LOW}{HIGH}", QUIET.replace(" 2 3 ", " 2 7 ")), 0, 0xa0000, "bus mastering");
        one(&right, 1, 0x9ffff, "at most 0x9ffff");
        one(&format!("{QUIET}{LOW}"), 1, 0xa0000, "still mapped: 0x100000");
        assert_eq!(problems(QUIET, 1, 0xa0000)[0], "nothing was unmapped");
    }

    #[test]
    fn what_is_left_alone_is_not_touched() {
        let touched = |end: &str| {
            let calls = witness::parse(&format!("{BEFORE}{end}")).unwrap();
            left_alone(&calls, 3).len()
        };
        assert_eq!(touched(""), 0);
        assert_eq!(touched("3b6e 9 0 0 0 0 0 0 0 9 1 7 0\n"), 0, "it may disable interrupts");
        assert_eq!((touched(QUIET), touched(LOW)), (1, 1));
    }
}
