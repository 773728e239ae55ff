//! Runs a plan against the kernel, and updates the table after each call.

mod batch;
mod parallel;
mod refusal;
mod restore;
mod run;
mod share;

use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use batch::Batch;
use batch::{Call, Pace};
pub use run::{CallContext, Records, run};
pub use share::cut_all;

use crate::addr::IovaRange;
use crate::backend::Backend;
use crate::error::{Errno, Error, ErrorKind, KernelResult, Op, Result};
use crate::object::Objects;
use crate::populate::{HostRange, PopulateOptions, Report, files};
use crate::reconcile::backlog::Backlog;
use crate::reconcile::dirty_pages::{DirtyPages, bitmap_for};
use crate::reconcile::plan::{Plan, Unmap};
use crate::reconcile::table::{Entry, MapTable};
use crate::reconcile::wanted::WantedSet;
use crate::region::Kind;
use crate::sys::cpu::CpuSet;
use crate::sys::page::base_page;
use crate::sys::vma;
use crate::timeline;
pub use refusal::Refusal;
use refusal::is_no_peer_to_peer;

/// The calls that were made and their effects. Updated after each call, so it is correct after a failure too.
#[derive(Clone, Debug, Default)]
pub struct Executed {
    /// Map calls that succeeded.
    pub map_calls: u64,
    /// Bytes that the map calls mapped.
    pub map_bytes: u64,
    /// Time in map calls, including failed ones. Concurrent calls each count in full.
    pub map_time: Duration,
    /// Unmap calls that succeeded.
    pub unmap_calls: u64,
    /// Bytes that the unmap calls unmapped.
    pub unmap_bytes: u64,
    /// Time in unmap calls, including failed ones. Concurrent calls each count in full.
    pub unmap_time: Duration,
    /// The longest unmap call.
    pub unmap_longest: Duration,
    /// Threads for calls that could not be started, except those of `populated`.
    pub thread_start_failures: u64,
    /// The report of faulting in; `None` if that was not tried.
    pub populated: Option<Report>,
    /// Device regions that the kernel refused and that stay unmapped.
    pub refusals: Vec<Refusal>,
    /// Entries declared as RAM that turned out to be device memory. Their regions count as device memory from now on.
    pub devices: Vec<Entry>,
    /// Whether the kernel's answer to an unmap call contradicts the table. What the kernel holds is then not known.
    pub contradicted: bool,
}

/// Executes plans on one backend.
#[derive(Debug)]
pub struct Executor<'a> {
    /// The backend that holds the entries.
    pub backend: &'a dyn Backend,
    /// The record of the backend's entries.
    pub table: &'a mut MapTable,
    /// What the caller wants.
    pub wanted: &'a WantedSet,
    /// The objects that entries are parts of.
    pub objects: &'a Objects,
    /// Receives the dirty pages of unmapped entries; `None` while tracking is off.
    pub dirty: Option<&'a mut DirtyPages>,
    /// Maximum size of one unmap call.
    pub batch: Batch,
    /// Maximum number of threads to call a parallel backend from, including the calling one.
    pub threads: usize,
    /// The CPUs of the other threads; `None`: those of the process.
    pub cpus: Option<&'a CpuSet>,
    /// What is left to a job in the background: entries that are mapped are not.
    pub backlog: &'a mut Backlog,
    /// What the job has mapped.
    pub job_mapped: &'a mut Backlog,
    /// Whether the job executes.
    pub of_job: bool,
    /// The results so far.
    pub executed: Executed,
}

