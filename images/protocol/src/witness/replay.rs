//! Replays calls: what is mapped after them, and what the guest's memory is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::{
    Call, ENOENT, FLAG_ALL, FLAG_READ, FLAG_WRITE, IOAS_ALLOC, IOAS_UNMAP, SLOT_READONLY, UNMAP_DMA,
};
use crate::ranges::{self, Reach};

/// A mapping the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub size: u64,
    /// Host address of the first byte.
    pub vaddr: u64,
    /// READ and WRITE.
    pub flags: u32,
}

impl Mapping {
    /// Whether the device, or the guest, may write it.
    pub fn is_writable(self) -> bool {
        self.flags & FLAG_WRITE != 0
    }
}

/// The mappings of one container, by IOVA.
pub type MappingSet = BTreeMap<u64, Mapping>;

/// What holds mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// The descriptor of the container or the iommufd. A duplicate counts as another one.
    pub fd: u32,
    /// The IOAS of the iommufd; 0 with type1.
    pub ioas: u32,
}

/// Replays the calls: what each container holds after them. An error means that the kernel did
/// something that neither a type1v2 container nor an IOAS ever does.
///
/// The result keeps what is left in an IOAS that ends: the kernel removes it, and callers must not rely on that.
pub fn replay(calls: &[Call]) -> Result<BTreeMap<Space, MappingSet>> {
    let mut containers: BTreeMap<Space, MappingSet> = BTreeMap::new();
    for call in calls {
        if call.mapped() {
            ensure!(call.size > 0, "a map of nothing succeeded at {:#x}", call.iova);
            let mapping = Mapping { size: call.size, vaddr: call.vaddr, flags: call.permission()? };
            let old = containers.entry(call.space()).or_default().insert(call.iova, mapping);
            ensure!(old.is_none(), "mapped twice without an unmap: {:#x}", call.iova);
        } else if call.unmapped() {
            unmap(containers.entry(call.space()).or_default(), call)?;
        } else if call.cmd == IOAS_UNMAP && call.errno == ENOENT {
            // "Nothing there", and also "something is cut". After the second, mappings are left.
            let last = call.iova.saturating_add(call.size - 1);
            let held = containers.entry(call.space()).or_default().range(..=last).next_back();
            let cut = held.filter(|(at, mapping)| **at + (mapping.size - 1) >= call.iova);
            ensure!(
                cut.is_none(),
                "unmap of [{:#x}, {last:#x}] was refused, but {cut:x?} is there",
                call.iova
            );
        }
    }
    containers.retain(|_, held| !held.is_empty());
    Ok(containers)
}

/// Takes out what an unmap took out.
fn unmap(held: &mut MappingSet, call: &Call) -> Result<()> {
    let last = call.iova.wrapping_add(call.size.wrapping_sub(1));
    let taken = if call.cmd == UNMAP_DMA && call.flags & FLAG_ALL != 0 {
        std::mem::take(held)
    } else {
        let mut rest = held.split_off(&call.iova);
        let mut beyond = match last.checked_add(1) {
            Some(end) => rest.split_off(&end),
            None => MappingSet::new(),
        };
        held.append(&mut beyond);
        rest
    };
    let bytes: u64 = taken.values().map(|m| m.size).sum();
    ensure!(
        bytes == call.out,
        "unmap of [{:#x}, {last:#x}] took out {:#x} bytes, {bytes:#x} were mapped there",
        call.iova,
        call.out,
    );
    Ok(())
}

/// The last call with which a group left its container, or an IOAS ended.
pub fn last_leaving(calls: &[Call]) -> Option<usize> {
    let made =
        |call: &Call| calls.iter().any(|c| c.cmd == IOAS_ALLOC && c.ret == 0 && c.space() == call.space());
    calls.iter().rposition(|call| call.leaves_container() || (call.destroys() && made(call)))
}

/// What a device in this container can access. Every mapping must be readable.
pub fn reach(held: &MappingSet) -> Result<Vec<Reach>> {
    let mut out = Vec::with_capacity(held.len());
    for (&start, m) in held {
        ensure!(m.flags & FLAG_READ != 0, "mapping at {start:#x} is not readable");
        let last = start.checked_add(m.size - 1).context("a mapping wraps")?;
        out.push(Reach { start, last, write: m.is_writable() });
    }
    Ok(out)
}

