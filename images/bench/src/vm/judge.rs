//! Checks the starts of a guest of one size. Times do not matter here.

use std::collections::BTreeMap;

use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::record::{Order, Start};

/// A check: its name, the problems it found, and the summary to report if there are none.
type Check = (&'static str, Vec<String>, String);

pub fn all(starts: &[Start], bytes: u64, pairs: &[(MemoryKind, u32)]) -> [Check; 4] {
    [
        every_start_once(starts, pairs),
        all_memory_mapped(starts, bytes),
        memory_as_asked(starts, bytes),
        times_add_up(starts),
    ]
}

/// Checks that each order started once with each of these memories and rounds.
fn every_start_once(starts: &[Start], pairs: &[(MemoryKind, u32)]) -> Check {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for start in starts {
        *seen.entry(start.name()).or_default() += 1;
    }
    let mut problems = Vec::new();
    for &(memory, round) in pairs {
        for order in Order::ALL {
            let name = Start::name_of(memory, order, round);
            match seen.remove(&name) {
                Some(1) => {}
                times => problems.push(format!("{name}: {} times", times.unwrap_or(0))),
            }
        }
    }
    problems.extend(seen.into_keys().map(|name| format!("{name} was not asked for")));
    ("every-start-once", problems, format!("{} starts", starts.len()))
}

/// Checks that all of the guest's RAM was mapped before the guest executed, unless that happens in the background, and at
/// the end, according to both witnesses.
fn all_memory_mapped(starts: &[Start], bytes: u64) -> Check {
    let mut least = u64::MAX;
    let mut problems = Vec::new();
    for start in starts {
        let moments = [
            ("mapped when it began", start.first_instruction.map_bytes),
            ("mapped in all", start.kernel.map_bytes),
            ("held in the end", start.held_bytes),
            ("locked in the end", start.locked_bytes),
        ];
        let skipped = match start.order {
            Order::NoDevice => continue,
            Order::Background => 2,
            _ => 0,
        };
        for (what, found) in moments.into_iter().skip(skipped) {
            least = least.min(found);
            if found < bytes {
                problems.push(format!("{}: {found} bytes {what}, RAM has {bytes}", start.name()));
            }
        }
    }
    ("all-memory-mapped", problems, format!("at least {least} bytes"))
}

/// Checks that memfds and huge pages were used exactly where they were requested.
fn memory_as_asked(starts: &[Start], bytes: u64) -> Check {
    let mut problems = Vec::new();
    // Without a device little of the memory is there.
    for start in starts.iter().filter(|start| start.order != Order::NoDevice) {
        let memfd = start.shmem_bytes >= bytes;
        if memfd != start.memory.is_memfd() {
            problems.push(format!("{}: {} bytes of shmem", start.name(), start.shmem_bytes));
        }
        let huge =
            if start.memory.may_be_huge() { start.huge_bytes > bytes / 2 } else { start.huge_bytes == 0 };
        if !huge {
            problems.push(format!("{}: {} bytes in huge pages", start.name(), start.huge_bytes));
        }
    }
    ("memory-as-asked", problems, "memfd and huge pages where they were asked for".into())
}

/// Checks that no part of a time is longer than the whole: both use one clock.
fn times_add_up(starts: &[Start]) -> Check {
    let mut problems = Vec::new();
    for start in starts {
        let (first, kernel) = (start.first_instruction, start.kernel);
        if first.at_ns == 0 || first.at_ns > kernel.at_ns {
            problems.push(format!(
                "{}: executes at {}, kernel at {}",
                start.name(),
                first.at_ns,
                kernel.at_ns
            ));
        }
        if start.exit_ns == 0 {
            problems.push(format!("{}: its end took no time", start.name()));
        }
        for moment in [first, kernel] {
            let parts = moment.map_ns + moment.unmap_ns + moment.populate_ns;
            // In the background they are not parts.
            if parts > moment.at_ns && start.order != Order::Background {
                problems.push(format!(
                    "{}: {parts} ns of {} spent in map and unmap",
                    start.name(),
                    moment.at_ns
                ));
            }
        }
    }
    ("times-add-up", problems, "parts are within their wholes".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::{GIB, right};

    /// The checks that fail after `change`.
    fn failing(change: impl FnOnce(&mut Vec<Start>)) -> Vec<&'static str> {
        let mut starts = right();
        change(&mut starts);
        let pairs: Vec<_> =
            MemoryKind::UNRESERVED.into_iter().flat_map(|kind| [(kind, 0), (kind, 1)]).collect();
        let checks = all(&starts, GIB, &pairs);
        checks.into_iter().filter(|(_, problems, _)| !problems.is_empty()).map(|(name, ..)| name).collect()
    }

    #[test]
    fn each_check_can_fail() {
        assert_eq!(failing(|_| ()), [""; 0]);
        assert_eq!(failing(|starts| starts.truncate(47)), ["every-start-once"]);
        assert_eq!(failing(|starts| starts.push(starts[0].clone())), ["every-start-once"]);
        assert_eq!(failing(|starts| starts[0].round = 2), ["every-start-once"]);
        let less = GIB - 1;
        assert_eq!(failing(|starts| starts[1].first_instruction.map_bytes = less), ["all-memory-mapped"]);
        assert_eq!(failing(|starts| starts[1].kernel.map_bytes = less), ["all-memory-mapped"]);
        assert_eq!(failing(|starts| starts[1].held_bytes = less), ["all-memory-mapped"]);
        assert_eq!(failing(|starts| starts[1].locked_bytes = less), ["all-memory-mapped"]);
        assert_eq!(failing(|starts| starts[0].huge_bytes = 2 << 20), ["memory-as-asked"]);
        assert_eq!(failing(|starts| starts[12].huge_bytes = 2 << 20), ["memory-as-asked"]);
        assert_eq!(failing(|starts| starts[0].shmem_bytes = GIB), ["memory-as-asked"]);
        assert_eq!(failing(|starts| starts[45].shmem_bytes = 4096), ["memory-as-asked"]);
        assert_eq!(failing(|starts| starts[12].first_instruction.at_ns = 41), ["times-add-up"]);
        assert_eq!(failing(|starts| starts[12].kernel.unmap_ns = 26), ["times-add-up"]);
        assert_eq!(failing(|starts| starts[12].exit_ns = 0), ["times-add-up"]);
    }
}
