//! As soak, with an IOMMU of the guest's.

use anyhow::Result;

use super::soak;
use crate::l1::checks::viommu_events::Follower;
use crate::l1::lab::Lab;

pub fn run(lab: &Lab) -> Result<()> {
    soak::with(lab, Some(Follower::default()))
}
