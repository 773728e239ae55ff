//! Calls about dirty pages.

use super::Call;

/// VFIO_IOMMU_DIRTY_PAGES of a container, and VFIO_DEVICE_FEATURE of a device.
const DIRTY_PAGES: u32 = 0x3b75;
/// VFIO_DEVICE_FEATURE_SET. No flag of the container's is so high.
const SET: u32 = 1 << 17;
/// VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
const DEVICE_START: u32 = 6;

/// What a call about dirty pages did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// The container tracks them from now on.
    Start,
    /// The container does not track them any more.
    Stop,
    /// So many pages of a range of the container's were dirty.
    Read(u64),
    /// A device tracks them itself from now on.
    DeviceStart,
}

impl Call {
    /// What it did about dirty pages, if it was about them and worked.
    pub fn dirty(&self) -> Option<Dirty> {
        match (self.cmd, self.ret, self.flags) {
            (DIRTY_PAGES, 0, 1) => Some(Dirty::Start),
            (DIRTY_PAGES, 0, 2) => Some(Dirty::Stop),
            (DIRTY_PAGES, 0, 4) => Some(Dirty::Read(self.out)),
            (DIRTY_PAGES, 0, flags) if flags == SET | DEVICE_START => Some(Dirty::DeviceStart),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn a_device_is_told_from_its_container() {
        let lines = "3b75 9 0 0 1 0 0 0 0 1 1 7 0\n3b75 9 0 100000 4 0 0 0 20 2 1 7 0\n\
                     3b75 9 0 0 2 0 0 0 0 3 1 7 0\n3b75 a 0 0 20006 0 0 0 0 4 1 7 0\n\
                     3b75 a 0 0 40006 0 ffffffff 25 0 5 1 7 0\n3b75 9 0 0 1 0 ffffffff 22 0 6 1 7 0\n";
        let told: Vec<_> = parse(lines).unwrap().iter().map(Call::dirty).collect();
        let expected = [Dirty::Start, Dirty::Read(32), Dirty::Stop, Dirty::DeviceStart];
        assert_eq!(told[..4], expected.map(Some));
        assert_eq!(told[4..], [None, None]);
    }
}
