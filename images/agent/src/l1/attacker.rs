//! Lets the devices of a guest access what they must not reach, and compares what they read and change with what they may.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::attack::{self, Access, Action, Order, PAGE};
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::ranges::Reach;
use vfio_fast_protocol::record::{DEVICE_FAULTS, Event};

use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

/// Where L2 gets its orders from.
const SOCKET: &str = "/run/l2-orders";
/// The log with the number of attempts.
const TABLE: &str = "attacks";
/// Problems of a case that are printed.
const SHOWN: usize = 5;

/// Accesses of one kind, and how many of them the IOMMU has to refuse.
pub struct Case<C> {
    pub check: C,
    pub accesses: Vec<Access>,
    /// Whether the devices also write there.
    pub writes: bool,
    /// What has to happen, where it is known beforehand.
    pub expected: Option<Tally>,
}

/// One attempt for each page of each access in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub attempts: u64,
    pub refused: u64,
    pub landed: u64,
}

impl Tally {
    pub fn of(refused: u64, landed: u64) -> Self {
        Self { attempts: refused + landed, refused, landed }
    }

    fn count(&mut self, landed: bool) {
        self.attempts += 1;
        *(if landed { &mut self.landed } else { &mut self.refused }) += 1;
    }
}

/// What is at guest addresses, whether devices may reach it or not.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub at: u64,
    pub bytes: u64,
    pub home: Home,
}

#[derive(Clone, Copy, Debug)]
pub enum Home {
    /// Memory of QEMU, from that address on.
    Host(u64),
    /// A BAR, which only L2's processor reads and writes.
    Bar,
}

/// A page that devices attack, or a neighbour of one.
struct Plot {
    home: Home,
    /// What must be there.
    bytes: Vec<u8>,
    /// What was there before.
    saved: Vec<u8>,
}

pub struct Attacker<'a> {
    lab: &'a Lab,
    orders: UnixStream,
    /// QEMU's memory.
    memory: File,
    places: Vec<Place>,
    may_reach: Vec<Reach>,
    sent: u64,
}

