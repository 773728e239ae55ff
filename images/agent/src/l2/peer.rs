//! A device reads and writes another device's BAR, past every processor: the engine of an `edu` moves data between L2's
//! memory and the BAR of an `ivshmem-plain`, a page at a time, through its own buffer.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vfio_fast_protocol::bar_layout::BarLayout;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::test_data;

use super::mmio::Window;
use super::{physical_address, send};
use crate::pci::Device;
use crate::wait::{Seen, wait_for};

/// A transfer takes a tenth of a second, and more on a busy host.
const WITHIN: Duration = Duration::from_secs(240);
const PAGE: usize = BarLayout::CHUNK as usize;

/// Moves the data of the one boot there is.
pub fn work(image_seed: u64, write_seed: u64, port: &mut File) -> Result<u64> {
    let peer = Device::of_type(0x1af4, 0x1110)?;
    peer.enable()?;
    let bar = peer.bar(2)?;
    let layout = BarLayout { bytes: bar.bytes };
    let engine = Engine::open()?;
    let memory = Memory::new()?;
    send(port, &Event::Up { boot: 0 })?;

    let mut page = [0u8; PAGE];
    for at in layout.read() {
        memory.window.store(&[0xee; PAGE])?;
        engine.copy(bar.start + at, memory.physical)?;
        memory.window.load(&mut page)?;
        if let Some(bad) = test_data::first_difference(image_seed, at, &page) {
            bail!("what was read from the BAR differs at {bad:#x}");
        }
    }
    for at in layout.written() {
        test_data::fill(write_seed, at, &mut page);
        memory.window.store(&page)?;
        engine.copy(memory.physical, bar.start + at)?;
    }
    memory.still_there()?;
    let bytes = |places: Vec<u64>| places.len() as u64 * BarLayout::CHUNK;
    let (read, written) = (bytes(layout.read()), bytes(layout.written()));
    send(port, &Event::Peer { bar: bar.start, read, written })?;
    Ok(0)
}

/// The DMA engine of an `edu`.
struct Engine(Window);

impl Engine {
    const SOURCE: usize = 0x80;
    const DESTINATION: usize = 0x88;
    const COUNT: usize = 0x90;
    const COMMAND: usize = 0x98;
    const RUN: u64 = 1;
    const OUT: u64 = 2;
    /// Where its buffer, of a page, begins for the engine.
    const BUFFER: u64 = 0x40000;

    fn open() -> Result<Self> {
        let device = Device::of_type(0x1234, 0x11e8)?;
        device.enable()?;
        Ok(Self(Window::of_file(&device.open_bar(0)?, PAGE)?))
    }

    /// Moves a page between two addresses of the machine.
    fn copy(&self, from: u64, to: u64) -> Result<()> {
        self.transfer(from, Self::BUFFER, 0).with_context(|| format!("DMA from {from:#x}"))?;
        self.transfer(Self::BUFFER, to, Self::OUT).with_context(|| format!("DMA to {to:#x}"))
    }

    fn transfer(&self, from: u64, to: u64, direction: u64) -> Result<()> {
        self.0.write(Self::SOURCE, from)?;
        self.0.write(Self::DESTINATION, to)?;
        self.0.write(Self::COUNT, BarLayout::CHUNK)?;
        self.0.write(Self::COMMAND, Self::RUN | direction)?;
        wait_for("the end of a transfer", WITHIN, || {
            let command = self.0.read(Self::COMMAND)?;
            Ok(Seen::of((command & Self::RUN == 0).then_some(()), || format!("the command is {command:#x}")))
        })
    }
}

/// A page of L2's memory.
struct Memory {
    window: Window,
    physical: u64,
}

impl Memory {
    fn new() -> Result<Self> {
        let window = Window::memory(PAGE)?;
        let physical = where_is(&window)?;
        Ok(Self { window, physical })
    }

    /// The kernel may move a page; it has not.
    fn still_there(&self) -> Result<()> {
        let now = where_is(&self.window)?;
        ensure!(now == self.physical, "the page was moved from {:#x} to {now:#x}", self.physical);
        Ok(())
    }
}

fn where_is(window: &Window) -> Result<u64> {
    physical_address(&File::open("/proc/self/pagemap")?, window.address())
}
