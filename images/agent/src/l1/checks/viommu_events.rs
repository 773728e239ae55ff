//! Compares the events of L2's IOMMU with QEMU's ioctls: each map is one ioctl of just that address and size,
//! in the same order and in the container of the device, and so is each unmap of a page table entry.
//!
//! When a device gets another page table, QEMU receives events to unmap everything, in a few large pieces. The trace does not
//! name their device. What is mapped there is unmapped with one call, or by the library with one call for each run of entries.
//! There may also be events to unmap what is not mapped; it makes no difference whether QEMU passes these to the kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use vfio_fast_protocol::witness::{self, Call, MappingSet, Space};

use crate::l1::qemu_trace;

/// What [`compare`] has to be given.
pub const TRACED: [&str; 2] = ["vtd_page_walk_one", "vfio_iommu_map_notify"];

/// No guest maps or unmaps so much in one event. The memory listener does when an IOMMU is switched off.
const SECTION: u64 = 1 << 30;
/// Memory that the listener maps while L2's IOMMU is off: from here on numbers of domains are others.
const LARGE: u64 = 16 << 20;
/// The permission to write, in the page tables of VT-d.
const WRITE: u64 = 2;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    map: bool,
    iova: u64,
    size: u64,
    /// The page table entry it comes from, if it comes from one.
    entry: Option<Entry>,
}

impl Event {
    fn last(&self) -> u64 {
        self.iova.saturating_add(self.size - 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    domain: u64,
    iova: u64,
    gpa: u64,
    write: bool,
}

/// How many maps and unmaps were made of events, how many events had nothing to unmap, and what is wrong.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Maps.
    pub maps: usize,
    /// Unmaps.
    pub unmaps: usize,
    /// Unmaps of nothing, and of everything.
    pub other: usize,
    /// In words.
    pub problems: Vec<String>,
}

/// Compares QEMU's trace of events with the ioctls that it made.
pub fn compare(trace: &str, calls: &[Call]) -> Result<Comparison> {
    let mut follower = Follower::default();
    follower.follow(trace, calls)?;
    Ok(follower.state.seen)
}

/// Compares events with ioctls from time to time, while no event waits for its ioctl.
#[derive(Default)]
pub struct Follower {
    state: State,
    /// How much of the trace and of the calls was compared.
    traced: usize,
    called: usize,
}

impl Follower {
    /// How many maps and unmaps were compared.
    pub fn counts(&self) -> String {
        let Comparison { maps, unmaps, other, .. } = &self.state.seen;
        format!("{maps} maps, {unmaps} unmaps, {other} others")
    }

