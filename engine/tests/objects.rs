//! Regions with a descriptor: which calls use it, and how long it is held.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use vfio_fast_testing as common;

use common::hva;
use memfd::MemfdOptions;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Descriptor, Engine, Errno};

const MIB: u64 = 1 << 20;
const RAM: u64 = 0x7f00_0000_0000;
const BAR: ObjectKind = ObjectKind::Bar { region_index: 2 };

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).unwrap()
}

fn ram(start: u64, length: u64) -> Region {
    let backing = Backing(1);
    Region {
        range: range(start, length),
        hva: hva(RAM + start),
        perm: Perm::ReadWrite,
        kind: Kind::Ram,
        backing,
        join: true,
        exact: false,
    }
}

fn open(rules: Rules, failures: Vec<(u64, Errno)>) -> (Engine, Sim) {
    let sim = Sim::new(SimConfig { rules, failures, ..SimConfig::default() });
    let config = Config { cuts: vec![MIB], ..Config::default() };
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim)
}

/// A file that only this test uses, and a count of its descriptors in this process.
struct Watched(OwnedFd);

impl Watched {
    fn new() -> Self {
        Self(MemfdOptions::default().create("vfio-fast-objects").unwrap().into_file().into())
    }

    fn fd(&self) -> Descriptor<'_> {
        self.0.as_fd().into()
    }

    fn memory(&self, offset: u64) -> ObjectRef<'_> {
        ObjectRef { fd: self.fd(), kind: ObjectKind::Memory, offset }
    }

    fn opened(&self) -> usize {
        let path = |fd: &str| fs::metadata(format!("/proc/self/fd/{fd}")).ok();
        let inode = |fd: &str| path(fd).map(|file| std::os::unix::fs::MetadataExt::ino(&file));
        let own = inode(&self.0.as_raw_fd().to_string());
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|entry| inode(&entry.as_ref().unwrap().file_name().to_string_lossy()) == own).count()
    }
}

/// Offset, length and kind of everything that was mapped through a descriptor, in units of 1 MiB, by offset: the calls
/// of several threads have no order.
fn by_descriptor(calls: &[Call]) -> Vec<(u64, u64, ObjectKind)> {
    let file = |call: &Call| match call {
        Call::MapFile(mapping, kind, offset) => Some((offset / MIB, mapping.range.length() / MIB, *kind)),
        _ => None,
    };
    let mut mapped: Vec<_> = calls.iter().filter_map(file).collect();
    mapped.sort_by_key(|(offset, ..)| *offset);
    mapped
}

fn since(sim: &Sim, before: usize) -> Vec<Call> {
    sim.calls().split_off(before)
}

#[test]
fn every_entry_knows_its_place_in_the_file() {
    let (engine, sim) = open(Rules::Iommufd, vec![]);
    let file = Watched::new();
    // The first 8 MiB of the file are not mapped here, and the second region continues the first.
    engine.begin().unwrap();
    engine.map_object(ram(0, 4 * MIB), &file.memory(8 * MIB)).unwrap();
    engine.map_object(ram(4 * MIB, 4 * MIB), &file.memory(12 * MIB)).unwrap();
    engine.commit().unwrap();
    assert_eq!(file.opened(), 2, "one descriptor for both");
    // Cut at 1 MiB.
    let whole = by_descriptor(&sim.calls());
    assert_eq!(whole, [(8, 1, ObjectKind::Memory), (9, 7, ObjectKind::Memory)]);
    let before = sim.calls().len();
    engine.unmap(range(3 * MIB, MIB)).unwrap();
    let rests = by_descriptor(&since(&sim, before));
    assert_eq!(rests, [(9, 2, ObjectKind::Memory), (12, 4, ObjectKind::Memory)]);
    assert!(sim.calls().iter().all(|call| !matches!(call, Call::Map(_))));
}

#[test]
fn a_descriptor_is_held_as_long_as_it_is_wanted() {
    let (engine, _) = open(Rules::Iommufd, vec![]);
    let file = Watched::new();
    engine.map_object(ram(0, MIB), &file.memory(0)).unwrap();
    engine.map_object(ram(2 * MIB, MIB), &file.memory(2 * MIB)).unwrap();
    engine.unmap(range(0, MIB)).unwrap();
    assert_eq!(file.opened(), 2);
    engine.begin().unwrap();
    engine.unmap(range(2 * MIB, MIB)).unwrap();
    engine.abort().unwrap();
    assert_eq!(file.opened(), 2, "taken back");
    engine.unmap(range(0, 4 * MIB)).unwrap();
    assert_eq!(file.opened(), 1);
    engine.begin().unwrap();
    engine.map_object(ram(0, MIB), &file.memory(0)).unwrap();
    assert_eq!(file.opened(), 2);
    engine.abort().unwrap();
    assert_eq!(file.opened(), 1);
    engine.map_object(ram(0, MIB), &file.memory(0)).unwrap();
    engine.close().unwrap();
    assert_eq!(file.opened(), 1);
}

