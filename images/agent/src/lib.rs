//! What the test machines and the host that judges them have in common: the job that goes in,
//! the records that come out, the bytes that are expected on the disk, and how to read the
//! ioctl witness and QEMU's flat view. Everything here is plain data and runs anywhere.

pub mod bar;
pub mod exit;
pub mod flatview;
pub mod job;
pub mod pattern;
pub mod ranges;
pub mod record;
pub mod stream;
pub mod witness;
