//! Checks QEMU's ioctls in L1 against a second witness: the operations that L0's virtio-iommu traces.
//!
//! The two records share no clock, and one ioctl becomes as many IOMMU operations as its memory has physically
//! contiguous pieces. Their order is certain, however: L1's kernel returns from an ioctl only after L0 has carried
//! out its operations. The check therefore walks both records in order. The operations of each ioctl must come next
//! and be complete, with no others in between. After each step, both records must contain the same mappings for the
//! device.

mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::witness::{self, Call};

use super::records::log_text;
use event::Event;

/// Name of the trace log in the folder of a run, without its extension.
pub const LOG: &str = "iommu-trace";

/// VFIO_DEVICE_DETACH_IOMMUFD_PT: detaches the device from its domain, even if the IOAS still has mappings.
const DETACH: u32 = 0x3b78;
/// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
const ATTACH: u32 = 0x3b77;

/// Arguments that make L0's QEMU write the trace.
pub fn arguments(folder: &Path) -> Vec<String> {
    let events = event::NAMES.iter().flat_map(|name| ["-trace".to_owned(), (*name).to_owned()]);
    let log = folder.join(LOG).with_extension("log");
    events.chain(["-D".to_owned(), log.display().to_string()]).collect()
}

/// Compares the ioctls in L1 with L0's trace, both from the folder of a run, for the device at `address` in L1.
/// Returns the problems and, if there are none, a summary.
pub fn check(folder: &Path, address: &str) -> (Vec<String>, String) {
    let compared = witness::parse(&log_text(folder, "witness"))
        .and_then(|calls| compare(&calls, &log_text(folder, LOG), event::endpoint(address)?));
    match compared {
        Ok(seen) => (Vec::new(), seen.to_string()),
        Err(error) => (vec![format!("{error:#}")], String::new()),
    }
}

/// Counts of a successful comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Ioctls that mapped or unmapped something, and the operations L0 carried out for them.
    ioctls: usize,
    maps: usize,
    unmaps: usize,
    map_bytes: u64,
    /// Number of comparisons, and of the transactions of QEMU's memory core that they cover.
    comparisons: usize,
    commits: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ioctls caused {} maps of {} KiB on average, {} unmaps and nothing else; the mappings agree after each of {} steps \
             ({} commits)",
            self.ioctls,
            self.maps,
            (self.map_bytes >> 10) / (self.maps as u64).max(1),
            self.unmaps,
            self.comparisons,
            self.commits
        )
    }
}

/// Walks both records. The error describes the first difference.
pub fn compare(calls: &[Call], trace: &str, endpoint: u32) -> Result<Seen> {
    let mut events = event::parse(trace)?.into_iter();
    let mut iommu = Iommu::of(endpoint);
    let mut seen = Seen::default();
    let mut done: Vec<Call> = Vec::new();
    let (mut after_kvm, mut detached) = (false, false);
    for step in steps(calls) {
        if detached && step.iter().any(|call| call.cmd == ATTACH && call.ret == 0) {
            (detached, iommu.may_leave) = (false, false);
        }
        if !detached {
            let mut owed = Owed::by(&step);
            while owed.bytes() > 0 {
                let event = events.next().with_context(|| format!("L0's record ends with {owed}"))?;
                if let Some(operation) = iommu.apply(event)? {
                    owed.pay(operation)?;
                    seen.add(operation);
                }
            }
        }
        if step.iter().any(|call| call.cmd == DETACH && call.ret == 0) {
            detached = true;
            iommu.leave(&mut events)?;
        }
        after_kvm |= step.iter().any(Call::gives_memory);
        let changes = step.iter().filter(|call| call.mapped() || call.unmapped() && call.out > 0).count();
        done.extend(step);
        if changes > 0 {
            // QEMU calls VFIO's listener before KVM's, so a memory slot set in KVM ended the previous transaction.
            seen.commits += usize::from(std::mem::take(&mut after_kvm));
            seen.comparisons += 1;
            seen.ioctls += if detached { 0 } else { changes };
            let wanted = if detached { Vec::new() } else { held(&done)? };
            iommu.ensure_holds(wanted, done.len())?;
        }
    }
    // The kernel removes the mappings QEMU leaves at exit, before or after it detaches the device.
    let left_behind = !detached && !held(&done)?.is_empty();
    iommu.may_leave |= left_behind;
    for event in events {
        if let Some(operation) = iommu.apply(event)? {
            ensure!(left_behind && operation.unmaps, "after the last ioctl L0 {operation}");
        }
    }
    ensure!(seen.maps > 0, "nothing was mapped");
    iommu.ensure_holds(Vec::new(), done.len())?;
    Ok(seen)
}

