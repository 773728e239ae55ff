//! type1's rules for dirty pages (6.12 and 7.2).

use super::SimConfig;
use super::rules::KernelState;
use crate::addr::{Iova, IovaRange};
use crate::error::Errno;

impl KernelState {
    // vfio_iommu_type1_dirty_pages: starting twice and stopping twice is allowed.
    pub(super) fn track(&mut self, config: &SimConfig, on: bool) -> Result<(), Errno> {
        if config.max_bitmap_bytes == 0 {
            return Err(Errno::ENOTTY);
        }
        if on != self.tracking {
            self.written.clear();
        }
        self.tracking = on;
        Ok(())
    }

    // vfio_iommu_type1_dirty_pages, vfio_iova_dirty_bitmap: the range must not cut an entry.
    pub(super) fn read_dirty(
        &mut self,
        config: &SimConfig,
        iova: u64,
        length: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        let range = self.tracked(config, iova, length, bitmap)?;
        let entries = self.whole(range)?;
        entries.for_each(|entry| self.tell(config, entry, range, bitmap));
        Ok(())
    }

    // vfio_dma_do_unmap with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
    pub(super) fn unmap_dirty(
        &mut self,
        config: &SimConfig,
        iova: u64,
        length: u64,
        bitmap: &mut [u64],
    ) -> Result<u64, Errno> {
        let range = self.tracked(config, iova, length, bitmap)?;
        let entries = self.whole(range)?;
        Ok(entries
            .map(|entry| {
                self.tell(config, entry, range, bitmap);
                self.remove(config, entry)
            })
            .sum())
    }

    // verify_bitmap_size, and the check that tracking is on.
    fn tracked(
        &self,
        config: &SimConfig,
        iova: u64,
        length: u64,
        bitmap: &[u64],
    ) -> Result<IovaRange, Errno> {
        let page = config.page_sizes.smallest();
        let bytes = size_of_val(bitmap) as u64;
        let enough = (length / page).div_ceil(64) * 8;
        let odd = length == 0 || (iova | length) & (page - 1) != 0;
        if !self.tracking || odd || bytes < enough || bytes > config.max_bitmap_bytes {
            return Err(Errno::EINVAL);
        }
        IovaRange::new(Iova(iova), length).ok_or(Errno::EINVAL)
    }

    // update_user_bitmap: a page that was reported is clean again.
    fn tell(&mut self, config: &SimConfig, entry: IovaRange, range: IovaRange, bitmap: &mut [u64]) {
        let page = config.page_sizes.smallest();
        for number in entry.start() / page..=entry.last() / page {
            if self.written.remove(&number) || config.all_dirty {
                let bit = number - range.start() / page;
                bitmap[(bit / 64) as usize] |= 1 << (bit % 64);
            }
        }
    }
}
