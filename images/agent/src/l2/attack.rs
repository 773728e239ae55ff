//! `edu` devices access what L1 orders. L2 does not know what they may access.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::attack::{self, Access, Action, HALF, Order, PAGE, SLOT, SLOTS, UNREAD};
use vfio_fast_protocol::record::Event;

use super::edu::{Engine, Page};
use super::mmio::Window;
use super::send;
use crate::machine;
use crate::pci::{Bar, Device};
use crate::wait::{Seen, wait_for};

/// L1 connects before L2 boots.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);
const BUFFER: usize = PAGE as usize;

/// Carries out orders until the machine is stopped or this fails.
pub fn work(seed: u64, port: &mut File, mut between: impl FnMut(&mut File) -> Result<()>) -> Result<u64> {
    let devices = Devices::open(seed)?;
    let memory = DeviceMemory::open()?;
    let mut orders = BufReader::new(machine::open_port_to_read(attack::PORT)?);
    send(port, &Event::Up { boot: 0 })?;
    loop {
        let line = next_line(&mut orders)?;
        let order: Order = serde_json::from_str(&line).with_context(|| format!("the order `{line}`"))?;
        let found = match order.action {
            Action::Read | Action::Write => devices.carry_out(&order)?,
            Action::Fill => memory.fill(seed, &order.accesses)?,
            Action::Look => memory.look(&order.accesses)?,
        };
        send(port, &Event::Attacked { order: order.number, found })?;
        between(port)?;
    }
}

/// Waits for a line. The port appears before the kernel knows that L1 is connected to it, and has an end until then.
fn next_line(orders: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    wait_for("an order", CONNECTED_WITHIN, || {
        orders.read_line(&mut line).context("cannot read the orders")?;
        Ok(Seen::of(line.ends_with('\n').then_some(()), || format!("`{line}`")))
    })?;
    Ok(line)
}

/// The devices, each with a page that its buffer is copied from and to.
struct Devices {
    all: Vec<(Engine, Page)>,
    seed: u64,
}

impl Devices {
    fn open(seed: u64) -> Result<Self> {
        let with_page = |engine| Ok((engine, Page::new()?));
        let all = Engine::all()?.into_iter().map(with_page).collect::<Result<Vec<_>>>()?;
        ensure!(!all.is_empty(), "no edu");
        Ok(Self { all, seed })
    }

    /// Makes the accesses, as many at a time as there are devices. Returns what was read.
    fn carry_out(&self, order: &Order) -> Result<Vec<Vec<u8>>> {
        let devices = self.all.len();
        ensure!(order.accesses.len() <= devices * SLOTS as usize, "an order of {}", order.accesses.len());
        let buffers: Vec<Vec<u8>> = (0..devices).map(|device| self.buffer(order.number, device)).collect();
        for ((engine, page), buffer) in self.all.iter().zip(&buffers) {
            page.window.store(buffer)?;
            engine.start_read(page.physical, 0, PAGE)?;
        }
        self.finish()?;
        for (slot, round) in (0..).step_by(SLOT as usize).zip(order.accesses.chunks(devices)) {
            for ((engine, _), Access { at, bytes }) in self.all.iter().zip(round) {
                match order.action {
                    Action::Read => engine.start_read(*at, HALF + slot, *bytes)?,
                    _ => engine.start_write(slot, *at, *bytes)?,
                }
            }
            self.finish()?;
        }
        for (engine, page) in &self.all {
            page.window.store(&[0; BUFFER])?;
            engine.start_write(0, page.physical, PAGE)?;
        }
        self.finish()?;

        let mut after = vec![[0; BUFFER]; devices];
        for ((_, page), after) in self.all.iter().zip(&mut after) {
            page.window.load(after)?;
            page.still_there()?;
        }
        let mut found = Vec::new();
        if order.action == Action::Read {
            for (n, access) in order.accesses.iter().enumerate() {
                let slot = HALF as usize + n / devices * SLOT as usize;
                let read = &mut after[n % devices][slot..slot + access.bytes as usize];
                found.push(read.to_vec());
                read.fill(UNREAD);
            }
        }
        // Whether an access is refused or not, it changes nothing else of a buffer.
        for (device, (before, after)) in buffers.iter().zip(&after).enumerate() {
            let bad = before.iter().zip(after).position(|(before, after)| before != after);
            ensure!(bad.is_none(), "{:?}: the buffer of device {device} changed at {bad:x?}", order.action);
        }
        Ok(found)
    }

    /// What is in the buffer of a device before an order.
    fn buffer(&self, order: u64, device: usize) -> Vec<u8> {
        let access = |slot: u64| slot * self.all.len() as u64 + device as u64;
        let mut buffer: Vec<u8> =
            (0..SLOTS).flat_map(|slot| attack::written(self.seed, order, access(slot))).collect();
        buffer.resize(BUFFER, UNREAD);
        buffer
    }

    fn finish(&self) -> Result<()> {
        self.all.iter().try_for_each(|(engine, _)| engine.finish())
    }
}

/// The BAR of another device, as L2's processor has it.
struct DeviceMemory {
    bar: Bar,
    window: Window,
}

impl DeviceMemory {
    /// That of an `ivshmem-plain`.
    fn open() -> Result<Self> {
        const MEMORY_BAR: usize = 2;
        let device = Device::of_type(0x1af4, 0x1110)?;
        device.enable()?;
        let bar = device.bar(MEMORY_BAR)?;
        let window = Window::of_file(&device.open_bar(MEMORY_BAR)?, bar.bytes as usize)?;
        Ok(Self { bar, window })
    }

    fn fill(&self, seed: u64, places: &[Access]) -> Result<Vec<Vec<u8>>> {
        for place in places {
            let mut bytes = vec![0; place.bytes as usize];
            attack::canary(seed, place.at, &mut bytes);
            self.window.store_at(self.offset(place)?, &bytes)?;
        }
        Ok(Vec::new())
    }

    fn look(&self, places: &[Access]) -> Result<Vec<Vec<u8>>> {
        let look = |place: &Access| {
            let mut bytes = vec![0; place.bytes as usize];
            self.window.load_at(self.offset(place)?, &mut bytes)?;
            Ok(bytes)
        };
        places.iter().map(look).collect()
    }

    fn offset(&self, place: &Access) -> Result<usize> {
        let offset = place.at.checked_sub(self.bar.start);
        Ok(offset.with_context(|| format!("{:#x} is before the BAR", place.at))? as usize)
    }
}