    /// Compares what is new in the trace and among the calls, both of which are given from their beginning.
    pub fn follow(&mut self, trace: &str, calls: &[Call]) -> Result<&mut Comparison> {
        let distances = witness::memory_distances(calls);
        let (state, traced, called) = (&mut self.state, self.traced, self.called);
        (self.traced, self.called) = (trace.len(), calls.len());
        state.events.drain(..std::mem::take(&mut state.next));
        state.events.extend(events(&trace[traced..])?);
        for call in &calls[called..] {
            if call.gives_memory() {
                state.given.push(call.clone());
                state.memory = witness::guest_memory(&state.given);
            } else if call.makes_space() {
                // Large pieces may be of a device for which nothing was ever mapped.
                state.held.entry(call.space()).or_default();
            } else if call.is_map() && distances.contains(&call.distance()) {
                state.map_section(call);
            } else if call.is_map() {
                state.map(call);
            } else if call.unmapped() && call.out > 0 {
                state.unmap(call);
            }
        }
        state.skip();
        state.done();
        if let Some(event) = state.events.get(state.next) {
            state.problem(&format!("nothing was made of {event:x?}"));
        }
        state.seen.problems.truncate(5);
        Ok(&mut state.seen)
    }
}

/// Compares only the maps, by address and size and in order: what QEMU's AMD IOMMU traces does not name a page table.
pub fn compare_maps(trace: &str, calls: &[Call]) -> Result<Comparison> {
    let distances = witness::memory_distances(calls);
    let asked = events(trace)?.into_iter().filter(|event| event.map).map(|event| (event.iova, event.size));
    let asked: Vec<(u64, u64)> = asked.collect();
    let made = calls.iter().filter(|call| call.is_map() && !distances.contains(&call.distance()));
    let made: Vec<(u64, u64)> = made.map(|call| (call.iova, call.size)).collect();
    let mut seen = Comparison { maps: made.len(), ..Comparison::default() };
    let same = asked.iter().zip(&made).take_while(|(asked, made)| asked == made).count();
    if asked.len() != same || made.len() != same || same == 0 {
        let (asked, made) = (asked.get(same), made.get(same));
        seen.problems.push(format!("after {same} maps, {made:x?} was made of {asked:x?}"));
    }
    Ok(seen)
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    next: usize,
    /// The large pieces of the events right before `next`.
    pieces: Vec<Event>,
    /// What events have mapped, and the sizes.
    held: BTreeMap<Space, BTreeMap<u64, u64>>,
    domains: BTreeMap<u64, Space>,
    /// The calls that gave memory to KVM, and what it has.
    given: Vec<Call>,
    memory: MappingSet,
    seen: Comparison,
}

impl State {
    /// A map by the listener.
    fn map_section(&mut self, call: &Call) {
        self.held.entry(call.space()).or_default();
        if call.size >= LARGE {
            self.domains.clear();
        }
    }

    /// A map that an event must have asked for.
    fn map(&mut self, call: &Call) {
        self.skip();
        self.done();
        let made = format!("{:#x} + {:#x} in {:x?}", call.iova, call.size, call.space());
        match self.events.get(self.next).copied() {
            Some(Event { map: true, iova, size, entry: Some(entry) }) => {
                let space = *self.domains.entry(entry.domain).or_insert(call.space());
                let right = (iova, size) == (call.iova, call.size)
                    && self.host_address(entry.gpa) == Some(call.vaddr)
                    && call.permission().is_ok_and(|flags| flags & 1 != 0 && (flags & 2 != 0) == entry.write)
                    && space == call.space()
                    && call.mapped();
                if !right {
                    self.problem(&format!("{call:x?} was made of domain {:x} and {entry:x?}", entry.domain));
                }
            }
            other => self.problem(&format!("a map of {made} was made of {other:x?}")),
        }
        self.next += 1;
        self.seen.maps += 1;
        self.held.entry(call.space()).or_default().insert(call.iova, call.size);
    }

    fn unmap(&mut self, call: &Call) {
        self.skip();
        let last = call.iova.saturating_add(call.size - 1);
        let held = self.held.entry(call.space()).or_default();
        let before = held.len();
        held.retain(|iova, _| !(call.iova..=last).contains(iova));
        if held.len() == before {
            // The listener's own.
            return;
        }
        let event = self.events.get(self.next);
        let asked = event.is_some_and(|e| !e.map && (e.iova, e.size) == (call.iova, call.size));
        let elsewhere = event.and_then(|e| self.space_of(e)).is_some_and(|space| space != call.space());
        let in_piece = self.pieces.iter().any(|piece| piece.iova <= call.iova && last <= piece.last());
        if asked && !elsewhere {
            self.done();
            self.next += 1;
            self.seen.unmaps += 1;
        } else if !in_piece && call.size < SECTION {
            let text = format!("an unmap of {:#x} + {:#x} was made of {event:x?}", call.iova, call.size);
            self.problem(&text);
        }
    }

    /// Goes past events that had nothing to unmap, and past large pieces.
    fn skip(&mut self) {
        while let Some(event) = self.events.get(self.next).copied().filter(|event| !event.map) {
            match event.entry {
                None => self.pieces.push(event),
                Some(_) => {
                    let held = self.space_of(&event).and_then(|space| self.held.get(&space));
                    if held.is_some_and(|held| !is_empty(held, &event)) {
                        return;
                    }
                }
            }
            self.next += 1;
            self.seen.other += 1;
        }
    }