impl<'a> Executor<'a> {
    fn context(&self) -> CallContext<'a> {
        let &Self { backend, objects, threads, cpus, .. } = self;
        CallContext { backend, objects, threads, cpus, control: None }
    }

    /// Runs a plan without giving up the table in between; see [`run`].
    pub fn run(&mut self, plan: &Plan, fault_in: Option<PopulateOptions<'_>>) -> Result<()> {
        let context = self.context();
        run(plan, fault_in, context, &Mutex::new(self))
    }

    /// Maps one entry, without faulting it in.
    pub fn map(&mut self, entry: &Entry) -> KernelResult<()> {
        let start = Instant::now();
        let object = self.objects.object_of(entry);
        let answer = timeline::call("map", entry.range, || self.backend.map(&entry.mapping(), object));
        self.record_map(entry, answer, start.elapsed());
        answer
    }

    /// Unmaps entries. Continues after a failure; returns the first one.
    pub fn clear(&mut self, unmaps: &[Unmap]) -> Result<()> {
        let threads = if self.backend.capabilities().parallel { self.useful_threads(unmaps) } else { 1 };
        if threads > 1 { self.clear_in_parallel(unmaps, threads) } else { self.clear_in_order(unmaps) }
    }

    fn clear_in_order(&mut self, unmaps: &[Unmap]) -> Result<()> {
        let mut first = Ok(());
        let mut pace = Pace::new(self.batch);
        for unmap in unmaps {
            let mut rest = Some(unmap.range);
            while let Some((call, after)) = rest.and_then(|rest| Call::split(self.table, rest, pace.batch()))
            {
                rest = after;
                let before = self.executed.unmap_time;
                first = first.and(self.make(call));
                pace.record(call.entries, self.executed.unmap_time - before);
            }
        }
        first
    }

    /// Unmaps all entries at once, if the container has no other user and the kernel accepts the call. Returns
    /// `false` if nothing was done.
    pub fn clear_all(&mut self) -> Result<bool> {
        if !self.backend.capabilities().exclusive {
            return Ok(false);
        }
        let start = Instant::now();
        let answer = timeline::call("unmap all", IovaRange::ALL, || self.backend.unmap_all());
        if answer.is_err() {
            return Ok(false);
        }
        let expected = self.table.totals().bytes;
        let noted = self.record_unmap(IovaRange::ALL, expected, answer, start.elapsed());
        // No mapping is left, whatever the number of bytes.
        self.table.remove_within(IovaRange::ALL);
        noted.map(|()| true)
    }

    /// Unmaps the mapped part of a region, which is either mapped completely or not at all. The region stays wanted,
    /// but is not tried again until the caller maps it again, because a plan covers only what a transaction touched.
    fn refuse(&mut self, entry: &Entry, errno: Errno) -> Result<IovaRange> {
        let wanted = self.wanted.overlapping(entry.range).next();
        let (region, declared) =
            wanted.map_or((entry.range, entry.kind), |wanted| (wanted.region.range, wanted.declared));
        let mapped: Vec<IovaRange> = self.table.overlapping(region).map(|entry| entry.range).collect();
        for range in mapped {
            self.unmap(range)?;
        }
        self.backlog.remove(region);
        self.job_mapped.remove(region);
        self.executed.refusals.push(Refusal { region, declared, entry: *entry, errno });
        Ok(region)
    }

    /// Records that an entry declared as RAM is device memory.
    fn found_device(&mut self, entry: &mut Entry) {
        entry.kind = Kind::Device;
        self.executed.devices.push(*entry);
    }

    /// Unmaps the whole entry in `range`.
    pub fn unmap(&mut self, range: IovaRange) -> Result<()> {
        self.make(Call { range, entries: 1, bytes: range.length() })
    }

    /// Makes one unmap call.
    fn make(&mut self, call: Call) -> Result<()> {
        let Call { range, entries, bytes } = call;
        let start = Instant::now();
        let answer = self.ask_to_unmap(range);
        let done = self.record_unmap(range, bytes, answer, start.elapsed());
        if answer.is_err() && entries > 1 {
            self.unmap_one_by_one(range);
        }
        done
    }

    fn ask_to_unmap(&mut self, range: IovaRange) -> KernelResult<u64> {
        let Self { backend, dirty, .. } = self;
        timeline::call("unmap", range, || match (dirty, backend.dirty_tracking()) {
            (Some(dirty), Some(tracking)) if range.length() <= tracking.max_bytes() => {
                let mut bitmap = bitmap_for(range, dirty.page())?;
                // Bits that were returned with an error are valid too.
                let answer = tracking.unmap_dirty(range, &mut bitmap);
                dirty.add(range, &bitmap);
                answer
            }
            (Some(dirty), _) => {
                // The entry is too large for any bitmap.
                dirty.add_all(range);
                backend.unmap(range)
            }
            (None, _) => backend.unmap(range),
        })
    }

    /// Unmaps the entries of a call that failed with an error, so that one entry does not keep the others mapped, and
    /// so that the table is right again: iommufd, and type1 with a bitmap, have unmapped the entries before the one that
    /// caused the error. Further errors are not returned, because the call's is.
    fn unmap_one_by_one(&mut self, range: IovaRange) {
        if self.executed.contradicted {
            return;
        }
        let entries: Vec<IovaRange> = self.table.overlapping(range).map(|entry| entry.range).collect();
        let mut unmapped_by_the_call = self.backend.capabilities().parallel || self.dirty.is_some();
        for range in entries {
            let start = Instant::now();
            let mut answer = self.ask_to_unmap(range);
            unmapped_by_the_call &= answer == Ok(0);
            if unmapped_by_the_call {
                answer = Ok(range.length());
            }
            let _ = self.record_unmap(range, range.length(), answer, start.elapsed());
        }
    }

    fn record_map(&mut self, entry: &Entry, answer: KernelResult<()>, took: Duration) {
        self.executed.map_time += took;
        if answer.is_ok() {
            self.table.insert(*entry);
            self.backlog.remove(entry.range);
            if self.of_job {
                self.job_mapped.add(entry.range);
            }
            self.executed.map_calls += 1;
            self.executed.map_bytes = self.executed.map_bytes.saturating_add(entry.range.length());
        }
    }

    /// A call unmaps whole entries, so the kernel must have every byte of them mapped, and nothing else there.
    fn record_unmap(
        &mut self,
        range: IovaRange,
        expected: u64,
        answer: KernelResult<u64>,
        took: Duration,
    ) -> Result<()> {
        self.executed.unmap_time += took;
        self.executed.unmap_longest = self.executed.unmap_longest.max(took);
        let got = answer.map_err(|errno| {
            // The kernel has no other reason for EINVAL than a mapping that the table does not have, or no container.
            self.executed.contradicted |= errno == Errno::EINVAL;
            Error::kernel(Op::Unmap, errno).at(range)
        })?;
        self.executed.unmap_calls += 1;
        self.executed.unmap_bytes = self.executed.unmap_bytes.saturating_add(got);
        if got != expected {
            self.executed.contradicted = true;
            let error = Error::kernel(Op::Unmap, Errno::EIO).at(range);
            return Err(Error { kind: ErrorKind::ByteCount { expected, got }, ..error });
        }
        self.table.remove_within(range);
        Ok(())
    }
}

/// Whether a map call failed because memory declared as RAM is device memory. Populate finds that out before, unless
/// it left the memory to the map call.
fn is_unseen_device(entry: &Entry, errno: Errno) -> bool {
    errno == Errno::EFAULT
        && entry.kind == Kind::Ram
        && vma::is_device(entry.hva, entry.range.length()).unwrap_or(false)
}

/// The error of a map call.
pub fn not_mapped(entry: &Entry, errno: Errno) -> Error {
    Error::kernel(Op::Map, errno).at(entry.range).at_hva(entry.hva)
}

/// The memory of each entry. Device memory is not faulted in, and neither is a single page: checking whether it is
/// present would cost more than the map call.
fn pieces(entries: &[Entry]) -> Vec<HostRange> {
    let page = base_page();
    let pieces = entries.iter().map(|entry| {
        let length = entry.range.length();
        let bytes = if entry.kind == Kind::Ram && length > page { length } else { 0 };
        HostRange { hva: entry.hva, bytes, writable: entry.perm.is_writable() }
    });
    pieces.collect()
}
