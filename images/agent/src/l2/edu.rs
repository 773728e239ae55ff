//! The DMA engine of an `edu`, which copies between its own buffer and any address.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::mmio::Window;
use super::physical_address;
use crate::machine;
use crate::pagemap::Pagemap;
use crate::pci::Device;
use crate::wait::{Seen, wait_for};

/// A transfer takes a tenth of a second, and more on a busy host.
const WITHIN: Duration = Duration::from_secs(240);
/// The bytes of its buffer, and of what is mapped of its registers.
const PAGE: usize = 4096;

pub struct Engine(Window);

impl Engine {
    const SOURCE: usize = 0x80;
    const DESTINATION: usize = 0x88;
    const COUNT: usize = 0x90;
    const COMMAND: usize = 0x98;
    const RUN: u64 = 1;
    const OUT: u64 = 2;
    /// Where its buffer begins for the engine.
    const BUFFER: u64 = 0x40000;

    /// Those of all devices.
    pub fn all() -> Result<Vec<Self>> {
        let devices = Device::all_of_type(0x1234, 0x11e8)?.into_iter();
        devices
            .map(|device| {
                device.enable()?;
                Ok(Self(Window::of_file(&device.open_bar(0)?, PAGE)?))
            })
            .collect()
    }

    /// Lets it read bytes at `from` into its buffer, from `offset` on.
    pub fn start_read(&self, from: u64, offset: u64, bytes: u64) -> Result<()> {
        self.start(from, Self::BUFFER + offset, bytes, 0)
    }

    /// Lets it write bytes of its buffer, from `offset` on, to `to`.
    pub fn start_write(&self, offset: u64, to: u64, bytes: u64) -> Result<()> {
        self.start(Self::BUFFER + offset, to, bytes, Self::OUT)
    }

    fn start(&self, from: u64, to: u64, bytes: u64, direction: u64) -> Result<()> {
        self.0.write(Self::SOURCE, from)?;
        self.0.write(Self::DESTINATION, to)?;
        self.0.write(Self::COUNT, bytes)?;
        self.0.write(Self::COMMAND, Self::RUN | direction)
    }

    /// Waits until it has tried.
    pub fn finish(&self) -> Result<()> {
        wait_for("the end of a transfer", WITHIN, || {
            let command = self.0.read(Self::COMMAND)?;
            Ok(Seen::of((command & Self::RUN == 0).then_some(()), || format!("the command is {command:#x}")))
        })
    }
}

/// A page of L2's memory that stays where it is.
pub struct Page {
    pub window: Window,
    pub physical: u64,
}

impl Page {
    pub fn new() -> Result<Self> {
        // The kernel compacts locked memory too, unless it is told not to: the device would access another's page.
        machine::set("/proc/sys/vm/compact_unevictable_allowed", "0")?;
        let window = Window::memory(PAGE)?;
        let physical = where_is(&window)?;
        Ok(Self { window, physical })
    }

    /// The kernel has not moved it.
    pub fn still_there(&self) -> Result<()> {
        let now = where_is(&self.window)?;
        ensure!(now == self.physical, "the page was moved from {:#x} to {now:#x}", self.physical);
        Ok(())
    }
}

fn where_is(window: &Window) -> Result<u64> {
    physical_address(&Pagemap::own()?, window.address())
}
