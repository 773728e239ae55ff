//! What the test machines share with the host that judges them: the job that goes in, the records
//! that come out, the data that is expected on disks and in BARs, and readers for the ioctl witness
//! and QEMU's flat view. Everything here is plain data and runs anywhere.

pub mod bar_layout;
pub mod bench;
pub mod flatview;
pub mod job;
pub mod ranges;
pub mod record;
pub mod test_data;
pub mod witness;
