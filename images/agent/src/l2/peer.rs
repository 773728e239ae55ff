//! A device reads and writes another device's BAR, past every processor: the engine of an `edu` moves data between L2's
//! memory and the BAR of an `ivshmem-plain`, a page at a time, through its own buffer.

use std::fs::File;

use anyhow::{Context, Result, bail};
use vfio_fast_protocol::bar_layout::BarLayout;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::test_data;

use super::edu::{Engine, Page};
use super::send;
use crate::pci::Device;

const PAGE: usize = BarLayout::CHUNK as usize;

/// Moves the data of the one boot there is.
pub fn work(image_seed: u64, write_seed: u64, port: &mut File) -> Result<u64> {
    let peer = Device::of_type(0x1af4, 0x1110)?;
    peer.enable()?;
    let bar = peer.bar(2)?;
    let layout = BarLayout { bytes: bar.bytes };
    let mut engines = Engine::all()?;
    let engine = engines.pop().filter(|_| engines.is_empty()).context("not one edu")?;
    let memory = Page::new()?;
    send(port, &Event::Up { boot: 0 })?;

    let mut page = [0u8; PAGE];
    for at in layout.read() {
        memory.window.store(&[0xee; PAGE])?;
        copy(&engine, bar.start + at, memory.physical)?;
        memory.window.load(&mut page)?;
        if let Some(bad) = test_data::first_difference(image_seed, at, &page) {
            bail!("what was read from the BAR differs at {bad:#x}");
        }
    }
    for at in layout.written() {
        test_data::fill(write_seed, at, &mut page);
        memory.window.store(&page)?;
        copy(&engine, memory.physical, bar.start + at)?;
    }
    memory.still_there()?;
    let bytes = |places: Vec<u64>| places.len() as u64 * BarLayout::CHUNK;
    let (read, written) = (bytes(layout.read()), bytes(layout.written()));
    send(port, &Event::Peer { bar: bar.start, read, written })?;
    Ok(0)
}

/// Moves a page between two addresses of the machine.
fn copy(engine: &Engine, from: u64, to: u64) -> Result<()> {
    engine.start_read(from, 0, BarLayout::CHUNK)?;
    engine.finish().with_context(|| format!("DMA from {from:#x}"))?;
    engine.start_write(0, to, BarLayout::CHUNK)?;
    engine.finish().with_context(|| format!("DMA to {to:#x}"))
}
