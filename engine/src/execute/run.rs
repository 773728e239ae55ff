//! Runs a plan: all unmap calls, then all map calls, with memory faulted in ahead of them.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Executor, files, is_no_peer_to_peer, is_unseen_device, not_mapped, pieces, share};
use crate::addr::IovaRange;
use crate::backend::{Backend, Capabilities, PopulatePolicy};
use crate::error::Result;
use crate::object::Objects;
use crate::populate::{self, Control, Method, PopulateOptions, PopulateSession};
use crate::reconcile::plan::Plan;
use crate::reconcile::table::Entry;
use crate::region::Kind;
use crate::sys::cpu::CpuSet;
use crate::timeline;

/// What threads that make calls need besides the table. It does not change while a plan runs.
#[derive(Clone, Copy, Debug)]
pub struct CallContext<'a> {
    /// The backend that holds the entries.
    pub backend: &'a dyn Backend,
    /// The objects that entries are parts of.
    pub objects: &'a Objects,
    /// Maximum number of threads to call a parallel backend from, including the calling one.
    pub threads: usize,
    /// The CPUs of the other threads; `None`: those of the process.
    pub cpus: Option<&'a CpuSet>,
    /// Of a job in the background; `None` for all other work.
    pub control: Option<&'a Control>,
}

/// Access to the table while a plan runs. Map calls and the faults ahead of them are made without it, and take most of
/// the time; it is needed for a moment after each call.
pub trait Records: Sync {
    /// Runs `record` with exclusive access to the table. It must not wait for another call of this function.
    fn with<R>(&self, record: impl FnOnce(&mut Executor<'_>) -> R) -> R;
}

/// The table of a caller that keeps it locked while the whole plan runs.
impl Records for Mutex<&mut Executor<'_>> {
    fn with<R>(&self, record: impl FnOnce(&mut Executor<'_>) -> R) -> R {
        // A panic in the thread that held the lock continues when the threads are joined.
        record(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes all unmap calls, then all map calls, because a new entry can overlap an old one. With `fault_in`, faults memory
/// in before it is mapped, if the backend and the host benefit from that. If only the host does not, the threads of a
/// parallel backend share the map calls, which fault it in.
///
/// A failed unmap does not stop the other unmaps, but no map follows it. The first map failure stops the run,
/// unless it says that device memory cannot be mapped. The table records how far it came.
pub fn run(
    plan: &Plan,
    fault_in: Option<PopulateOptions<'_>>,
    context: CallContext<'_>,
    records: &impl Records,
) -> Result<()> {
    let Capabilities { populate: policy, parallel, .. } = context.backend.capabilities();
    let fault_in = fault_in.filter(|_| policy != PopulatePolicy::Never);
    let pieces = if fault_in.is_some() { pieces(&plan.maps) } else { Vec::new() };
    // An array of scattered pages has nothing to fault in.
    let fault_in = fault_in.filter(|_| pieces.iter().any(|piece| piece.bytes > 0));
    let mut entries = plan.maps.clone();
    let by_maps = fault_in.filter(|options| options.method == Method::Maps);
    let fault_in = fault_in.filter(|options| options.method != Method::Maps);
    if let Some(options) = by_maps {
        if options.huge_pages {
            populate::advise(&pieces);
        }
        if parallel {
            entries = share::share(entries, context.threads);
        }
    }
    // Memory that its file system cannot hold or give is not faulted in: that would fill it for nothing.
    let fault_in = match fault_in {
        Some(options) => files::can_hold(&pieces)?.then_some(options),
        None => None,
    };
    let mut meanwhile = fault_in;
    if policy == PopulatePolicy::Upfront || !plan.unmaps.is_empty() {
        // If an entry is unmapped only to be cut, the device must regain access to the rest as soon as possible.
        if let Some(options) = meanwhile.take() {
            let report = populate::populate(&pieces, options);
            records.with(|executor| {
                for &index in &report.device_pieces {
                    executor.found_device(&mut entries[index]);
                }
                executor.executed.populated = Some(report);
            });
        }
    }
    records.with(|executor| executor.clear(&plan.unmaps))?;
    if parallel {
        return context.map_in_parallel(entries, meanwhile, by_maps.is_some(), records);
    }
    let Some(options) = meanwhile else { return context.map_in_order(entries, None, records) };
    let work = |session: &PopulateSession<'_>| session.work();
    let (mapped, report) = populate::with(&pieces, options, 1, work, |session| {
        context.map_in_order(entries, Some(session), records)
    });
    records.with(|executor| executor.executed.populated = Some(report));
    mapped
}

impl CallContext<'_> {
    /// Maps the entries in order, each once its memory is present: piece `n` of `session` is entry `n`.
    pub(super) fn map_in_order(
        self,
        entries: Vec<Entry>,
        session: Option<&PopulateSession<'_>>,
        records: &impl Records,
    ) -> Result<()> {
        let mut refused: Option<IovaRange> = None;
        for (index, mut entry) in entries.into_iter().enumerate() {
            if refused.is_some_and(|region| region.contains(entry.range)) {
                continue;
            }
            let is_device = session.is_some_and(|session| session.wait_for(index));
            if is_device {
                records.with(|executor| executor.found_device(&mut entry));
            }
            let is_paused = self.control.is_some_and(Control::is_paused);
            if is_paused || session.is_some_and(PopulateSession::is_cancelled) {
                // The job was paused, or a worker has panicked, and the panic continues here when the threads have ended.
                break;
            }
            let start = Instant::now();
            let object = self.objects.object_of(&entry);
            let answer = timeline::call("map", entry.range, || self.backend.map(&entry.mapping(), object));
            let took = start.elapsed();
            let is_device = answer.is_err_and(|errno| is_unseen_device(&entry, errno));
            records.with(|executor| {
                executor.record_map(&entry, answer, took);
                if is_device {
                    executor.found_device(&mut entry);
                }
                match (answer, entry.kind) {
                    (Ok(()), _) => {}
                    (Err(errno), Kind::Device) if is_no_peer_to_peer(errno) => {
                        refused = Some(executor.refuse(&entry, errno)?);
                    }
                    (Err(errno), _) => return Err(not_mapped(&entry, errno)),
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