/// The mappings that result from the ioctls.
fn held(calls: &[Call]) -> Result<Vec<Reach>> {
    let mut all = Vec::new();
    for held in witness::replay(calls)?.values() {
        all.extend(witness::reach(held)?);
    }
    Ok(all)
}

/// The calls in order, grouped into steps. Calls that overlap in time form one step, because the order of their
/// operations is unknown.
fn steps(calls: &[Call]) -> Vec<Vec<Call>> {
    let mut order: Vec<(usize, &Call)> = calls.iter().enumerate().collect();
    order.sort_by_key(|(_, call)| call.start_ns);
    let mut steps: Vec<Vec<(usize, &Call)>> = Vec::new();
    let mut end = 0;
    for (n, call) in order {
        match steps.last_mut() {
            Some(step) if call.start_ns < end => step.push((n, call)),
            _ => steps.push(vec![(n, call)]),
        }
        end = end.max(call.start_ns + call.duration_ns);
    }
    let in_order = |mut step: Vec<(usize, &Call)>| {
        step.sort_by_key(|(n, _)| *n);
        step.into_iter().map(|(_, call)| call.clone()).collect()
    };
    steps.into_iter().map(in_order).collect()
}

/// One IOMMU operation in the domain of the device under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    unmaps: bool,
    reach: Reach,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.unmaps { "unmapped" } else { "mapped" }, self.reach)
    }
}

impl Seen {
    fn add(&mut self, operation: Operation) {
        if operation.unmaps {
            self.unmaps += 1;
        } else {
            self.maps += 1;
            self.map_bytes += operation.reach.bytes();
        }
    }
}

/// The operations that L0 has yet to carry out for one step, each with the bytes left.
struct Owed(Vec<(Operation, u64)>);

impl Owed {
    /// Includes successful ioctls only, so an operation for a failed one is an error.
    fn by(calls: &[Call]) -> Self {
        let debts = calls.iter().filter(|call| call.mapped() || call.unmapped()).map(|call| {
            // An ioctl that unmaps everything has no size.
            let last = call.size.checked_sub(1).map_or(u64::MAX, |rest| call.iova.saturating_add(rest));
            let reach = Reach { start: call.iova, last, write: true };
            (Operation { unmaps: call.is_unmap(), reach }, if call.is_unmap() { call.out } else { call.size })
        });
        Self(debts.collect())
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    fn pay(&mut self, operation: Operation) -> Result<()> {
        let Reach { start, last, .. } = operation.reach;
        let debt = self.0.iter_mut().find(|(owed, bytes)| {
            owed.unmaps == operation.unmaps
                && owed.reach.start <= start
                && last <= owed.reach.last
                && *bytes >= operation.reach.bytes()
        });
        match debt {
            Some((_, bytes)) => *bytes -= operation.reach.bytes(),
            None => bail!("L0 {operation}, with {self}"),
        }
        Ok(())
    }
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open: Vec<String> = self
            .0
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(Operation { unmaps, reach: Reach { start, last, .. } }, bytes)| {
                let what = if *unmaps { "an unmap" } else { "a map" };
                format!("{bytes:#x} bytes to come of {what} of [{start:#x}, {last:#x}]")
            })
            .collect();
        f.write_str(&open.join(" and "))
    }
}

