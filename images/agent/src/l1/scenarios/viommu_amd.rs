//! As viommu, with an AMD IOMMU.

use anyhow::Result;

use super::viommu::{self, Guest};
use crate::l1::lab::Lab;

pub fn run(lab: &Lab) -> Result<()> {
    viommu::with(
        lab,
        &Guest { device: "amd-iommu,intremap=on,dma-remap=on", options: "amd_iommu=on", traced: false },
    )
}
