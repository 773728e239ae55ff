//! A type1 container with a real device.

use std::fs::{self, File};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use vfio_bindings::bindings::vfio;

use vfio_fast_testing::ioas::{Device, ioctl, open};

const VFIO_SET_IOMMU: libc::c_ulong = 0x3b66;
const VFIO_GROUP_SET_CONTAINER: libc::c_ulong = 0x3b68;

/// A type1 container with one device, closed when dropped.
#[derive(Debug)]
pub struct Container {
    _group: File,
    file: File,
}

impl Container {
    /// Opens a container and adds the device's group.
    pub fn with(device: &Device) -> Result<Self> {
        let link = fs::read_link(device.folder.join("iommu_group")).context("The device has no group")?;
        let name = link.file_name().context("A group has a name")?;
        let (group, file) = (open(&Path::new("/dev/vfio").join(name)), open(Path::new("/dev/vfio/vfio")));
        let mut fd: i32 = file.as_raw_fd();
        let joined = ioctl(group.as_raw_fd(), VFIO_GROUP_SET_CONTAINER, &mut fd);
        joined.map_err(|errno| anyhow!("The group is not viable: {}", Error::from_raw_os_error(errno)))?;
        // SAFETY: this request takes a number.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), VFIO_SET_IOMMU, vfio::VFIO_TYPE1v2_IOMMU) };
        ensure!(set == 0, "Cannot set the IOMMU type: {}", Error::last_os_error());
        Ok(Self { _group: group, file })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
