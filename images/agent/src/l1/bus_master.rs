//! A firmware of a few instructions that turns on a device's bus mastering at once, by a write of a chosen width.

use std::fs;

use anyhow::{Context, Result};

/// Where the device has to be on the root bus.
pub const SLOT: &str = "10";

/// How the bit is written.
#[derive(Clone, Copy, Debug)]
pub enum Width {
    Byte,
    Word,
    Long,
    /// A word, through the mirror of the configuration space that NVIDIA's GPUs have in BAR 0.
    Mirror,
}

/// The firmware's size, which is the least that QEMU takes.
const SIZE: usize = 64 << 10;
/// Where the program is: the last 64 KiB below 1 MiB have the whole of it.
const PROGRAM: usize = 0xe000;
/// Where the processor begins.
const RESET: usize = 0xfff0;
/// jmp f000:e000
const JUMP: [u8; 5] = [0xea, 0x00, 0xe0, 0x00, 0xf0];

/// Where the descriptor tables are.
const TABLE: usize = 0xe100;
/// The pointer to the table (16 bytes at 0xfe108), and the table: nothing, and a segment of 4 GiB, which is marked as
/// accessed, because the table is in ROM.
const TABLES: [u8; 24] = [
    0x0f, 0x00, 0x08, 0xe1, 0x0f, 0x00, 0x00, 0x00, // pointer
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // nothing
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00, // data
];
/// Writes to BAR 0 with a segment of 4 GiB, which is loaded in protected mode: `lgdt cs:[0xe100]; mov eax, cr0; or al, 1;
/// mov cr0, eax; mov bx, 8; mov fs, bx; and al, 0xfe; mov cr0, eax; mov ebx, 0xfe088004` (`PCI_COMMAND` in the mirror)
/// `; mov ax, 6; mov fs:[ebx], ax`.
const MIRROR_WRITE: [u8; 38] = [
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x00, 0xe1, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xbb, 0x08,
    0x00, 0x8e, 0xe3, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0x66, 0xbb, 0x04, 0x80, 0x08, 0xfe, 0xb8, 0x06, 0x00,
    0x64, 0x67, 0x89, 0x03,
];

/// mov dx, 0xcf8; mov eax, 0x80008000 + register (slot 0x10); out dx, eax; mov dx, 0xcfc
const fn select(register: u8) -> [u8; 14] {
    [0xba, 0xf8, 0x0c, 0x66, 0xb8, register, 0x80, 0x00, 0x80, 0x66, 0xef, 0xba, 0xfc, 0x0c]
}

/// Writes the firmware, and returns QEMU's argument for it. The program writes one byte to the console afterwards.
pub fn firmware(width: Width) -> Result<[&'static str; 2]> {
    const FILE: &str = "/run/bus-master.bin";
    // cli
    let mut program = vec![0xfa];
    if let Width::Mirror = width {
        // select BAR 0; mov eax, 0xfe000000; out dx, eax
        program.extend(select(0x10));
        program.extend([0x66, 0xb8, 0x00, 0x00, 0x00, 0xfe, 0x66, 0xef]);
    }
    program.extend(select(0x04));
    program.extend(match width {
        // mov al, 4; out dx, al
        Width::Byte => &[0xb0, 0x04, 0xee][..],
        // mov ax, 4; out dx, ax
        Width::Word => &[0xb8, 0x04, 0x00, 0xef],
        // mov eax, 4; out dx, eax
        Width::Long => &[0x66, 0xb8, 0x04, 0x00, 0x00, 0x00, 0x66, 0xef],
        // mov ax, 2 (memory space); out dx, ax
        Width::Mirror => &[0xb8, 0x02, 0x00, 0xef],
    });
    if let Width::Mirror = width {
        program.extend(MIRROR_WRITE);
    }
    // mov dx, 0x3f8; mov al, 'M'; out dx, al; hlt; jmp to the hlt
    program.extend([0xba, 0xf8, 0x03, 0xb0, b'M', 0xee, 0xf4, 0xeb, 0xfd]);
    let mut image = vec![0xf4; SIZE];
    image[PROGRAM..PROGRAM + program.len()].copy_from_slice(&program);
    image[RESET..RESET + JUMP.len()].copy_from_slice(&JUMP);
    image[TABLE..TABLE + TABLES.len()].copy_from_slice(&TABLES);
    fs::write(FILE, image).context("cannot write the firmware")?;
    Ok(["-bios", FILE])
}
