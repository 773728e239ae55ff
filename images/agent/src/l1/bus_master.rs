//! A firmware of a few instructions that turns on a device's bus mastering at once, by a write of a chosen width.

use std::fs;

use anyhow::{Context, Result};

/// Where the device has to be on the root bus.
pub const SLOT: &str = "10";

/// How much one write covers.
#[derive(Clone, Copy, Debug)]
pub enum Width {
    Byte,
    Word,
    Long,
}

/// The firmware's size, which is the least that QEMU takes.
const SIZE: usize = 64 << 10;
/// Where the program is: the last 64 KiB below 1 MiB have the whole of it.
const PROGRAM: usize = 0xe000;
/// Where the processor begins.
const RESET: usize = 0xfff0;
/// jmp f000:e000
const JUMP: [u8; 5] = [0xea, 0x00, 0xe0, 0x00, 0xf0];

/// Writes the firmware, and returns QEMU's argument for it. The program writes one byte to the console afterwards.
pub fn firmware(width: Width) -> Result<[&'static str; 2]> {
    const FILE: &str = "/run/bus-master.bin";
    // cli; mov dx, 0xcf8; mov eax, 0x80008004 (slot 0x10, PCI_COMMAND); out dx, eax; mov dx, 0xcfc
    let mut program =
        vec![0xfa, 0xba, 0xf8, 0x0c, 0x66, 0xb8, 0x04, 0x80, 0x00, 0x80, 0x66, 0xef, 0xba, 0xfc, 0x0c];
    program.extend(match width {
        // mov al, 4; out dx, al
        Width::Byte => &[0xb0, 0x04, 0xee][..],
        // mov ax, 4; out dx, ax
        Width::Word => &[0xb8, 0x04, 0x00, 0xef],
        // mov eax, 4; out dx, eax
        Width::Long => &[0x66, 0xb8, 0x04, 0x00, 0x00, 0x00, 0x66, 0xef],
    });
    // mov dx, 0x3f8; mov al, 'M'; out dx, al; hlt; jmp to the hlt
    program.extend([0xba, 0xf8, 0x03, 0xb0, b'M', 0xee, 0xf4, 0xeb, 0xfd]);
    let mut image = vec![0xf4; SIZE];
    image[PROGRAM..PROGRAM + program.len()].copy_from_slice(&program);
    image[RESET..RESET + JUMP.len()].copy_from_slice(&JUMP);
    fs::write(FILE, image).context("cannot write the firmware")?;
    Ok(["-bios", FILE])
}
