//! What every scenario has at hand.

use std::time::Duration;

use vfio_fast_protocol::job::Job;
use vfio_fast_protocol::l2_job::DiskJob;

use super::report::Reporter;

pub struct Lab {
    pub job: Job,
    /// The channel to the host.
    pub report: Reporter,
}

impl Lab {
    /// The longest that a single wait may take.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.job.wait_s)
    }

    /// L2's work on the disk under test alone, with buffers spread over so much of its memory.
    pub fn disk_job(&self, spread_mib: u64) -> DiskJob {
        let Job { image_seed, write_seed, disk_mib, .. } = self.job;
        DiskJob { image_seed, write_seed, disk_mib, spread_mib, memory_mib: None, second_mib: None }
    }
}
