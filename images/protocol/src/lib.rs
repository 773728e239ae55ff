//! What the test machines share with the host that judges them: the job that goes in, the records
//! that come out, the data that is expected on disks and in BARs, and readers for the ioctl witness
//! and QEMU's flat view. Everything here is plain data and runs anywhere.
//!
//! Kernel options, ports and files of the machines begin with `vft`, which stands for vfio-fast test.

pub mod attack;
pub mod bar_layout;
pub mod bench;
pub mod checks;
pub mod core_runs;
pub mod flatview;
pub mod host;
pub mod job;
pub mod l2_job;
pub mod machine;
pub mod memory;
mod newer_qemu;
pub mod qemu;
pub mod ranges;
pub mod record;
pub mod scenarios;
pub mod spec;
pub mod tap;
pub mod test_data;
pub mod witness;
