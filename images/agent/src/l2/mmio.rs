//! Registers of a device, and memory that a device accesses: the compiler must not optimise these accesses.
#![allow(unsafe_code, reason = "a device's registers are reached by mapping them, and in no other way")]

use std::ffi::c_void;
use std::fs::File;
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

const WORD: usize = size_of::<u64>();

/// A mapping of whole words, each of which is read and written at once.
pub struct Window {
    start: *mut c_void,
    bytes: usize,
}

impl Window {
    /// The first bytes of a file, which may be a BAR.
    pub fn of_file(file: &File, bytes: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses where, so nothing that is there already changes.
        let start = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0) };
        Ok(Self { start: start.context("cannot map a file")?, bytes })
    }

    /// Memory that is there and stays where it is.
    pub fn memory(bytes: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::LOCKED;
        // SAFETY: the kernel chooses where, so nothing that is there already changes.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) };
        Ok(Self { start: start.context("cannot map memory")?, bytes })
    }

    /// The same in huge pages, of which the kernel must have enough set aside.
    pub fn huge(bytes: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::HUGETLB;
        // SAFETY: the kernel chooses where, so nothing that is there already changes.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) };
        Ok(Self { start: start.context("cannot map a huge page")?, bytes })
    }

    /// Its address in this process.
    pub fn address(&self) -> u64 {
        self.start.addr() as u64
    }

    /// The word at that offset.
    pub fn read(&self, at: usize) -> Result<u64> {
        let word = self.word(at)?;
        // SAFETY: `word` is a whole word of the mapping, which lives as long as `self`.
        Ok(unsafe { word.read_volatile() })
    }

    /// Writes the word at that offset.
    pub fn write(&self, at: usize, value: u64) -> Result<()> {
        let word = self.word(at)?;
        // SAFETY: as in `read`; no reference to what is mapped exists.
        unsafe { word.write_volatile(value) };
        Ok(())
    }

    /// Takes what is there from the beginning on.
    pub fn load(&self, into: &mut [u8]) -> Result<()> {
        self.load_at(0, into)
    }

    /// Takes what is there from that offset on.
    pub fn load_at(&self, at: usize, into: &mut [u8]) -> Result<()> {
        for (n, word) in into.chunks_exact_mut(WORD).enumerate() {
            word.copy_from_slice(&self.read(at + n * WORD)?.to_le_bytes());
        }
        Ok(())
    }

    /// Puts that there from the beginning on.
    pub fn store(&self, from: &[u8]) -> Result<()> {
        self.store_at(0, from)
    }

    /// Puts that there from that offset on.
    pub fn store_at(&self, at: usize, from: &[u8]) -> Result<()> {
        let words = from.as_chunks::<WORD>().0.iter().enumerate();
        words.into_iter().try_for_each(|(n, word)| self.write(at + n * WORD, u64::from_le_bytes(*word)))
    }

    fn word(&self, at: usize) -> Result<*mut u64> {
        ensure!(
            at.is_multiple_of(WORD) && at + WORD <= self.bytes,
            "no word of {} bytes: {at:#x}",
            self.bytes
        );
        Ok(self.start.cast::<u64>().wrapping_add(at / WORD))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's alone, and no pointer into it outlives a call.
        let unmapped = unsafe { munmap(self.start, self.bytes) };
        unmapped.expect("a mapping made here can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_inside() {
        let window = Window::memory(4096).unwrap();
        let bytes: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
        window.store(&bytes).unwrap();
        assert_eq!(window.read(8).unwrap(), u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15]));
        let mut back = [0u8; 4096];
        window.load(&mut back).unwrap();
        assert_eq!(back[..], bytes);
        window.write(4088, 7).unwrap();
        assert_eq!(window.read(4088).unwrap(), 7);
        assert!(window.read(4096).is_err());
        assert!(window.read(4).is_err());
    }
}