#[test]
fn what_fails_is_taken_back_and_put_back_by_file() {
    // Calls 1 and 2 map two entries. The next commit unmaps one of them, maps what is left of it, and fails at the
    // other map.
    for failing in 4..=5 {
        let (engine, sim) = open(Rules::Iommufd, vec![(failing, Errno::ENOMEM)]);
        let (file, other) = (Watched::new(), Watched::new());
        engine.map_object(ram(0, 4 * MIB), &file.memory(0)).unwrap();
        engine.begin().unwrap();
        engine.unmap(range(2 * MIB, MIB)).unwrap();
        let new = Region { backing: Backing(2), ..ram(8 * MIB, MIB) };
        engine.map_object(new, &other.memory(0)).unwrap();
        assert_eq!(engine.commit().unwrap_err().errno, Errno::ENOMEM, "call {failing}");
        assert_eq!((file.opened(), other.opened()), (2, 1), "call {failing}");
        let held: Vec<_> =
            sim.mappings().iter().map(|m| (m.range.start() / MIB, m.range.length() / MIB)).collect();
        assert_eq!(held, [(0, 1), (1, 1), (3, 1)], "call {failing}");
        assert!(sim.calls().iter().all(|call| !matches!(call, Call::Map(_))), "call {failing}");
    }
}

#[test]
fn a_bar_is_one_entry_and_always_mapped_anew() {
    let (engine, sim) = open(Rules::Iommufd, vec![]);
    let device = Watched::new();
    let bar = Region { kind: Kind::Device, ..ram(0, 16 * MIB) };
    let named = ObjectRef { fd: device.fd(), kind: BAR, offset: 4 * MIB };
    engine.map_object(bar, &named).unwrap();
    assert_eq!(by_descriptor(&sim.calls()), [(4, 16, BAR)]);
    // The kernel may have unmapped the BAR while decoding was off, which it does not report.
    engine.begin().unwrap();
    engine.unmap(bar.range).unwrap();
    engine.map_object(bar, &named).unwrap();
    let outcome = engine.commit().unwrap();
    assert_eq!((outcome.executed.unmap_calls, outcome.executed.map_calls), (1, 1));
    assert_eq!(engine.unmap(range(0, MIB)).unwrap_err().errno, Errno::EINVAL, "exact");
}

#[test]
fn a_bar_that_cannot_be_mapped_is_no_error() {
    let (engine, _) = open(Rules::Iommufd, vec![(1, Errno(libc::ENODEV))]);
    let device = Watched::new();
    let bar = Region { kind: Kind::Device, ..ram(0, 16 * MIB) };
    engine.begin().unwrap();
    engine.map_object(bar, &ObjectRef { fd: device.fd(), kind: BAR, offset: 0 }).unwrap();
    let outcome = engine.commit().unwrap();
    assert_eq!(outcome.executed.refusals.len(), 1);
    assert_eq!(device.opened(), 2, "it stays wanted");
    engine.unmap(bar.range).unwrap();
    assert_eq!(device.opened(), 1);
}

/// Outside a transaction, where there is no outcome to report it in.
#[test]
fn a_refused_bar_is_let_go_of() {
    let (engine, sim) = open(Rules::Iommufd, vec![(1, Errno(libc::ENODEV))]);
    let device = Watched::new();
    let bar = Region { kind: Kind::Device, ..ram(0, 16 * MIB) };
    let named = ObjectRef { fd: device.fd(), kind: BAR, offset: 0 };
    assert_eq!(engine.map_object(bar, &named).unwrap_err().errno, Errno(libc::ENODEV));
    assert_eq!((device.opened(), engine.regions().len()), (1, 0), "it is not wanted");
    engine.map_object(bar, &named).unwrap();
    assert_eq!((device.opened(), sim.mappings().len()), (2, 1));
}

#[test]
fn who_has_no_use_for_descriptors_takes_none() {
    let (engine, sim) = open(Rules::Type1, vec![]);
    let file = Watched::new();
    // The descriptor is not even checked.
    #[allow(unsafe_code, reason = "names a number that is not open, as a C program can")]
    // SAFETY: no file gets a negative number.
    let closed = unsafe { Descriptor::from_raw(-1) };
    engine.map_object(ram(0, MIB), &ObjectRef { fd: closed, ..file.memory(1) }).unwrap();
    engine.map_object(ram(MIB, MIB), &file.memory(0)).unwrap();
    assert_eq!(file.opened(), 1);
    assert!(sim.calls().iter().all(|call| matches!(call, Call::Map(_))));
}

#[test]
fn what_contradicts_itself_is_refused_and_leaves_nothing() {
    let (engine, sim) = open(Rules::Iommufd, vec![]);
    let (file, device) = (Watched::new(), Watched::new());
    engine.map_object(ram(0, MIB), &file.memory(0)).unwrap();
    let errno = |region, named: &ObjectRef<'_>| engine.map_object(region, named).unwrap_err().errno;
    assert_eq!(
        errno(ram(2 * MIB, MIB), &file.memory(MIB)),
        Errno::EINVAL,
        "another offset for the same address"
    );
    assert_eq!(errno(ram(2 * MIB, MIB), &device.memory(2 * MIB)), Errno::EINVAL, "another file");
    let bar = Region { kind: Kind::Device, ..ram(2 * MIB, MIB) };
    assert_eq!(
        errno(bar, &ObjectRef { fd: device.fd(), kind: BAR, offset: 2 * MIB }),
        Errno::EINVAL,
        "memory before"
    );
    let unknown = Region { backing: Backing::UNKNOWN, ..ram(2 * MIB, MIB) };
    assert_eq!(errno(unknown, &file.memory(2 * MIB)), Errno::EINVAL);
    let other = Region { backing: Backing(2), ..ram(0, MIB) };
    assert_eq!(errno(other, &device.memory(0)), Errno::EEXIST);
    assert_eq!((device.opened(), sim.mappings().len()), (1, 1));
}
