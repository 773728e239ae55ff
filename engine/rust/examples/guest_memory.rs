//! Maps the memory of a guest for a device: the regions of vm-memory's `GuestMemoryMmap`, in a container that
//! vfio-ioctls opens. If the device is QEMU's `edu`, it then copies some of the memory by DMA.
//!
//! With the PCI address of a device that is bound to vfio-pci as its argument:
//! `cargo run --example guest_memory -- 0000:00:04.0`. Without one, on the model of the kernel.
#![allow(unsafe_code, reason = "maps memory for a device")]

use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use vfio_fast_dma::{Config, Engine, Level, Region, sim};
use vfio_ioctls::{VfioContainer, VfioDevice};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_memory::{GuestMemoryRegionBytes, MemoryRegionAddress};

type Done = Result<(), Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// The guest's memory, as a PC has it: below and above the addresses of its devices.
const MEMORY: [(GuestAddress, usize); 2] = [(GuestAddress(0), 64 << 20), (GuestAddress(4 << 30), 64 << 20)];
/// Memory that becomes ROM.
const ROM: (u64, u64) = (0xe_0000, 0x2_0000);

fn main() -> Done {
    let memory = GuestMemoryMmap::<()>::from_ranges(&MEMORY)?;
    let config = Config::new().log(|level, text| {
        if level <= Level::Info {
            eprintln!("{text}");
        }
    });
    let Some(address) = env::args().nth(1) else {
        let container = sim::Container::new(sim::Driver::Type1);
        let engine = Engine::sim(&container, config)?;
        map(&engine, &memory)?;
        expect(container.mappings().len(), 2)?;
        open_rom(&engine)?;
        engine.close()?;
        return expect(container.mappings().len(), 0);
    };

    let container = Arc::new(VfioContainer::new(None)?);
    let device = Path::new("/sys/bus/pci/devices").join(address);
    let device = VfioDevice::new(&device, container.clone(), false)?;
    // SAFETY: the container stays open for as long as `container` exists.
    let fd = unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) };
    // Closed before the device, which is the last of its container.
    let engine = Engine::type1(fd, config)?;
    map(&engine, &memory)?;
    if let Some(edu) = Edu::of(&device) {
        edu.copy(&memory)?;
        open_rom(&engine)?;
        edu.copy(&memory)?;
    }
    engine.close()?;
    Ok(())
}

/// Maps all of the memory.
fn map<M: GuestMemoryBackend>(engine: &Engine, memory: &M) -> Done
where
    M::R: GuestMemoryRegionBytes,
{
    let mut transaction = engine.begin()?;
    for region in memory.iter() {
        let host = region.get_host_address(MemoryRegionAddress(0))?;
        let region = Region::new(region.start_addr().raw_value(), host, region.len()).backing(1).join();
        // SAFETY: vm-memory keeps the memory mapped while `memory` exists, which is longer than the engine does, and
        // gives out no references into it. The device may see all of it: it is a guest's.
        unsafe { transaction.map(&region)? };
    }
    let outcome = transaction.commit()?;
    let (calls, mib) = (outcome.map_calls, outcome.map_bytes / MIB);
    println!("{calls} calls mapped {mib} MiB in {:?} on {} threads", outcome.duration, engine.info().threads);
    expect(outcome.map_bytes, 128 * MIB)
}

/// What firmware does with shadow memory: a few pages are unmapped, and what is around them is not touched for long.
fn open_rom(engine: &Engine) -> Done {
    let mut transaction = engine.begin()?;
    transaction.unmap(ROM.0, ROM.1)?;
    let outcome = transaction.commit()?;
    let (unmapped, mapped) = (outcome.unmap_bytes / MIB, outcome.remapped_bytes / MIB);
    println!("{} KiB are ROM now: {unmapped} MiB unmapped, {mapped} MiB mapped again", ROM.1 >> 10);
    expect(engine.stats().mapped_bytes, 128 * MIB - ROM.1)
}

/// QEMU's `edu`, a device for exercises: it moves data between memory and a buffer of its own.
struct Edu<'a>(&'a VfioDevice);

impl<'a> Edu<'a> {
    const ID: u32 = 0x11e8_1234;
    /// VFIO's numbers of its registers and of its configuration space.
    const REGISTERS: u32 = 0;
    const CONFIGURATION: u32 = 7;
    /// The device's address of its buffer, and bytes of that.
    const BUFFER: u64 = 0x4_0000;
    const BYTES: usize = 4096;
    const SOURCE: u64 = 0x80;
    const DESTINATION: u64 = 0x88;
    const COUNT: u64 = 0x90;
    const COMMAND: u64 = 0x98;
    const RUN: u32 = 1;
    const FROM_BUFFER: u32 = 2;

    /// The device, if it is one.
    fn of(device: &'a VfioDevice) -> Option<Self> {
        let mut id = [0; 4];
        device.region_read(Self::CONFIGURATION, &mut id, 0);
        // Memory decoding and bus mastering.
        device.region_write(Self::CONFIGURATION, &6u16.to_le_bytes(), 4);
        (u32::from_le_bytes(id) == Self::ID).then_some(Self(device))
    }

    /// Lets the device copy a page of the guest's memory, which nobody has written to at the other place.
    fn copy<M: Bytes<GuestAddress>>(&self, memory: &M) -> Done
    where
        M::E: Error + 'static,
    {
        let (from, to) = (0x10_0000, 0x20_0000);
        let data: Vec<u8> = (0..Self::BYTES).map(|n| ((n * n) >> 3) as u8 ^ 0x5a).collect();
        memory.write_slice(&data, GuestAddress(from))?;
        memory.write_slice(&[0; Self::BYTES], GuestAddress(to))?;
        self.transfer(from, Self::BUFFER, 0)?;
        self.transfer(Self::BUFFER, to, Self::FROM_BUFFER)?;
        let mut copied = [0; Self::BYTES];
        memory.read_slice(&mut copied, GuestAddress(to))?;
        expect(copied == *data, true)?;
        println!("the device copied {} bytes of the guest's memory", copied.len());
        Ok(())
    }

    fn transfer(&self, source: u64, destination: u64, direction: u32) -> Done {
        self.set(Self::SOURCE, source as u32);
        self.set(Self::DESTINATION, destination as u32);
        self.set(Self::COUNT, Self::BYTES as u32);
        self.set(Self::COMMAND, Self::RUN | direction);
        let start = Instant::now();
        while self.command() & Self::RUN != 0 {
            if start.elapsed() > Duration::from_secs(60) {
                return Err("the device does not finish a transfer".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn set(&self, register: u64, value: u32) {
        self.0.region_write(Self::REGISTERS, &value.to_le_bytes(), register);
    }

    fn command(&self) -> u32 {
        let mut value = [0; 4];
        self.0.region_read(Self::REGISTERS, &mut value, Self::COMMAND);
        u32::from_le_bytes(value)
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Done {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} in place of {wanted:?}").into()) }
}
