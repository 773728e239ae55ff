//! The memory that cases refer to.

use std::os::fd::RawFd;

use super::cases::MEMORY;
use super::run::Hva;
use vfio_fast_engine::addr::HostVa;

/// The addresses of the memory that cases refer to.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The address of memory that can be written.
    pub writable: u64,
    /// An address at which nothing is mapped.
    pub nothing: u64,
    /// The address of memory that can only be read.
    pub read_only: u64,
    /// The address of a shared mapping of the whole file.
    pub file: u64,
    /// The file.
    pub fd: RawFd,
}

impl Memory {
    /// Addresses for the model, which never accesses memory.
    pub const IMAGINED: Self = {
        let writable = 0x7000_0000_0000;
        Self {
            writable,
            nothing: writable + MEMORY,
            read_only: writable + 2 * MEMORY,
            file: writable + 3 * MEMORY,
            // The model does not use the descriptor, but it must not be negative.
            fd: 0,
        }
    };

    pub fn address(self, memory: Hva) -> u64 {
        match memory {
            Hva::Writable(offset) => self.writable + offset,
            Hva::ReadOnly(offset) => self.read_only + offset,
            Hva::Nothing => self.nothing,
            Hva::At(address) => address,
        }
    }

    pub fn host(self, memory: Hva) -> HostVa {
        // SAFETY: imagined memory is never accessed. Real memory is the kernel tests' own, stays mapped until every
        // container that uses it is closed, and no reference into it exists.
        unsafe { vfio_fast_engine::host_va(self.address(memory)) }
    }
}
