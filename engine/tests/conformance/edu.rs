//! An `edu`: a device whose engine copies between any 64-bit address and its own buffer.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

/// The bytes of its buffer.
pub const BUFFER: u64 = 4096;

/// The device, until it is dropped.
pub struct Edu {
    /// Its registers, which are mapped: a write to the device's file is cut into words of 32 bits by kernels before
    /// 6.11, and the device ignores the upper word.
    registers: *mut u8,
    /// Keeps the device open.
    _device: File,
}

// SAFETY: the registers belong to this struct alone, and any thread may access them.
unsafe impl Send for Edu {}

impl Edu {
    /// What is mapped of its registers.
    const BYTES: usize = 4096;
    /// The device's address of its buffer.
    const BUFFER_ADDRESS: u64 = 0x4_0000;
    const SOURCE: usize = 0x80;
    const DESTINATION: usize = 0x88;
    const COUNT: usize = 0x90;
    const COMMAND: usize = 0x98;
    const RUN: u64 = 1;
    const FROM_BUFFER: u64 = 2;

    /// A device that decodes memory and may master the bus. `registers` is their offset in its file.
    pub fn of(device: File, registers: u64) -> Self {
        let (protection, offset) = (libc::PROT_READ | libc::PROT_WRITE, i64::try_from(registers).unwrap());
        let (anywhere, fd) = (ptr::null_mut(), device.as_raw_fd());
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let mapped = unsafe { libc::mmap(anywhere, Self::BYTES, protection, libc::MAP_SHARED, fd, offset) };
        assert_ne!(mapped, libc::MAP_FAILED, "{}", Error::last_os_error());
        Self { registers: mapped.cast(), _device: device }
    }

    /// Lets the device write bytes of its buffer, from `offset` on, to `iova`.
    pub fn start_write(&self, iova: u64, offset: u64, bytes: u64) {
        self.start(Self::BUFFER_ADDRESS + offset, iova, bytes, Self::FROM_BUFFER);
    }

    /// Lets the device read bytes at `iova` into its buffer, from `offset` on.
    pub fn start_read(&self, iova: u64, offset: u64, bytes: u64) {
        self.start(iova, Self::BUFFER_ADDRESS + offset, bytes, 0);
    }

    fn start(&self, source: u64, destination: u64, bytes: u64, direction: u64) {
        self.set(Self::SOURCE, source);
        self.set(Self::DESTINATION, destination);
        self.set(Self::COUNT, bytes);
        self.set(Self::COMMAND, Self::RUN | direction);
    }

    /// Waits until the device has tried, which takes it a tenth of a second.
    pub fn finish(&self) {
        let start = Instant::now();
        while self.get(Self::COMMAND) & Self::RUN != 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "the device does not finish a transfer");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the device write the first bytes of its buffer to `iova`, and returns whether that changed the memory at
    /// the host address.
    pub fn reaches(&self, iova: u64, address: u64) -> bool {
        const NOTHING: u32 = 0;
        let address = address as *mut u32;
        // SAFETY: the memory is mapped until the test ends, aligned, and no reference into it exists; only the device
        // writes to it at the same time.
        unsafe { ptr::write_volatile(address, NOTHING) };
        self.start_write(iova, 0, 4);
        self.finish();
        // SAFETY: as above.
        unsafe { ptr::read_volatile(address) != NOTHING }
    }

    fn register(&self, register: usize) -> *mut u64 {
        self.registers.wrapping_add(register).cast()
    }

    fn set(&self, register: usize, value: u64) {
        // SAFETY: the register is inside the mapping and aligned, and no reference into it exists.
        unsafe { ptr::write_volatile(self.register(register), value) };
    }

    fn get(&self, register: usize) -> u64 {
        // SAFETY: as above.
        unsafe { ptr::read_volatile(self.register(register)) }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        // SAFETY: the mapping is this struct's, and nothing else has its address.
        let gone = unsafe { libc::munmap(self.registers.cast(), Self::BYTES) };
        assert_eq!(gone, 0);
    }
}
