//! Runs a plan against the kernel and keeps the table true to it, call by call.

use std::time::{Duration, Instant};

use crate::addr::IovaRange;
use crate::backend::Backend;
use crate::error::{Errno, Error, Op, Result, Why};
use crate::plan::{Plan, Unmap};
use crate::populate::Populating;
use crate::region::Kind;
use crate::table::{Entry, MapTable};
use crate::wanted::WantedSet;

/// A device region the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The whole region.
    pub region: IovaRange,
    /// The entry of it that failed.
    pub entry: Entry,
    /// What the kernel answered.
    pub errno: Errno,
}

/// What was done: filled in as it happens, so that it is true after a failure as well.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Map calls that succeeded.
    pub map_calls: u64,
    /// Bytes they mapped.
    pub map_bytes: u64,
    /// Time in map calls, failed ones included.
    pub map_time: Duration,
    /// Unmap calls that succeeded.
    pub unmap_calls: u64,
    /// Bytes they unmapped.
    pub unmap_bytes: u64,
    /// Time in unmap calls, failed ones included.
    pub unmap_time: Duration,
    /// Device regions that stay unmapped.
    pub refusals: Vec<Refusal>,
    /// Entries that were taken for RAM and turned out to be device memory.
    pub devices: Vec<Entry>,
}

/// Executes plans on one backend.
#[derive(Debug)]
pub struct Executor<'a> {
    /// What holds the entries.
    pub backend: &'a dyn Backend,
    /// What it holds.
    pub table: &'a mut MapTable,
    /// What was done so far.
    pub done: Done,
}

impl Executor<'_> {
    /// All unmaps, then all maps: what is wanted at an IOVA now may overlap what was mapped there before.
    ///
    /// A failed unmap does not stop the other unmaps, but no map follows it. The first map that fails for anything but device
    /// memory stops the run. The table then says how far it came.
    ///
    /// An entry waits until its memory was faulted in: piece `n` of `populating`, if there is one, is entry `n` of the plan.
    pub fn run(
        &mut self,
        plan: &Plan,
        wanted: &mut WantedSet,
        populating: Option<&Populating<'_>>,
    ) -> Result<()> {
        self.clear(&plan.unmaps)?;
        let mut refused = None;
        for (index, entry) in plan.maps.iter().enumerate() {
            if refused.is_some_and(|region: IovaRange| region.contains(entry.range)) {
                continue;
            }
            let mut entry = *entry;
            if populating.is_some_and(|populating| populating.settle(index)) {
                entry.kind = Kind::Device;
                wanted.reclassify_as_device(entry.range);
                self.done.devices.push(entry);
            }
            match (self.map(&entry), entry.kind) {
                (Ok(()), _) => {}
                (Err(errno), Kind::Ram) => {
                    let (range, hva) = (Some(entry.range), Some(entry.hva));
                    return Err(Error { op: Op::Map, errno, range, hva, why: Why::Kernel });
                }
                (Err(errno), Kind::Device) => refused = Some(self.refuse(&entry, errno, wanted)?),
            }
        }
        Ok(())
    }

    /// Takes entries away; answers the first failure but does not stop at it.
    pub fn clear(&mut self, unmaps: &[Unmap]) -> Result<()> {
        let mut first = Ok(());
        for unmap in unmaps {
            let cleared = self.unmap(unmap);
            if let Err(error) = cleared
                && first.is_ok()
            {
                first = Err(error);
            }
        }
        first
    }

    /// A region is mapped whole or not at all: takes back what of it is mapped. It stays wanted, and since plans look only
    /// where something was touched, it is not tried again until the caller maps it anew.
    fn refuse(&mut self, entry: &Entry, errno: Errno, wanted: &WantedSet) -> Result<IovaRange> {
        let region = wanted.overlapping(entry.range).next().map_or(entry.range, |wanted| wanted.region.range);
        let mapped: Vec<IovaRange> = self.table.overlapping(region).map(|entry| entry.range).collect();
        for range in mapped {
            self.unmap(&Unmap { range, entries: 1, ram_bytes: 0 })?;
        }
        self.done.refusals.push(Refusal { region, entry: *entry, errno });
        Ok(region)
    }

    fn map(&mut self, entry: &Entry) -> std::result::Result<(), Errno> {
        let start = Instant::now();
        let answer = self.backend.map(&entry.mapping());
        self.done.map_time += start.elapsed();
        answer?;
        self.table.insert(*entry);
        self.done.map_calls += 1;
        self.done.map_bytes = self.done.map_bytes.saturating_add(entry.range.length());
        Ok(())
    }

    fn unmap(&mut self, unmap: &Unmap) -> Result<()> {
        let start = Instant::now();
        let answer = self.backend.unmap(unmap.range);
        self.done.unmap_time += start.elapsed();
        let failed =
            |errno, why| Err(Error { op: Op::Unmap, errno, range: Some(unmap.range), hva: None, why });
        let got = match answer {
            Ok(got) => got,
            Err(errno) => return failed(errno, Why::Kernel),
        };
        self.done.unmap_calls += 1;
        self.done.unmap_bytes = self.done.unmap_bytes.saturating_add(got);
        // A plan unmaps whole adjacent entries, so the kernel must find every byte of the range mapped.
        let expected = unmap.range.length();
        if got != expected {
            return failed(Errno::EIO, Why::ByteCount { expected, got });
        }
        self.table.remove_within(unmap.range);
        Ok(())
    }
}