/// The port that orders go through.
pub fn with_port(line: CommandLine<'_>) -> CommandLine<'_> {
    line.args(["-chardev", &format!("socket,id=orders,path={SOCKET},server=on,wait=off")])
        .args(["-device", &format!("virtserialport,chardev=orders,name={}", attack::PORT)])
}

impl<'a> Attacker<'a> {
    /// Of a guest that has not run yet.
    pub fn new(lab: &'a Lab, vm: &Vm) -> Result<Self> {
        let orders = UnixStream::connect(SOCKET).with_context(|| format!("cannot connect to {SOCKET}"))?;
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", vm.pid));
        let memory = memory.context("cannot open QEMU's memory")?;
        lab.report.log(TABLE, &format!("{:<26}{:>9}{:>8}{:>8}", "", "attempts", "refused", "landed"));
        Ok(Self { lab, orders, memory, places: Vec::new(), may_reach: Vec::new(), sent: 0 })
    }

    /// From now on this is there.
    pub fn place(&mut self, place: Place) {
        self.places.push(place);
    }

    /// From now on there is nothing that begins there.
    pub fn remove(&mut self, at: u64) {
        self.places.retain(|place| place.at != at);
    }

    /// From now on devices may reach this.
    pub fn permit(&mut self, reach: Reach) {
        self.may_reach.push(reach);
    }

    /// From now on devices may not reach what begins in there.
    pub fn forbid(&mut self, at: u64, bytes: u64) {
        self.may_reach.retain(|reach| !(at..at + bytes).contains(&reach.start));
    }

    pub fn reached(&self, at: u64, write: bool) -> bool {
        let reaches = |reach: &Reach| (reach.start..=reach.last).contains(&at) && (reach.write || !write);
        self.may_reach.iter().any(reaches)
    }

    /// Lets the devices make the accesses of some cases, first all reads, and makes the check of each case.
    pub fn attack<C: CheckName + Copy>(&mut self, vm: &mut Vm, cases: Vec<Case<C>>) -> Result<()> {
        let all: Vec<(usize, Access)> = (0..)
            .zip(&cases)
            .flat_map(|(n, case)| case.accesses.iter().map(move |access| (n, *access)))
            .collect();
        self.announce(&all);
        let mut plots = self.plots(vm, &all)?;
        let mut seen: Vec<(Tally, Vec<String>)> = cases.iter().map(|_| Default::default()).collect();
        self.read(vm, &plots, &all, &mut seen)?;
        let written: Vec<(usize, Access)> = all.into_iter().filter(|(case, _)| cases[*case].writes).collect();
        for round in rounds(&written) {
            self.write(vm, &mut plots, &round, &mut seen)?;
        }
        for (case, (tally, problems)) in cases.into_iter().zip(seen) {
            self.report(&case, tally, problems);
        }
        plots.values().try_for_each(|plot| match plot.home {
            Home::Host(address) => self.memory.write_all_at(&plot.saved, address).context("cannot write"),
            Home::Bar => Ok(()),
        })
    }

    /// Tells the host where the IOMMU will report faults.
    fn announce(&self, accesses: &[(usize, Access)]) {
        let parts = accesses.iter().flat_map(|(_, access)| access.parts().map(|(_, part)| part.at));
        let pages: BTreeSet<u64> =
            parts.filter(|at| !self.reached(*at, true)).map(|at| at - at % PAGE).collect();
        for page in pages {
            self.lab.report.log(DEVICE_FAULTS, &format!("{page:#x}"));
        }
    }

    /// Puts canaries into the pages that are accessed, as far as there is something, and into their neighbours.
    fn plots(&mut self, vm: &mut Vm, accesses: &[(usize, Access)]) -> Result<BTreeMap<u64, Plot>> {
        let parts = accesses.iter().flat_map(|(_, access)| access.parts().map(|(_, part)| part.at));
        let around = |at: u64| {
            let page = at - at % PAGE;
            [page.checked_sub(PAGE), Some(page), page.checked_add(PAGE)].into_iter().flatten()
        };
        let pages: BTreeSet<u64> = parts.flat_map(around).collect();
        let mut plots = BTreeMap::new();
        for page in pages {
            let Some(home) = self.home(page) else { continue };
            let mut bytes = vec![0; PAGE as usize];
            attack::canary(self.seed(home), page, &mut bytes);
            let mut saved = vec![0; PAGE as usize];
            if let Home::Host(address) = home {
                let read = self.memory.read_exact_at(&mut saved, address);
                read.with_context(|| format!("cannot read what is at {page:#x}"))?;
            }
            plots.insert(page, Plot { home, bytes, saved });
        }
        let all = plots.keys().copied().collect();
        self.fill(vm, &plots, all)?;
        Ok(plots)
    }

    fn home(&self, page: u64) -> Option<Home> {
        let inside =
            |place: &&Place| page >= place.at && place.bytes >= PAGE && page - place.at <= place.bytes - PAGE;
        // What came last is there now.
        let place = self.places.iter().rev().find(inside)?;
        Some(match place.home {
            Home::Host(address) => Home::Host(address + (page - place.at)),
            Home::Bar => Home::Bar,
        })
    }

    /// The seed of canaries: other memory at the same address has other ones.
    fn seed(&self, home: Home) -> u64 {
        match home {
            Home::Host(address) => self.lab.job.image_seed ^ address,
            Home::Bar => self.lab.job.write_seed,
        }
    }

    fn fill(&mut self, vm: &mut Vm, plots: &BTreeMap<u64, Plot>, pages: Vec<u64>) -> Result<()> {
        let mut in_bar = Vec::new();
        for page in pages {
            let plot = &plots[&page];
            match plot.home {
                Home::Host(address) => {
                    let written = self.memory.write_all_at(&plot.bytes, address);
                    written.with_context(|| format!("cannot write what is at {page:#x}"))?;
                }
                Home::Bar => in_bar.push(Access { at: page, bytes: PAGE }),
            }
        }
        if !in_bar.is_empty() {
            self.order(vm, Action::Fill, in_bar)?;
        }
        Ok(())
    }

    /// What is in the plots now.
    fn look(&mut self, vm: &mut Vm, plots: &BTreeMap<u64, Plot>) -> Result<BTreeMap<u64, Vec<u8>>> {
        let mut now = BTreeMap::new();
        let mut in_bar = Vec::new();
        for (&page, plot) in plots {
            match plot.home {
                Home::Host(address) => {
                    let mut bytes = vec![0; PAGE as usize];
                    self.memory.read_exact_at(&mut bytes, address).context("cannot read QEMU's memory")?;
                    now.insert(page, bytes);
                }
                Home::Bar => in_bar.push(Access { at: page, bytes: PAGE }),
            }
        }
        if !in_bar.is_empty() {
            let pages: Vec<u64> = in_bar.iter().map(|access| access.at).collect();
            let (_, found) = self.order(vm, Action::Look, in_bar)?;
            now.extend(pages.into_iter().zip(found));
        }
        Ok(now)
    }

    /// Lets L2 carry out an order; returns its number and what was read.
    fn order(&mut self, vm: &mut Vm, action: Action, accesses: Vec<Access>) -> Result<(u64, Vec<Vec<u8>>)> {
        self.sent += 1;
        let order = Order { number: self.sent, action, accesses };
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("cannot send an order")?;
        let found = vm.next_event("an order to be carried out", |event| match event {
            Event::Attacked { order, found } if *order == self.sent => Some(found.clone()),
            _ => None,
        })?;
        Ok((order.number, found))
    }

    fn read(
        &mut self,
        vm: &mut Vm,
        plots: &BTreeMap<u64, Plot>,
        accesses: &[(usize, Access)],
        seen: &mut [(Tally, Vec<String>)],
    ) -> Result<()> {
        let (_, found) =
            self.order(vm, Action::Read, accesses.iter().map(|(_, access)| *access).collect())?;
        ensure!(found.len() == accesses.len(), "{} of {} reads", found.len(), accesses.len());
        for ((case, access), found) in accesses.iter().zip(&found) {
            let (tally, problems) = &mut seen[*case];
            for (offset, part) in access.parts() {
                let found = &found[offset..offset + part.bytes as usize];
                let landed = plots.get(&(part.at - part.at % PAGE)).is_some_and(|plot| {
                    let from = (part.at % PAGE) as usize;
                    plot.bytes[from..from + found.len()] == *found
                });
                tally.count(landed);
                let may = self.reached(part.at, false);
                if may != landed || !landed && !attack::is_nothing(found) {
                    problems.push(format!(
                        "a read of {} bytes at {:#x} got {found:x?}; {}",
                        part.bytes,
                        part.at,
                        if may { "it had to get what is there" } else { "nothing had to be read" }
                    ));
                }
            }
        }
        let now = self.look(vm, plots)?;
        if let Some(at) = first_change(plots, &now) {
            seen.iter_mut().for_each(|(_, problems)| problems.push(format!("reads changed {at:#x}")));
        }
        Ok(())
    }

    fn write(
        &mut self,
        vm: &mut Vm,
        plots: &mut BTreeMap<u64, Plot>,
        accesses: &[(usize, Access)],
        seen: &mut [(Tally, Vec<String>)],
    ) -> Result<()> {
        let (number, _) =
            self.order(vm, Action::Write, accesses.iter().map(|(_, access)| *access).collect())?;
        let mut now = self.look(vm, plots)?;
        let mut touched = BTreeSet::new();
        for (n, (case, access)) in (0..).zip(accesses) {
            let written = attack::written(self.lab.job.write_seed, number, n);
            let (tally, problems) = &mut seen[*case];
            for (offset, part) in access.parts() {
                let page = part.at - part.at % PAGE;
                let from = (part.at % PAGE) as usize;
                let written = &written[offset..offset + part.bytes as usize];
                let place = now.get_mut(&page).map(|bytes| &mut bytes[from..from + written.len()]);
                let landed = place.as_ref().is_some_and(|place| **place == *written);
                tally.count(landed);
                let may = self.reached(part.at, true);
                if may != landed {
                    let what = if may { "did not land" } else { "landed" };
                    problems.push(format!("a write of {} bytes at {:#x} {what}", part.bytes, part.at));
                }
                // What is left must be as it was.
                if let (true, Some(place), Some(plot)) = (landed, place, plots.get(&page)) {
                    place.copy_from_slice(&plot.bytes[from..from + written.len()]);
                    touched.insert(page);
                }
            }
        }
        if let Some(at) = first_change(plots, &now) {
            let cases: BTreeSet<usize> = accesses.iter().map(|(case, _)| *case).collect();
            for case in cases {
                seen[case].1.push(format!("writes changed {at:#x}, which none was aimed at"));
            }
        }
        self.fill(vm, plots, touched.into_iter().collect())
    }

    fn report<C: CheckName + Copy>(&self, case: &Case<C>, tally: Tally, mut problems: Vec<String>) {
        let more = problems.len().saturating_sub(SHOWN);
        problems.truncate(SHOWN);
        if more > 0 {
            problems.push(format!("{more} more"));
        }
        let Tally { attempts, refused, landed } = tally;
        let seen = format!("{attempts} attempts, {refused} refused, {landed} landed");
        if attempts == 0 || case.expected.is_some_and(|expected| expected != tally) {
            problems.push(format!("{seen}, and not {:?}", case.expected));
        }
        let row = format!("{:<26}{attempts:>9}{refused:>8}{landed:>8}", case.check.name());
        self.lab.report.log(TABLE, &row);
        self.lab.report.step(&format!("{}: {seen}", case.check.name()));
        self.lab.report.check(case.check, &problems, &seen);
    }
}

/// Where a plot has other bytes than it must have.
fn first_change(plots: &BTreeMap<u64, Plot>, now: &BTreeMap<u64, Vec<u8>>) -> Option<u64> {
    plots.iter().find_map(|(page, plot)| {
        let bad = plot.bytes.iter().zip(&now[page]).position(|(expected, now)| expected != now)?;
        Some(page + bad as u64)
    })
}

/// Accesses that can be made at the same time: none overlaps another one.
fn rounds(accesses: &[(usize, Access)]) -> Vec<Vec<(usize, Access)>> {
    let mut rounds: Vec<Vec<(usize, Access)>> = Vec::new();
    for one in accesses {
        let fits = |round: &&mut Vec<(usize, Access)>| round.iter().all(|other| !other.1.overlaps(one.1));
        match rounds.iter_mut().find(fits) {
            Some(round) => round.push(*one),
            None => rounds.push(vec![*one]),
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_in_different_rounds() {
        let accesses: Vec<(usize, Access)> =
            Access::around(0x5000).into_iter().map(|access| (0, access)).collect();
        let rounds: Vec<usize> = rounds(&accesses).iter().map(Vec::len).collect();
        assert_eq!(rounds, [4, 1]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let plot = Plot { home: Home::Bar, bytes: vec![1, 1, 1], saved: Vec::new() };
        let plots = BTreeMap::from([(0x5000, plot)]);
        assert_eq!(first_change(&plots, &BTreeMap::from([(0x5000, vec![1, 1, 1])])), None);
        assert_eq!(first_change(&plots, &BTreeMap::from([(0x5000, vec![1, 3, 1])])), Some(0x5001));
    }
}
