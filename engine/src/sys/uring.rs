//! Faults pages in by long-term pins that are dropped at once: registered buffers of io_uring.
//!
//! A long-term pin faults missing pages in outside ZONE_MOVABLE and CMA areas, and moves there what it finds in them.
//! VFIO's pin then has nothing to move. Registered buffers are the only such pins that a process can take on many
//! threads, without a device, and drop again.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::addr::{HUGE_PAGE, HostVa};
use crate::error::Errno;

// From include/uapi/linux/io_uring.h.
const REGISTER_BUFFERS2: libc::c_uint = 15;
const REGISTER_BUFFERS_UPDATE: libc::c_uint = 16;
const REGISTER_SPARSE: u32 = 1;
/// IORING_FEAT_MIN_TIMEOUT, which Linux 6.12 added. On older kernels dropping a buffer can wait for an RCU grace
/// period, which takes longer than faulting in its memory.
const SINCE_6_12: u32 = 1 << 15;

/// Bytes of one pin: while it is held, it counts as locked memory of the user. Not less than a huge page, which would
/// be faulted in by the first of its pins anyway.
const PIN_BYTES: u64 = HUGE_PAGE;

/// `struct io_uring_params`
#[repr(C)]
#[derive(Default)]
struct Params {
    before: [u32; 5],
    features: u32,
    after: [u64; 12],
}

/// `struct io_uring_rsrc_register`
#[repr(C)]
#[derive(Default)]
struct Register {
    nr: u32,
    flags: u32,
    resv2: u64,
    data: u64,
    tags: u64,
}

/// `struct io_uring_rsrc_update2`
#[repr(C)]
#[derive(Default)]
struct Update {
    offset: u32,
    resv: u32,
    data: u64,
    tags: u64,
    nr: u32,
    resv2: u32,
}

const _: () = {
    assert!(size_of::<Params>() == 120 && offset_of!(Params, features) == 20);
    assert!(size_of::<Register>() == 32 && size_of::<Update>() == 32 && offset_of!(Update, nr) == 24);
};

/// An io_uring with a table of one buffer. It receives no requests.
#[derive(Debug)]
pub(crate) struct PinRing {
    fd: OwnedFd,
}

impl PinRing {
    /// ENOSYS or EPERM if the kernel, its settings or a sandbox forbid io_uring; EOPNOTSUPP if the kernel is older
    /// than 6.12.
    pub fn new() -> Result<Self, Errno> {
        let mut params = Params::default();
        // SAFETY: the kernel reads and writes the parameters, which are as long as its own.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(Errno::last)?;
        // SAFETY: the kernel has just created this descriptor, so nothing else owns it. It is closed on exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if params.features & SINCE_6_12 == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ring = Self { fd };
        let table = Register { nr: 1, flags: REGISTER_SPARSE, ..Register::default() };
        ring.register(REGISTER_BUFFERS2, (&raw const table).cast(), size_of::<Register>())?;
        Ok(ring)
    }

    /// Makes every page of the `bytes` bytes at `hva` present and writable, where a long-term pin would put it. No pin
    /// is left when this returns.
    ///
    /// Stops at the first page that cannot be made present; the pages before it stay present.
    pub fn fault_in(&self, hva: HostVa, bytes: u64) -> Result<(), Errno> {
        let end = hva.raw().checked_add(bytes).ok_or(Errno::EINVAL)?;
        let mut at = hva.raw();
        let mut pinned = Ok(());
        while at < end && pinned.is_ok() {
            let next = end.min(at - at % PIN_BYTES + PIN_BYTES);
            // Replaces the buffer before it, which is unpinned.
            pinned = self.update(at, next - at);
            at = next;
        }
        self.update(0, 0)?;
        pinned
    }

    /// Replaces the buffer; one of no bytes at address 0 leaves the table empty.
    fn update(&self, address: u64, bytes: u64) -> Result<(), Errno> {
        let address = usize::try_from(address).map_err(|_| Errno::EINVAL)?;
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let buffer = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: bytes };
        let update = Update { data: (&raw const buffer) as u64, nr: 1, ..Update::default() };
        self.register(REGISTER_BUFFERS_UPDATE, (&raw const update).cast(), size_of::<Update>())
    }

    fn register(&self, what: libc::c_uint, argument: *const libc::c_void, size: usize) -> Result<(), Errno> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: the argument is `size` bytes of the struct that this operation reads, and what it refers to outlives
        // the call. The kernel pins and unpins the memory of the buffer, which faults pages in and changes no byte of
        // it: no request refers to the buffer. Memory that is not mapped, or not writable, is an error.
        let answer =
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, argument, size as libc::c_uint) };
        if answer < 0 { Err(Errno::last()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::memlock::user_charges;

    #[test]
    #[ignore = "holds a pin until its standard input ends, for another test"]
    fn a_process_that_pins() {
        let memory = vec![1u8; 2 * PIN_BYTES as usize];
        let start = (memory.as_ptr() as u64).next_multiple_of(4096);
        let ring = PinRing::new().unwrap();
        ring.update(start, PIN_BYTES).unwrap();
        assert!(user_charges().own >= PIN_BYTES);
        println!("\npinned");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn pins_of_another_process_of_the_user_are_seen() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::uring::tests::a_process_that_pins", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "pinned"));
        let charges = user_charges();
        drop(child.stdin.take());
        said.for_each(drop);
        assert!(child.wait().unwrap().success());
        // Other tests and programs of this user can pin too.
        assert!(charges.others >= PIN_BYTES && charges.processes >= 1, "{charges}");
        assert!(charges.largest.is_some_and(|(_, name, bytes)| !name.is_empty() && bytes >= PIN_BYTES));
    }

    #[test]
    fn what_cannot_be_pinned_is_an_error_and_not_a_signal() {
        let ring = PinRing::new().expect("Linux 6.12 or newer, with io_uring");
        // The first pages of the address space are never mapped (vm.mmap_min_addr).
        assert_eq!(ring.fault_in(HostVa::from_raw(0x1000), 0x1000), Err(Errno::EFAULT));
        assert_eq!(ring.fault_in(HostVa::from_raw(u64::MAX), 2), Err(Errno::EINVAL));
    }
}