/// The guest's physical memory as KVM has it after these calls. KVM knows it from QEMU's memory
/// core, not from VFIO, so it is what the flat view was at that moment.
pub fn guest_memory(calls: &[Call]) -> MappingSet {
    let mut slots: BTreeMap<u64, (u64, Mapping)> = BTreeMap::new();
    for call in calls.iter().filter(|c| c.gives_memory()) {
        // The upper half names the address space: 1 is what only SMM sees, and no device does.
        if call.out >> 16 != 0 {
            continue;
        }
        if call.size == 0 {
            slots.remove(&call.out);
        } else {
            let write = if call.flags & SLOT_READONLY != 0 { 0 } else { FLAG_WRITE };
            let flags = FLAG_READ | write;
            let mapping = Mapping { size: call.size, vaddr: call.vaddr, flags };
            slots.insert(call.out, (call.iova, mapping));
        }
    }
    slots.into_values().collect()
}

/// Compares, at the end of every change of the guest's memory, what is mapped with what the guest
/// has, except for permissions. Returns how many changes there were, and the differences.
///
/// In one transaction of QEMU's memory core VFIO's listener comes before KVM's. So whenever VFIO's
/// next call follows one of KVM's, a transaction has just ended, and both must agree. This holds
/// for a device without a virtual IOMMU, from its first map to its unplug. `wanted` returns what of the
/// guest's memory has to be mapped.
pub fn commits(calls: &[Call], wanted: impl Fn(&[Call]) -> MappingSet) -> Result<(usize, Vec<String>)> {
    let mut count = 0;
    let mut problems = Vec::new();
    let mut after_kvm = false;
    for (n, call) in calls.iter().enumerate() {
        if call.gives_memory() {
            after_kvm = true;
        } else if (call.mapped() || call.unmapped()) && std::mem::take(&mut after_kvm) {
            let containers = replay(&calls[..n])?;
            let Some(held) = containers.values().next() else { continue };
            let pages = |held: &MappingSet| held.iter().map(|(at, m)| Reach::writable(*at, m.size)).collect();
            let wanted = pages(&wanted(&calls[..n]));
            let different = ranges::differences("wanted", wanted, "mapped", pages(held));
            problems.extend(different.into_iter().map(|text| format!("before call {n}: {text}")));
            count += 1;
        }
    }
    Ok((count, problems))
}

