//! Reads what `witness.c` wrote and replays it: what is mapped, what it cost, in which order.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::ranges::{self, Reach};

/// The type of VFIO's and iommufd's commands.
const VFIO: u32 = 0x3b;
const SET_IOMMU: u32 = 0x3b66;
const UNSET_CONTAINER: u32 = 0x3b69;
const MAP_DMA: u32 = 0x3b71;
const UNMAP_DMA: u32 = 0x3b72;
/// What iommufd has instead: IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP, IOMMU_IOAS_MAP_FILE.
const DESTROY: u32 = 0x3b80;
const IOAS_ALLOC: u32 = 0x3b81;
const IOAS_MAP: u32 = 0x3b85;
const IOAS_UNMAP: u32 = 0x3b86;
const IOAS_MAP_FILE: u32 = 0x3b8f;
const SET_MEMORY: [u32; 2] = [0xae46, 0xae49];

/// VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE.
const FLAG_READ: u32 = 1;
const FLAG_WRITE: u32 = 2;
/// IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_WRITEABLE, IOMMU_IOAS_MAP_READABLE.
const FLAG_FIXED: u32 = 1;
const FLAG_WRITEABLE: u32 = 2;
const FLAG_READABLE: u32 = 4;
/// VFIO_DMA_UNMAP_FLAG_ALL.
const FLAG_ALL: u32 = 2;
/// KVM_MEM_READONLY.
const SLOT_READONLY: u32 = 2;

const ENOENT: i32 = 2;

/// One ioctl of VFIO or iommufd, or one that gives memory to KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Type and number of the command.
    pub cmd: u32,
    /// File descriptor.
    pub fd: u32,
    /// IOVA of a map or unmap.
    pub iova: u64,
    /// Size of a map or unmap, as asked.
    pub size: u64,
    /// Flags of a map or unmap.
    pub flags: u32,
    /// Host address of a map; of a map by file, where the process has that part of it, and 0 if it has not.
    pub vaddr: u64,
    /// What the ioctl returned.
    pub ret: i32,
    /// errno if it failed.
    pub errno: i32,
    /// Bytes an unmap took out; the slot number of KVM memory.
    pub out: u64,
    /// When, monotonic clock.
    pub start_ns: u64,
    /// How long.
    pub duration_ns: u64,
    /// Which process.
    pub pid: u64,
    /// The IOAS that was made, mapped or unmapped in, or the object that was destroyed; 0 with type1.
    pub object: u32,
}

impl Call {
    /// Whether this is a map that worked.
    pub fn mapped(&self) -> bool {
        self.is_map() && self.ret == 0
    }

    /// Whether this is an unmap that worked.
    pub fn unmapped(&self) -> bool {
        self.is_unmap() && self.ret == 0
    }

    /// Whether this gives memory to KVM, or takes it away.
    pub fn gives_memory(&self) -> bool {
        SET_MEMORY.contains(&self.cmd) && self.ret == 0
    }

    /// Whether this is an attempt to map.
    pub fn is_map(&self) -> bool {
        matches!(self.cmd, MAP_DMA | IOAS_MAP | IOAS_MAP_FILE)
    }

    /// Whether what it maps is named by a descriptor, of a file of memory or a dma-buf, and not by its address.
    pub fn is_by_file(&self) -> bool {
        self.cmd == IOAS_MAP_FILE
    }

    /// Whether this is an attempt to unmap.
    pub fn is_unmap(&self) -> bool {
        matches!(self.cmd, UNMAP_DMA | IOAS_UNMAP)
    }

    /// Host address less guest or IO address: the same for all of one block of memory.
    pub fn distance(&self) -> u64 {
        self.vaddr.wrapping_sub(self.iova)
    }

    /// The container this maps or unmaps in.
    pub fn space(&self) -> Space {
        Space { fd: self.fd, ioas: self.object }
    }

    /// READ and WRITE of a map, in the words of type1.
    pub fn permission(&self) -> Result<u32> {
        if self.cmd == MAP_DMA {
            return Ok(self.flags);
        }
        ensure!(self.flags & FLAG_FIXED != 0, "a map without an address of its own: {:#x}", self.iova);
        let flag = |theirs, ours| if self.flags & theirs != 0 { ours } else { 0 };
        Ok(flag(FLAG_READABLE, FLAG_READ) | flag(FLAG_WRITEABLE, FLAG_WRITE))
    }

    /// Whether a group left its container here.
    fn leaves_container(&self) -> bool {
        self.cmd == UNSET_CONTAINER && self.ret == 0
    }

    /// Whether an object of iommufd ended here.
    fn destroys(&self) -> bool {
        self.cmd == DESTROY && self.ret == 0
    }

