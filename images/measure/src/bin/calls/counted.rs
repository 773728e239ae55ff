//! A backend that counts and times its calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping, PopulatePolicy};
use vfio_fast_engine::limits::{Limits, Memlock};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::{Errno, Result};

/// The counts and times so far.
#[derive(Debug, Default)]
pub struct Calls {
    pub maps: AtomicU64,
    pub unmaps: AtomicU64,
    longest_unmap_ns: AtomicU64,
}

impl Calls {
    pub fn both(&self) -> u64 {
        self.maps.load(Ordering::Relaxed) + self.unmaps.load(Ordering::Relaxed)
    }

    pub fn longest_unmap(&self) -> Duration {
        Duration::from_nanos(self.longest_unmap_ns.load(Ordering::Relaxed))
    }
}

/// Adds each call to `calls`.
#[derive(Debug)]
pub struct Counted {
    pub backend: Arc<dyn Backend>,
    pub calls: Arc<Calls>,
    /// Whether the engine may check for missing memory and fault it in.
    pub populates: bool,
}

impl Counted {
    /// Faults nothing in, because the memory is already present.
    pub fn present(backend: &Arc<dyn Backend>) -> Self {
        Self { backend: backend.clone(), calls: Arc::default(), populates: false }
    }

    /// Has the capabilities of the backend.
    pub fn unchanged(backend: &Arc<dyn Backend>) -> Self {
        Self { populates: true, ..Self::present(backend) }
    }

    fn timed<T>(&self, unmap: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let answer = unmap();
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.calls.unmaps.fetch_add(1, Ordering::Relaxed);
        self.calls.longest_unmap_ns.fetch_max(took, Ordering::Relaxed);
        answer
    }
}

impl Backend for Counted {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn limits(&self) -> Result<Limits> {
        self.backend.limits()
    }

    fn memlock(&self) -> Memlock {
        self.backend.memlock()
    }

    fn capabilities(&self) -> Capabilities {
        let own = self.backend.capabilities();
        if self.populates {
            return own;
        }
        Capabilities { populate: PopulatePolicy::Never, objects: false, ..own }
    }

    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> std::result::Result<(), Errno> {
        self.calls.maps.fetch_add(1, Ordering::Relaxed);
        self.backend.map(mapping, object)
    }

    fn unmap(&self, range: IovaRange) -> std::result::Result<u64, Errno> {
        self.timed(|| self.backend.unmap(range))
    }

    fn unmap_all(&self) -> std::result::Result<u64, Errno> {
        self.timed(|| self.backend.unmap_all())
    }
}
