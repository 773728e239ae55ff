//! What every scenario has at hand.

use vfio_fast_protocol::job::Job;

use super::report::Reporter;

pub struct Lab {
    pub job: Job,
    /// The channel to the host.
    pub report: Reporter,
}
