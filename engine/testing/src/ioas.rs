//! An IOAS with a real device, for tests and benches.

use std::fs::{self, File, OpenOptions};
use std::io::Error;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr;

use iommufd_bindings as iommufd;
use vfio_bindings::bindings::vfio;

const VFIO_DEVICE_BIND_IOMMUFD: libc::Ioctl = 0x3b76;
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: libc::Ioctl = 0x3b77;
const IOMMU_IOAS_ALLOC: libc::Ioctl = 0x3b81;

/// Makes an ioctl and returns its result. The kernel may write to `argument`.
pub fn ioctl<T>(fd: RawFd, request: libc::Ioctl, argument: &mut T) -> Result<i32, i32> {
    // SAFETY: every caller passes the struct, or the number, that the request takes.
    let answer = unsafe { libc::ioctl(fd, request, ptr::from_mut(argument)) };
    if answer < 0 { Err(Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(answer) }
}

pub fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap()
}

pub fn open(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// A device bound to vfio-pci.
#[derive(Debug)]
pub struct Device {
    /// The device's folder in sysfs.
    pub folder: PathBuf,
}

impl Device {
    /// Looks up the device by its PCI address.
    pub fn at(address: &str) -> Self {
        Self { folder: Path::new("/sys/bus/pci/devices").join(address) }
    }

    fn character_device(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.folder.join("vfio-dev")).unwrap();
        Path::new("/dev/vfio/devices").join(entries.next().unwrap().unwrap().file_name())
    }

    /// Opens the device and binds it to the iommufd, without attaching it.
    pub fn bind(&self, iommufd: &File) -> File {
        let device = open(&self.character_device());
        let mut bind = vfio::vfio_device_bind_iommufd {
            argsz: length_of::<vfio::vfio_device_bind_iommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        ioctl(device.as_raw_fd(), VFIO_DEVICE_BIND_IOMMUFD, &mut bind).expect("binding works");
        device
    }
}

/// An IOAS in an iommufd of its own, and the device bound to that iommufd.
#[derive(Debug)]
pub struct Ioas {
    /// The bound device. It is dropped before the iommufd that it is bound to.
    pub device: File,
    pub iommufd: File,
    pub id: u32,
}

impl Ioas {
    /// Creates an IOAS without attaching the device.
    pub fn new(device: &Device) -> Self {
        Self::on(open(Path::new("/dev/iommu")), device)
    }

    /// Creates an IOAS in an iommufd that has none.
    pub fn on(iommufd: File, device: &Device) -> Self {
        let device = device.bind(&iommufd);
        let mut alloc = iommufd::iommu_ioas_alloc {
            size: length_of::<iommufd::iommu_ioas_alloc>(),
            ..Default::default()
        };
        ioctl(iommufd.as_raw_fd(), IOMMU_IOAS_ALLOC, &mut alloc).expect("an IOAS");
        Self { device, iommufd, id: alloc.out_ioas_id }
    }
}

/// Attaches the device to the IOAS.
pub fn attach(device: &File, ioas_id: u32) -> Result<(), i32> {
    let mut attach = vfio::vfio_device_attach_iommufd_pt {
        argsz: length_of::<vfio::vfio_device_attach_iommufd_pt>(),
        pt_id: ioas_id,
        ..Default::default()
    };
    ioctl(device.as_raw_fd(), VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(drop)
}
