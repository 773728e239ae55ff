//! Discards memory that was mapped for devices.

use std::time::Instant;

use super::{Engine, counters};
use crate::addr::{HostVa, IovaRange};
use crate::error::{Errno, Error, ErrorKind, Op, Result};
use crate::populate::discard;
use crate::sys::discard::DiscardRange;

impl Engine {
    /// Discards `memory`, on as many threads as commits use. Refused if any of it is mapped for devices or wanted:
    /// the kernel pins pages, not addresses, so the device would keep the old pages.
    ///
    /// The memory stays mapped in this process and reads as zero. After an error, only a part of it may be discarded.
    pub fn discard(&self, memory: &DiscardRange) -> Result<()> {
        let start = Instant::now();
        // Hold the lock to the end, so that no other thread maps the memory.
        let state = self.changing()?;
        let wanted = state.wanted.iter().map(|wanted| (wanted.region.range, wanted.region.hva));
        let held = state.table.iter().map(|entry| (entry.range, entry.hva));
        if let Some((with, _)) = wanted.chain(held).find(|(range, hva)| overlap(memory, *range, *hva)) {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Overlap { with }).at_hva(memory.hva()));
        }
        let (discarded, report) =
            discard::discard(memory, self.thread_limit().threads, self.cpu_set.as_ref());
        self.counters.thread_start_failures.add(report.thread_start_failures);
        self.counters.discard_ns.add(counters::nanoseconds(start.elapsed()));
        match discarded {
            Ok(()) => {
                self.counters.discard_bytes.add(memory.bytes());
                Ok(())
            }
            Err(errno) => Err(Error::kernel(Op::Discard, errno).at_hva(memory.hva())),
        }
    }
}

/// Whether `memory` shares a byte with the memory mapped at `hva`.
fn overlap(memory: &DiscardRange, range: IovaRange, hva: HostVa) -> bool {
    // Both ends were checked not to wrap.
    let mapped = (hva.raw(), hva.raw().saturating_add(range.length() - 1));
    let (first, last) = (memory.hva().raw(), memory.hva().raw().saturating_add(memory.bytes() - 1));
    first <= mapped.1 && mapped.0 <= last
}
