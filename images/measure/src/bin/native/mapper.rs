//! The target of the map calls: io_uring's pins, or a container or an IOAS with a real device.

use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping, PopulatePolicy};
use vfio_fast_engine::limits::{Limits, Memlock};
use vfio_fast_engine::object::Object;

use vfio_fast_measure::container::Container;
use vfio_fast_measure::pins::PinStandIn;
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_testing::ioas::{self, Device, Ioas};

/// A container for one case. The case sets the capabilities that it reports.
#[derive(Debug)]
pub struct Mapper {
    backend: Box<dyn Backend>,
    /// When the engine faults memory in.
    pub populates: PopulatePolicy,
    /// Whether map calls receive the file of the memory.
    pub objects: bool,
    /// Keeps the container open.
    _container: Option<Container>,
    /// Keeps the IOAS open.
    _ioas: Option<Ioas>,
}

impl Mapper {
    /// Prepares for `bytes` bytes of mappings: through that driver for the device with that PCI address, if there is
    /// one.
    pub fn new(device: Option<&str>, driver: Driver, bytes: u64) -> Result<Self> {
        let Some(address) = device else {
            let pins = PinStandIn::new(bytes).context("Cannot make io_uring's tables")?;
            return Ok(Self::of(Box::new(pins), None, None));
        };
        let device = Device::at(address);
        if driver == Driver::Type1 {
            let container = Container::with(&device)?;
            let backend = Type1::open(container.fd())?;
            return Ok(Self::of(Box::new(backend), Some(container), None));
        }
        let ioas = Ioas::new(&device);
        ioas::attach(&ioas.device, ioas.id).map_err(|errno| anyhow!("Cannot attach: {}", Errno(errno)))?;
        let backend = Iommufd::open(ioas.iommufd.as_fd(), ioas.id)?;
        Ok(Self::of(Box::new(backend), None, Some(ioas)))
    }

    fn of(backend: Box<dyn Backend>, container: Option<Container>, ioas: Option<Ioas>) -> Self {
        let Capabilities { populate, objects, .. } = backend.capabilities();
        Self { backend, populates: populate, objects, _container: container, _ioas: ioas }
    }

    /// The name in the report.
    pub fn name(device: Option<&str>, driver: Driver) -> &'static str {
        match driver {
            _ if device.is_none() => PinStandIn::NAME,
            Driver::Type1 => "type1, a device behind an emulated IOMMU",
            Driver::Iommufd => "iommufd, a device behind an emulated IOMMU",
        }
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