/// The distances, host address less guest address, at which the guest ever had memory.
pub fn memory_distances(calls: &[Call]) -> BTreeSet<u64> {
    let slots = calls.iter().filter(|c| c.gives_memory() && c.size > 0);
    slots.map(Call::distance).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{parse, sequence};
    use super::*;

    const TYPE1: Space = Space { fd: 9, ioas: 0 };
    const LOW: &str = "3b71 9 0 a0000 3 7f0000000000 0 0 0 100 10 77 0\n";
    const HIGH: &str = "3b71 9 100000 7ff00000 3 7f0000100000 0 0 0 200 20 77 0\n";

    #[test]
    fn mappings_come_and_go() {
        let text = format!("{LOW}{HIGH}3b72 9 0 a0000 0 0 0 0 a0000 300 5 77 0\n");
        let calls = parse(&text).unwrap();
        let held = replay(&calls).unwrap();
        assert_eq!(held[&TYPE1].len(), 1);
        let reach = reach(&held[&TYPE1]).unwrap();
        assert_eq!(reach, vec![Reach { start: 0x100000, last: 0x7fffffff, write: true }]);
    }

    #[test]
    fn an_empty_container_is_not_listed() {
        let text = format!("{LOW}3b72 9 0 a0000 0 0 0 0 a0000 300 5 77 0\n");
        assert!(replay(&parse(&text).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn unmap_all_empties() {
        let text = format!("{LOW}{HIGH}3b72 9 0 0 2 0 0 0 7ffa0000 300 5 77 0\n");
        assert!(replay(&parse(&text).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn a_failed_map_maps_nothing() {
        let calls = parse("3b71 9 0 1000 3 7f00 ffffffff 12 0 1 1 7 0\n").unwrap();
        assert_eq!((calls[0].ret, calls[0].errno), (-1, 12));
        assert!(replay(&calls).unwrap().is_empty());
    }

    /// An IOAS is made, and gets memory that may be written and memory that may not.
    const IOAS: &str = "3b81 8 0 0 0 0 0 0 0 1 1 7 2\n\
                        3b85 8 0 a0000 7 7f0000000000 0 0 0 1 1 7 2\n\
                        3b85 8 c0000 1000 5 7f00000c0000 0 0 0 1 1 7 2\n";

    #[test]
    fn an_ioas_holds_mappings() {
        let calls = parse(IOAS).unwrap();
        let held = replay(&calls).unwrap();
        let ioas = Space { fd: 8, ioas: 2 };
        assert_eq!(held.keys().collect::<Vec<_>>(), [&ioas]);
        let low = Reach { start: 0, last: 0x9ffff, write: true };
        assert_eq!(
            reach(&held[&ioas]).unwrap(),
            [low, Reach { start: 0xc0000, last: 0xc0fff, write: false }]
        );
        // Descriptor 8 is the same, the IOAS is not.
        let other = parse(&format!("{IOAS}3b86 8 0 a0000 0 0 0 0 0 1 1 7 3\n")).unwrap();
        assert_eq!(replay(&other).unwrap()[&ioas].len(), 2);
        let unmapped = parse(&format!("{IOAS}3b86 8 0 ffffffffffffffff 0 0 0 0 a1000 1 1 7 2\n")).unwrap();
        assert!(replay(&unmapped).unwrap().is_empty());
    }

    #[test]
    fn the_end_of_an_ioas_is_found() {
        let calls = parse(&format!("{IOAS}3b80 8 0 0 0 0 0 0 0 1 1 7 5\n3b80 8 0 0 0 0 0 0 0 1 1 7 2\n"));
        let calls = calls.unwrap();
        assert_eq!(last_leaving(&calls), Some(4));
        assert_eq!(last_leaving(&calls[..4]), None, "object 5 is no IOAS");
        assert_eq!(replay(&calls).unwrap().len(), 1, "what was not unmapped is kept");
    }

    #[test]
    fn a_file_is_mapped_as_its_memory() {
        let by_file = IOAS.replace("3b85 8 c0000", "3b8f 8 c0000");
        let (address, file) = (parse(IOAS).unwrap(), parse(&by_file).unwrap());
        assert_eq!(replay(&address).unwrap(), replay(&file).unwrap());
        assert!(file[2].is_by_file() && !file[1].is_by_file());
        // It is another call all the same.
        assert_ne!(sequence(&address), sequence(&file));
    }

    #[test]
    fn enoent_over_a_mapping_is_found() {
        let refused = |iova: &str, size: &str| {
            replay(&parse(&format!("{IOAS}3b86 8 {iova} {size} 0 0 ffffffff 2 0 1 1 7 2\n")).unwrap())
        };
        assert!(refused("a0000", "20000").is_ok());
        for (iova, size) in [("0", "1000"), ("9f000", "2000"), ("c0000", "1000"), ("0", "100000")] {
            let error = refused(iova, size).unwrap_err();
            assert!(error.to_string().contains("was refused"), "{error}");
        }
    }

    #[test]
    fn a_wrong_byte_count_is_found() {
        let text = format!("{LOW}3b72 9 0 a0000 0 0 0 0 9f000 300 5 77 0\n");
        let error = replay(&parse(&text).unwrap()).unwrap_err();
        assert!(error.to_string().contains("took out 0x9f000 bytes"), "{error}");
    }

    #[test]
    fn an_unreadable_mapping_is_found() {
        let calls = parse("3b71 9 0 1000 2 7f00 0 0 0 1 1 7 0\n").unwrap();
        assert!(reach(&replay(&calls).unwrap()[&TYPE1]).is_err());
    }

    #[test]
    fn guest_memory_follows_the_slots() {
        let slots = "ae46 a 0 80000000 0 7f0000000000 0 0 0 1 1 7 0\n\
                     ae46 a 0 0 0 7f0000000000 0 0 0 1 1 7 0\n\
                     ae46 a 0 a0000 0 7f0000000000 0 0 0 1 1 7 0\n\
                     ae46 a fffc0000 40000 2 7e0000000000 0 0 1 1 1 7 0\n\
                     ae46 a a0000 20000 0 7f00000a0000 0 0 10002 1 1 7 0\n";
        let calls = parse(&format!("{LOW}{slots}")).unwrap();
        let memory = guest_memory(&calls);
        assert_eq!(memory.len(), 2, "{memory:?}");
        assert_eq!(memory[&0].size, 0xa0000);
        assert_eq!(memory[&0xfffc0000].flags, FLAG_READ);
        assert_eq!(replay(&calls).unwrap().len(), 1, "KVM's calls map nothing");
        assert_eq!(sequence(&calls).len(), 1);
    }

    #[test]
    fn every_commit_is_compared() {
        let slot = "ae46 a 0 a0000 0 7f0000000000 0 0 0 1 1 7 0\n";
        let more = "ae46 a 100000 7ff00000 0 7f0000100000 0 0 1 1 1 7 0\n";
        let last = "3b71 9 c0000 1000 1 7d0000000000 0 0 0 1 1 7 0\n";
        let right = parse(&format!("{slot}{LOW}{HIGH}{more}{last}")).unwrap();
        assert_eq!(commits(&right, guest_memory).unwrap(), (1, vec![]));
        let stale = parse(&format!("{slot}{LOW}{more}{last}")).unwrap();
        let (count, problems) = commits(&stale, guest_memory).unwrap();
        assert_eq!((count, problems.len()), (1, 1), "{problems:?}");
        assert!(problems[0].contains("only wanted: [0x100000, 0x7fffffff]"), "{problems:?}");
    }
}
