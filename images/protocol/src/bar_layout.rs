//! Where a device reads and writes another device's BAR: at both ends, and where the GiBs of it meet.

const GIB: u64 = 1 << 30;

/// The BAR in which data is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarLayout {
    /// Bytes of the whole BAR, more than a GiB.
    pub bytes: u64,
}

impl BarLayout {
    /// Bytes of one transfer.
    pub const CHUNK: u64 = 4096;

    /// The layout of a BAR of that many MiB.
    pub fn of_mib(mib: u64) -> Self {
        Self { bytes: mib << 20 }
    }

    /// Offsets of what is written: the first page, the last, and half a page on each side of every GiB.
    pub fn written(self) -> Vec<u64> {
        let edges = (GIB..self.bytes).step_by(GIB as usize).map(|edge| edge - Self::CHUNK / 2);
        [0].into_iter().chain(edges).chain([self.bytes - Self::CHUNK]).collect()
    }

    /// Offsets of what is read and compared: right next to what is written.
    pub fn read(self) -> Vec<u64> {
        let last = self.bytes - Self::CHUNK;
        let next_to = |at| if at == last { at - Self::CHUNK } else { at + Self::CHUNK };
        self.written().into_iter().map(next_to).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_edges_are_touched() {
        let bar = BarLayout::of_mib(2048);
        assert_eq!(bar.written(), [0, GIB - 2048, 2 * GIB - 4096]);
        assert_eq!(bar.read(), [4096, GIB + 2048, 2 * GIB - 8192]);
    }

    #[test]
    fn no_byte_is_both_read_and_written() {
        let bar = BarLayout::of_mib(4096);
        let mut starts = [bar.written(), bar.read()].concat();
        starts.sort_unstable();
        assert_eq!(starts.len(), 10);
        assert!(starts.windows(2).all(|pair| pair[0] + BarLayout::CHUNK <= pair[1]), "{starts:x?}");
        assert_eq!(starts.last(), Some(&(bar.bytes - BarLayout::CHUNK)));
    }
}
