//! Memory in which each byte has a value of its own: a write anywhere in it is noticed, and a read shows what was read.

use std::ptr;

use super::common::hva_of;
use super::common::memory::RealMemory;

/// What this memory has, and what the memory of the devices' buffers has. The highest bit tells them apart.
#[derive(Clone, Copy)]
pub enum Owner {
    Memory,
    Device,
}

/// Bytes that differ from their neighbours, and are neither 0 nor 0xff. `from` is a multiple of 8.
pub fn pattern(owner: Owner, from: u64, bytes: u64) -> Vec<u8> {
    let word = |address: u64| {
        // The multiplier of Knuth's generator; its upper bits are good.
        let mixed = (address ^ address >> 29).wrapping_mul(6_364_136_223_846_793_005);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(6_364_136_223_846_793_005);
        let low = (mixed ^ mixed >> 29) & 0x7e7e_7e7e_7e7e_7e7e;
        match owner {
            Owner::Memory => low | 0x0101_0101_0101_0101,
            Owner::Device => low | 0x8080_8080_8080_8080,
        }
    };
    (from..from + bytes).step_by(8).flat_map(|address| word(address).to_ne_bytes()).collect()
}

/// A part of an object that has canaries.
struct Image {
    start: u64,
    bytes: Vec<u8>,
}

pub struct Canaries {
    images: Vec<Image>,
    _memory: RealMemory,
}

impl Canaries {
    /// Fills the beginning of the objects of these numbers with that many bytes each.
    pub fn new(objects: &[(u64, u64)]) -> Self {
        let memory = RealMemory::new();
        let image = |(object, bytes): &(u64, u64)| {
            let start = hva_of(*object, 0);
            let (address, length) = (start as *mut libc::c_void, usize::try_from(*bytes).unwrap());
            // SAFETY: the range is a part of the object, and the advice changes no byte of it. If it is refused, the
            // memory has small pages, which is as good.
            let _ = unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) };
            Image { start, bytes: pattern(Owner::Memory, start, *bytes) }
        };
        let canaries = Self { images: objects.iter().map(image).collect(), _memory: memory };
        for image in &canaries.images {
            write(image.start, &image.bytes);
        }
        canaries
    }

    /// What belongs at a host address.
    pub fn at(&self, address: u64, bytes: u64) -> &[u8] {
        let inside =
            |image: &&Image| (image.start..image.start + image.bytes.len() as u64).contains(&address);
        let image = self.images.iter().find(inside).expect("memory with canaries");
        let from = usize::try_from(address - image.start).unwrap();
        &image.bytes[from..from + usize::try_from(bytes).unwrap()]
    }

    /// Puts back what belongs at a host address.
    pub fn restore(&self, address: u64, bytes: u64) {
        write(address, self.at(address, bytes));
    }

    /// Where a byte is another one than belongs there.
    pub fn first_change(&self) -> Option<u64> {
        let changed = self.images.iter().find(|image| {
            let length = image.bytes.len();
            // SAFETY: the memory is an object's, and no reference into it exists; devices may write to it meanwhile,
            // which this is to notice.
            unsafe { libc::memcmp(image.start as *const _, image.bytes.as_ptr().cast(), length) != 0 }
        })?;
        let now = read(changed.start, changed.bytes.len() as u64);
        let first = now.iter().zip(&changed.bytes).position(|(now, before)| now != before);
        Some(changed.start + first.map_or(0, |first| first as u64))
    }
}

/// The bytes at a host address of an object.
pub fn read(address: u64, bytes: u64) -> Vec<u8> {
    // SAFETY: callers name memory of an object, which exists as long as the canaries, and no reference into it exists.
    (address..address + bytes).map(|at| unsafe { ptr::read_volatile(at as *const u8) }).collect()
}

/// Changes the bytes at a host address of an object.
pub fn write(address: u64, bytes: &[u8]) {
    // SAFETY: as above; the slice is no part of an object.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}