    /// Other events follow: the device of the large pieces has nothing mapped there any more.
    fn done(&mut self) {
        for piece in std::mem::take(&mut self.pieces) {
            if !self.held.is_empty() && !self.held.values().any(|held| is_empty(held, &piece)) {
                self.problem(&format!("nothing was made of {piece:x?}"));
            }
        }
    }

    fn space_of(&self, event: &Event) -> Option<Space> {
        event.entry.and_then(|entry| self.domains.get(&entry.domain).copied())
    }

    fn host_address(&self, gpa: u64) -> Option<u64> {
        let (start, slot) = self.memory.range(..=gpa).next_back()?;
        (gpa - start < slot.size).then(|| slot.vaddr + (gpa - start))
    }

    fn problem(&mut self, text: &str) {
        self.seen.problems.push(text.to_owned());
    }
}

/// Whether nothing is mapped where that event is.
fn is_empty(held: &BTreeMap<u64, u64>, event: &Event) -> bool {
    held.range(..=event.last()).next_back().is_none_or(|(iova, size)| iova + (size - 1) < event.iova)
}

/// The events of a trace, each with the page table entry that was walked right before.
fn events(trace: &str) -> Result<Vec<Event>> {
    let mut walked = None;
    let mut events = Vec::new();
    for line in trace.lines() {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match name {
            "vtd_page_walk_one" => {
                walked = Some(Entry {
                    domain: qemu_trace::hex(rest, "domain ")?,
                    iova: qemu_trace::hex(rest, "iova ")?,
                    gpa: qemu_trace::hex(rest, "gpa ")?,
                    write: qemu_trace::decimal(rest, "perm ")? & WRITE != 0,
                });
            }
            "vfio_iommu_map_notify" => {
                let iova = qemu_trace::hex(rest, "@ ")?;
                let last = qemu_trace::hex(rest, "- ")?;
                let entry = walked.take().filter(|entry| entry.iova == iova);
                let size = (last - iova).checked_add(1).context("an event of everything")?;
                events.push(Event { map: rest.contains("iommu MAP"), iova, size, entry });
            }
            _ => {}
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest of 16 MiB whose memory is mapped by the listener, and unmapped when its IOMMU is switched on.
    const START: &str = "ae46 a 0 1000000 0 7f0000000000 0 0 0 1 1 7 0\n\
                         3b71 9 0 1000000 3 7f0000000000 0 0 0 1 1 7 0\n\
                         3b72 9 0 1000000 0 0 0 0 1000000 1 1 7 0\n";
    const MAP: &str = "3b71 9 fffff000 1000 3 7f0000005000 0 0 0 1 1 7 0\n";
    const UNMAP: &str = "3b72 9 fffff000 1000 0 0 0 0 1000 1 1 7 0\n";
    const VOID: &str = "vfio_iommu_map_notify iommu UNMAP @ 0x0 - 0x7fffffff\n";
    const PIECE: &str = "vfio_iommu_map_notify iommu UNMAP @ 0xff000000 - 0xffffffff\n";
    const MAPS: &str = "vtd_page_walk_one domain 0x1 iova 0xfffff000 -> gpa 0x5000 mask 0xfff perm 3\n\
                        vfio_iommu_map_notify iommu MAP @ 0xfffff000 - 0xffffffff\n";
    const UNMAPS: &str = "vtd_page_walk_one domain 0x1 iova 0xfffff000 -> gpa 0x0 mask 0xfff perm 0\n\
                          vfio_iommu_map_notify iommu UNMAP @ 0xfffff000 - 0xffffffff\n";

    fn compared(trace: &[&str], calls: &[&str]) -> Comparison {
        let calls = witness::parse(&format!("{START}{}", calls.concat())).unwrap();
        compare(&trace.concat(), &calls).unwrap()
    }

    #[test]
    fn one_event_is_one_call() {
        let seen = compared(&[VOID, MAPS, UNMAPS, VOID], &[MAP, UNMAP]);
        assert!(seen.problems.is_empty(), "{seen:?}");
        assert_eq!((seen.maps, seen.unmaps, seen.other), (1, 1, 2));
        // Everything goes at once, or run by run.
        let next = MAPS.replace("fffff000", "ffffd000").replace("- 0xffffffff", "- 0xffffdfff");
        let second = MAP.replace("fffff000", "ffffd000");
        let at_once = "3b72 9 ff000000 1000000 0 0 0 0 2000 1 1 7 0\n";
        let by_run = UNMAP.replace("fffff000", "ffffd000");
        for unmaps in [vec![at_once], vec![UNMAP, &by_run]] {
            let calls = [vec![MAP, &second], unmaps].concat();
            let seen = compared(&[MAPS, &next, PIECE, VOID], &calls);
            assert!(seen.problems.is_empty(), "{seen:?}");
        }
    }

    #[test]
    fn what_is_new_is_compared() {
        let mut follower = Follower::default();
        let (mut trace, mut lines) = (String::new(), START.to_owned());
        for (events, calls) in [(MAPS, MAP), (UNMAPS, UNMAP), ("", ""), (MAPS, MAP)] {
            trace.push_str(events);
            lines.push_str(calls);
            let seen = follower.follow(&trace, &witness::parse(&lines).unwrap()).unwrap();
            assert!(seen.problems.is_empty(), "{seen:?}");
        }
        assert_eq!((follower.state.seen.maps, follower.state.seen.unmaps), (2, 1));
        trace.push_str(UNMAPS);
        assert_eq!(follower.follow(&trace, &witness::parse(&lines).unwrap()).unwrap().problems.len(), 1);
    }

    #[test]
    fn maps_alone_are_compared() {
        let problems = |trace: &str, calls: &str| {
            let calls = witness::parse(&format!("{START}{calls}")).unwrap();
            compare_maps(trace, &calls).unwrap().problems
        };
        assert!(problems(&[MAPS, UNMAPS].concat(), &[MAP, UNMAP].concat()).is_empty());
        assert!(
            !problems(MAPS, "").is_empty() && !problems("", MAP).is_empty() && !problems("", "").is_empty()
        );
        assert!(!problems(MAPS, &MAP.replace("fffff000", "ffffe000")).is_empty());
        assert!(!problems(MAPS, &[MAP, MAP].concat()).is_empty());
    }

    #[test]
    fn anything_else_is_found() {
        let wrong = |trace: &[&str], calls: &[&str]| assert!(!compared(trace, calls).problems.is_empty());
        wrong(&[MAPS, UNMAPS], &[MAP]);
        wrong(&[MAPS], &[MAP, UNMAP]);
        wrong(&[MAPS], &[]);
        wrong(&[], &[MAP]);
        wrong(&[MAPS], &[&MAP.replace("fffff000 1000", "ffffe000 2000")]);
        wrong(&[MAPS], &[&MAP.replace("7f0000005000", "7f0000006000")]);
        wrong(&[MAPS], &[&MAP.replace("1000 3", "1000 1")]);
        wrong(&[MAPS, UNMAPS], &[MAP, &UNMAP.replace("fffff000 1000", "ffffe000 2000")]);
        wrong(&[MAPS, PIECE], &[MAP]);
        // Of another container everything goes that was never mapped there.
        const OTHER: &str = "3b66 b 0 0 0 0 0 0 0 1 1 7 0\n";
        assert!(compared(&[MAPS, PIECE], &[OTHER, MAP]).problems.is_empty());
        // In another container than before.
        wrong(&[MAPS, MAPS], &[MAP, &MAP.replace("3b71 9", "3b71 b")]);
    }
}
