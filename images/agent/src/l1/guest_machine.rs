//! What differs between an L2 with x86 processors and one with arm64 processors. L2 has those of L1.

use std::ops::Range;

const GIB: u64 = 1 << 30;

/// The machine of L2.
#[derive(Debug)]
pub struct GuestMachine {
    /// QEMU's name of it, and options.
    pub name: &'static str,
    /// Options of its kernel.
    pub kernel_options: &'static str,
    /// Where RAM begins.
    ram: u64,
    /// Bytes of RAM, at its beginning, whose mapping firmware changes.
    changing: u64,
    /// Where the piece of RAM that begins there ends at the latest.
    low_end: u64,
    /// An address with RAM on both sides and between two mappings.
    pub border: u64,
    /// Flash that is always there: KVM reads it as memory, and no device reaches it.
    pub flash: Option<Range<u64>>,
}

/// The machine for L1's processors.
pub const MACHINE: GuestMachine = if cfg!(target_arch = "aarch64") { VIRT } else { Q35 };

const Q35: GuestMachine = GuestMachine {
    name: "q35",
    kernel_options: "console=ttyS0 earlycon=uart8250,io,0x3f8 tsc=reliable no_timer_check pci=lastbus=0",
    ram: 0,
    changing: 1 << 20,
    low_end: 2 * GIB,
    border: 4 * GIB,
    flash: None,
};

/// Its RAM is one piece, which is mapped in entries of 1 GiB.
const VIRT: GuestMachine = GuestMachine {
    name: "virt,gic-version=3",
    kernel_options: "console=ttyAMA0 earlycon=pl011,0x9000000",
    ram: GIB,
    changing: 0,
    low_end: u64::MAX,
    border: 2 * GIB,
    flash: Some(0..128 << 20),
};

impl GuestMachine {
    /// The addresses of RAM, of which it has so much, that never change.
    pub fn steady_ram(&self, mib: u64) -> Range<u64> {
        let end = self.ram + (mib << 20);
        self.ram + self.changing..end.min(self.low_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_ram_ends_with_ram_or_before_the_hole() {
        assert_eq!(Q35.steady_ram(1024), 1 << 20..GIB);
        assert_eq!(Q35.steady_ram(3072), 1 << 20..2 * GIB);
        assert_eq!(VIRT.steady_ram(1536), GIB..5 * GIB / 2);
    }
}
