//! Random numbers for the order of events.

use vfio_fast_protocol::test_data;

/// The same numbers for the same seed.
pub struct Numbers {
    seed: u64,
    drawn: u64,
}

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// The next one, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut word = [0; 8];
        test_data::fill(self.seed, self.drawn * 8, &mut word);
        self.drawn += 1;
        u64::from_le_bytes(word) % end
    }
}