    /// Whether a container got its IOMMU, and its first group a domain, here.
    pub fn sets_iommu(&self) -> bool {
        self.cmd == SET_IOMMU && self.ret == 0
    }
}

/// Reads a whole record.
pub fn parse(text: &str) -> Result<Vec<Call>> {
    let calls = text.lines().enumerate();
    calls
        .map(|(n, line)| parse_line(line).with_context(|| format!("witness line {}: `{line}`", n + 1)))
        .collect()
}

fn parse_line(line: &str) -> Result<Call> {
    let fields: Vec<&str> = line.split(' ').collect();
    ensure!(fields.len() == 13, "{} fields, expected 13", fields.len());
    let hex = |n: usize| u64::from_str_radix(fields[n], 16).context("not a hexadecimal number");
    Ok(Call {
        cmd: hex(0)?.try_into()?,
        fd: hex(1)?.try_into()?,
        iova: hex(2)?,
        size: hex(3)?,
        flags: hex(4)?.try_into()?,
        vaddr: hex(5)?,
        // Printed as an unsigned 32-bit number: the bits are the value.
        ret: u32::try_from(hex(6)?)?.cast_signed(),
        errno: fields[7].parse()?,
        out: hex(8)?,
        start_ns: fields[9].parse()?,
        duration_ns: fields[10].parse()?,
        pid: fields[11].parse()?,
        object: hex(12)?.try_into()?,
    })
}

/// A mapping the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Bytes.
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

/// What one container holds, by IOVA.
pub type Held = BTreeMap<u64, Mapping>;

/// Where mappings are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// The container of type1, or the iommufd, as whoever maps has it: a duplicate is another one.
    pub fd: u32,
    /// Which IOAS of the iommufd; 0 with type1.
    pub ioas: u32,
}

/// Replays the calls: what each container holds after them. An error means that the kernel did
/// something that neither a type1v2 container nor an IOAS ever does.
///
/// What is left in an IOAS that ends stays in the answer: the kernel takes it away, and nobody shall leave it to that.
pub fn replay(calls: &[Call]) -> Result<BTreeMap<Space, Held>> {
    let mut containers: BTreeMap<Space, Held> = BTreeMap::new();
    for call in calls {
        if call.mapped() {
            ensure!(call.size > 0, "a map of nothing succeeded at {:#x}", call.iova);
            let mapping = Mapping { size: call.size, vaddr: call.vaddr, flags: call.permission()? };
            let old = containers.entry(call.space()).or_default().insert(call.iova, mapping);
            ensure!(old.is_none(), "mapped twice without an unmap: {:#x}", call.iova);
        } else if call.unmapped() {
            unmap(containers.entry(call.space()).or_default(), call)?;
        } else if call.cmd == IOAS_UNMAP && call.errno == ENOENT {
            // "Nothing there", and also "something is cut": the second leaves mappings behind.
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
fn unmap(held: &mut Held, call: &Call) -> Result<()> {
    let last = call.iova.wrapping_add(call.size.wrapping_sub(1));
    let taken = if call.cmd == UNMAP_DMA && call.flags & FLAG_ALL != 0 {
        std::mem::take(held)
    } else {
        let mut rest = held.split_off(&call.iova);
        let mut beyond = match last.checked_add(1) {
            Some(end) => rest.split_off(&end),
            None => Held::new(),
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

/// What a device behind this container can reach. Every mapping must be readable.
pub fn reach(held: &Held) -> Result<Vec<Reach>> {
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
pub fn guest_memory(calls: &[Call]) -> Held {
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
/// has, permissions aside. The answer is how many changes there were, and what differed.
///
/// In one transaction of QEMU's memory core VFIO's listener comes before KVM's. So whenever VFIO's
/// next call follows one of KVM's, a transaction has just ended, and both must agree. This holds
/// for a device behind no IOMMU, from its first map to its unplug. `wanted` says what of the guest's
/// memory shall be mapped.
pub fn commits(calls: &[Call], wanted: impl Fn(&[Call]) -> Held) -> Result<(usize, Vec<String>)> {
    let mut count = 0;
    let mut problems = Vec::new();
    let mut after_kvm = false;
    for (n, call) in calls.iter().enumerate() {
        if call.gives_memory() {
            after_kvm = true;
        } else if (call.mapped() || call.unmapped()) && std::mem::take(&mut after_kvm) {
            let containers = replay(&calls[..n])?;
            let Some(held) = containers.values().next() else { continue };
            let pages = |held: &Held| held.iter().map(|(at, m)| Reach::writable(*at, m.size)).collect();
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
        assert_eq!(replay(&calls).unwrap().len(), 1, "what was not unmapped is told");
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

    #[test]
    fn a_cut_line_is_an_error() {
        assert!(parse("3b71 9 0 a0000 3").is_err());
    }
}
