//! Measures what many calls cost: exact regions and arrays of pages compared with one call per page, and a large
//! guest's memory unmapped in one call, in bounded calls, and page by page.
//!
//! Prints JSON lines ([`vfio_fast_protocol::bench::calls`]) on stdout and its progress on stderr; `cargo xtask bench
//! --calls` runs it in a nested machine and makes tables of them. Without a device, io_uring's pins stand in for the
//! map ioctl (see [`vfio_fast_measure::pins`]).
#![allow(unsafe_code, reason = "the memory that is mapped is made by hand")]

mod arrays;
mod counted;
mod exact;
mod unmap;

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use vfio_fast_engine::Errno;
use vfio_fast_engine::backend::Backend;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::type1::Type1;

use vfio_fast_measure::container::Container;
use vfio_fast_measure::pins::PinStandIn;
use vfio_fast_protocol::bench::calls::{Driver, Record};
use vfio_fast_testing::ioas::{self, Device, Ioas};

/// Measures what many calls cost.
#[derive(Parser)]
struct Args {
    /// Map for this device, bound to vfio-pci, instead of pinning through io_uring
    #[arg(long, value_name = "PCI ADDRESS")]
    device: Option<String>,
    /// Drivers to map arrays and exact regions through; ignored without a device
    #[arg(long, value_delimiter = ',', default_values_t = [Driver::Type1])]
    drivers: Vec<Driver>,
    /// Rounds per case
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Pages of each array [default: no arrays]
    #[arg(long)]
    array: Option<u64>,
    /// Exact regions of 4 KiB to map and unmap one by one, and a tenth as many of 2 MiB [default: none]
    #[arg(long)]
    exact: Option<u64>,
    /// Exact regions of 4 KiB to unmap at once; several numbers are allowed [default: none]
    #[arg(long, value_delimiter = ',')]
    at_once: Vec<u64>,
    /// GiB of a guest in pages of 2 MiB [default: no such guest]
    #[arg(long)]
    huge: Option<u64>,
    /// GiB of a guest in pages of 4 KiB [default: no such guest]
    #[arg(long)]
    small: Option<u64>,
    /// Maximum number of entries where each page is an entry of its own
    #[arg(long, default_value_t = 1 << 18)]
    entries: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(pages) = args.array {
        arrays::measure(&args, pages)?;
    }
    exact::measure(&args)?;
    for (gib, page) in [(args.huge, 2 << 20), (args.small, 4 << 10)] {
        if let Some(gib) = gib {
            unmap::measure(&args, gib, page)?;
        }
    }
    Ok(())
}

/// The target of the map calls, kept open until dropped.
struct Mapper {
    backend: Arc<dyn Backend>,
    _container: Option<Container>,
    _ioas: Option<Ioas>,
}

impl Mapper {
    /// Opens an empty one with room for `pins` separate pins.
    fn new(args: &Args, driver: Driver, pins: u64) -> Result<Self> {
        let Some(address) = &args.device else {
            let pins = PinStandIn::with_rings(pins).context("Cannot make io_uring's tables")?;
            return Ok(Self { backend: Arc::new(pins), _container: None, _ioas: None });
        };
        let device = Device::at(address);
        if driver == Driver::Iommufd {
            let ioas = Ioas::new(&device);
            ioas::attach(&ioas.device, ioas.id)
                .map_err(|errno| anyhow!("Cannot attach: {}", Errno(errno)))?;
            let backend = Iommufd::open(ioas.iommufd.as_fd(), ioas.id)?;
            return Ok(Self { backend: Arc::new(backend), _container: None, _ioas: Some(ioas) });
        }
        let container = Container::with(&device)?;
        let backend = Type1::open(container.fd())?;
        Ok(Self { backend: Arc::new(backend), _container: Some(container), _ioas: None })
    }
}

/// Prints a record and flushes stdout.
fn tell(record: &Record) {
    let line = serde_json::to_string(record).expect("plain data");
    let mut out = std::io::stdout().lock();
    // An error means that the reader closed the pipe, so there is nothing to report to.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