/// The mappings of each domain according to L0, and the domain of the device under test.
struct Iommu {
    endpoint: u32,
    domains: BTreeMap<u32, BTreeMap<u64, Reach>>,
    /// The domain that the device's driver in L1 used before QEMU got the device.
    first: Option<u32>,
    current: Option<u32>,
    /// Whether the device has been in another domain than `first`: from then on its mappings are QEMU's.
    handed_out: bool,
    /// Whether the IOMMU translates the device's addresses.
    translates: bool,
    /// Whether the device may leave its domain while mappings are left there.
    may_leave: bool,
}

impl Iommu {
    fn of(endpoint: u32) -> Self {
        Self {
            endpoint,
            domains: BTreeMap::new(),
            first: None,
            current: None,
            handed_out: false,
            translates: false,
            may_leave: false,
        }
    }

    /// Applies an event. Returns an operation if the event changed the mappings of the device while QEMU has it.
    fn apply(&mut self, event: Event) -> Result<Option<Operation>> {
        match event {
            Event::Attach { domain, endpoint } if endpoint == self.endpoint => {
                self.current = Some(domain);
                self.handed_out |= *self.first.get_or_insert(domain) != domain;
            }
            Event::Detach { domain, endpoint } if endpoint == self.endpoint => {
                // The new domain is attached before the old one is detached.
                self.current = self.current.filter(|current| *current != domain);
                let left = self.domains.get(&domain).map_or(0, BTreeMap::len);
                let own = self.first == Some(domain) || self.may_leave;
                ensure!(own || left == 0, "the device left its domain with {left} mappings in it");
            }
            Event::Switch { endpoint, translates } if endpoint == self.endpoint => {
                self.translates = translates
            }
            Event::Attach { .. } | Event::Detach { .. } | Event::Switch { .. } => {}
            Event::Free { domain } => drop(self.domains.remove(&domain)),
            Event::Map { domain, reach, read } => {
                let held = self.domains.entry(domain).or_default();
                let before =
                    held.range(..=reach.last).next_back().filter(|(_, other)| other.last >= reach.start);
                ensure!(before.is_none(), "L0 mapped {reach} over what was there");
                held.insert(reach.start, reach);
                let operation = self.if_watched(domain, Operation { unmaps: false, reach });
                ensure!(read || operation.is_none(), "L0 mapped {reach}, not to be read");
                return Ok(operation);
            }
            Event::Unmap { domain, start, last } => {
                let gone = self.domains.get_mut(&domain).and_then(|held| held.remove(&start));
                let reach = gone.filter(|reach| reach.last == last);
                let reach = reach
                    .with_context(|| format!("L0 unmapped [{start:#x}, {last:#x}], mapped was {gone:?}"))?;
                return Ok(self.if_watched(domain, Operation { unmaps: true, reach }));
            }
        }
        Ok(None)
    }

    fn if_watched(&self, domain: u32, operation: Operation) -> Option<Operation> {
        (self.handed_out && self.current == Some(domain)).then_some(operation)
    }

    /// Applies the events up to the one that detaches the device.
    fn leave(&mut self, events: &mut impl Iterator<Item = Event>) -> Result<()> {
        self.may_leave = true;
        for event in events {
            if let Some(operation) = self.apply(event)? {
                bail!("L0 {operation} before the device was detached");
            }
            if matches!(event, Event::Detach { endpoint, .. } if endpoint == self.endpoint) {
                return Ok(());
            }
        }
        bail!("L0's record ends before the device was detached")
    }

    /// Compares the device's mappings with the expected ones.
    fn ensure_holds(&self, wanted: Vec<Reach>, calls: usize) -> Result<()> {
        ensure!(self.translates, "after {calls} calls the device is not behind the IOMMU");
        let held = self.current.and_then(|domain| self.domains.get(&domain));
        let held = held.into_iter().flat_map(BTreeMap::values).copied().collect();
        let problems = ranges::differences("by ioctls", wanted, "in L0's IOMMU", held);
        ensure!(problems.is_empty(), "after {calls} calls: {}", problems.join(", "));
        Ok(())
    }
}
