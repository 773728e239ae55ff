//! What every scenario has at hand.

use std::time::Duration;

use vfio_fast_protocol::job::Job;

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
}
