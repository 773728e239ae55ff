//! A backend whose calls a test watches, delays or answers itself.

use std::fmt;

use vfio_fast_engine::Error;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::{Backend, Capabilities, DirtyTracking, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::limits::{Limits, Memlock};
use vfio_fast_engine::object::Object;

/// What a test does with the calls. By default they are passed on.
pub trait Hooks: Send + Sync {
    fn capabilities(&self, of_kernel: Capabilities) -> Capabilities {
        of_kernel
    }

    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        kernel.map(mapping, object)
    }

    fn unmap(&self, kernel: &dyn Backend, range: IovaRange) -> KernelResult<u64> {
        kernel.unmap(range)
    }
}

/// Passes calls on to `kernel` through `hooks`.
pub struct Hooked<H> {
    pub kernel: Box<dyn Backend>,
    pub hooks: H,
}

impl<H> fmt::Debug for Hooked<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl<H: Hooks> Backend for Hooked<H> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn limits(&self) -> Result<Limits, Error> {
        self.kernel.limits()
    }

    fn memlock(&self) -> Memlock {
        self.kernel.memlock()
    }

    fn capabilities(&self) -> Capabilities {
        self.hooks.capabilities(self.kernel.capabilities())
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        self.kernel.dirty_tracking()
    }

    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        self.hooks.map(&*self.kernel, mapping, object)
    }

    fn unmap(&self, range: IovaRange) -> KernelResult<u64> {
        self.hooks.unmap(&*self.kernel, range)
    }

    fn unmap_all(&self) -> KernelResult<u64> {
        self.kernel.unmap_all()
    }
}
