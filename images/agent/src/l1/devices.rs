//! Gives PCI devices to vfio-pci.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::job::{Container, Mode};

use crate::l1::lab::Lab;

/// The device `n` for `device_add`, to be mapped in that mode; where it goes is to be added.
pub fn to_add(lab: &Lab, n: usize, mode: Mode) -> Value {
    let mut device = json!({ "driver": "vfio-pci", "host": lab.job.devices[n] });
    if lab.job.container == Container::Iommufd {
        device["iommufd"] = "iommufd0".into();
    }
    match mode {
        Mode::Reference | Mode::NotBuilt => {}
        Mode::Stock => device["x-dma-mapper"] = "builtin".into(),
        Mode::Fast => device["x-dma-mapper"] = "libvfio-fast".into(),
    }
    device
}

/// QEMU's report that a section of `size` could not be mapped, up to the error: a pattern.
pub fn map_failure(mode: Mode, size: &str) -> String {
    match mode {
        Mode::Fast => format!("libvfio_fast failed to map IOVA %p, size {size}, vaddr %p: "),
        _ => format!("vfio_container_dma_map(%p, %p, {size}, %p) = "),
    }
}

/// Makes a mediated device of the kernel's sample driver mtty, with that UUID; returns its folder.
pub fn make_mediated(uuid: &str) -> Result<String> {
    const TYPE: &str = "/sys/class/mtty/mtty/mdev_supported_types/mtty-1";
    fs::write(format!("{TYPE}/create"), uuid).with_context(|| format!("cannot make a device of {TYPE}"))?;
    Ok(format!("/sys/bus/mdev/devices/{uuid}"))
}

/// Binds the device to vfio-pci, taking it from another driver if one has it.
pub fn give_to_vfio(address: &str) -> Result<()> {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    ensure!(device.exists(), "there is no PCI device {address}");
    let driver = device.join("driver");
    if driver.exists() {
        fs::write(driver.join("unbind"), address).with_context(|| format!("cannot unbind {address}"))?;
    }
    fs::write(device.join("driver_override"), "vfio-pci")
        .with_context(|| format!("cannot set driver_override of {address}"))?;
    let probed = fs::write("/sys/bus/pci/drivers_probe", address);
    // On arm64, a device that no driver has bound yet gets its group now.
    ensure!(device.join("iommu_group").exists(), "{address} has no IOMMU group: the IOMMU is off");
    probed.with_context(|| format!("cannot probe {address}"))?;
    let bound = fs::read_link(&driver).with_context(|| format!("{address} has no driver now"))?;
    ensure!(bound.ends_with("vfio-pci"), "{address} went to {}", bound.display());
    Ok(())
}

/// Gives the device back to the driver that the kernel has for it.
pub fn give_back(address: &str) -> Result<()> {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    fs::write(device.join("driver/unbind"), address).with_context(|| format!("cannot unbind {address}"))?;
    fs::write(device.join("driver_override"), "\n")
        .with_context(|| format!("cannot clear driver_override of {address}"))?;
    fs::write("/sys/bus/pci/drivers_probe", address).with_context(|| format!("cannot probe {address}"))
}
