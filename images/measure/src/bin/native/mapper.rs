//! The target of the map calls: io_uring's pins, or an IOAS with a real device.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow};
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping, PopulatePolicy};
use vfio_fast_engine::limits::{Limits, Memlock};
use vfio_fast_engine::object::Object;

use vfio_fast_measure::pins::PinStandIn;
use vfio_fast_testing::ioas::{self, Device, Ioas};

/// A container for one case. The case sets the capabilities that it reports.
#[derive(Debug)]
pub struct Mapper {
    backend: Box<dyn Backend>,
    /// When the engine faults memory in.
    pub populates: PopulatePolicy,
    /// Whether map calls receive the file of the memory.
    pub objects: bool,
    /// Keeps the IOAS open.
    _ioas: Option<Ioas>,
}

impl Mapper {
    /// Prepares for `bytes` bytes of mappings: for the device with that PCI address, if there is one.
    pub fn new(device: Option<&str>, bytes: u64) -> Result<Self> {
        let Some(address) = device else {
            let pins = PinStandIn::new(bytes).context("Cannot make io_uring's tables")?;
            return Ok(Self::of(Box::new(pins), None));
        };
        let ioas = Ioas::new(&Device::at(address));
        ioas::attach(&ioas.device, ioas.id).map_err(|errno| anyhow!("Cannot attach: {}", Errno(errno)))?;
        let backend = Iommufd::open(ioas.iommufd.as_raw_fd(), ioas.id)?;
        Ok(Self::of(Box::new(backend), Some(ioas)))
    }

    fn of(backend: Box<dyn Backend>, ioas: Option<Ioas>) -> Self {
        let objects = backend.capabilities().objects;
        Self { backend, populates: PopulatePolicy::Overlapped, objects, _ioas: ioas }
    }

    /// The name in the report.
    pub fn name(device: Option<&str>) -> &'static str {
        if device.is_some() { "iommufd, a device behind an emulated IOMMU" } else { PinStandIn::NAME }
    }
}

impl Backend for Mapper {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn limits(&self) -> vfio_fast_engine::Result<Limits> {
        self.backend.limits()
    }

    fn memlock(&self) -> Memlock {
        self.backend.memlock()
    }

    fn capabilities(&self) -> Capabilities {
        let (populate, objects) = (self.populates, self.objects);
        Capabilities { populate, objects, exclusive: false, ..self.backend.capabilities() }
    }

    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> std::result::Result<(), Errno> {
        self.backend.map(mapping, object)
    }

    fn unmap(&self, range: IovaRange) -> std::result::Result<u64, Errno> {
        self.backend.unmap(range)
    }

    fn unmap_all(&self) -> std::result::Result<u64, Errno> {
        self.backend.unmap_all()
    }
}
