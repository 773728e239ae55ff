//! A backend whose calls a test watches, delays or answers itself.

use std::fmt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::{Backend, Capabilities, DirtyTracking, Handover, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::limits::{Limits, Memlock};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::{Errno, Error};

/// What a test does with the calls. By default they are passed on.
pub trait Hooks: Send + Sync {
    fn capabilities(&self, of_kernel: Capabilities) -> Capabilities {
        of_kernel
    }

    fn memlock(&self, of_kernel: Memlock) -> Memlock {
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
        self.hooks.memlock(self.kernel.memlock())
    }

    fn capabilities(&self) -> Capabilities {
        self.hooks.capabilities(self.kernel.capabilities())
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        self.kernel.dirty_tracking()
    }

    fn handover(&self) -> Option<&dyn Handover> {
        self.kernel.handover()
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

/// What a map call that waits for the test does once it may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Maps,
    Fails,
    Panics,
}

/// Makes the map calls that `which` chooses wait for the test.
pub struct Waiting {
    which: fn(&Mapping) -> bool,
    began: Mutex<Sender<IovaRange>>,
    go_on: Mutex<Receiver<Then>>,
}

impl Waiting {
    /// The hooks, where the test learns which call waits, and how it lets the call go on.
    pub fn new(which: fn(&Mapping) -> bool) -> (Self, Receiver<IovaRange>, Sender<Then>) {
        let (began, go_on) = (channel(), channel());
        (Self { which, began: Mutex::new(began.0), go_on: Mutex::new(go_on.1) }, began.1, go_on.0)
    }
}

impl Hooks for Waiting {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        if (self.which)(mapping) {
            let _ = self.began.lock().unwrap().send(mapping.range);
            // The test has ended if nothing is received.
            match self.go_on.lock().unwrap().recv() {
                Ok(Then::Fails) => return Err(Errno::ENOMEM),
                Ok(Then::Panics) => panic!("as the test asks"),
                Ok(Then::Maps) | Err(_) => {}
            }
        }
        kernel.map(mapping, object)
    }
}
