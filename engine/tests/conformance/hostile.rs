//! Hostile devices: they access memory at the edges of what they may reach, and everything that they read and change is
//! compared with what they may.

use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::host_va;
use vfio_fast_engine::region::Perm;

use super::canaries::{Canaries, Owner, pattern, read, write};
use super::cases::PAGE;
use super::common::hva_of;
use super::edu::{BUFFER, Edu};

/// The object whose pages the devices' buffers are copied from and to. Nothing else is in it.
const BUFFERS: u64 = 3;
/// The maximum length of an access, and how much of a buffer it has for itself.
const SLOT: u64 = 32;
/// The buffer's first half is what devices write, the second half is what they read.
const HALF: u64 = BUFFER / 2;
/// What is in the second half before a read: no byte of any pattern.
const UNREAD: u8 = 2;
/// What a device reads in place of what it may not: nothing, or one of these, by the kind of IOMMU.
const NOTHING_READ: [u8; 3] = [UNREAD, 0, 0xff];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// What the devices may reach.
struct Reachable {
    range: IovaRange,
    hva: u64,
    perm: Perm,
}

/// A transfer of a device.
#[derive(Clone, Copy, Debug)]
struct Access {
    iova: u64,
    bytes: u64,
}

impl Access {
    /// What a device tries at an edge, between the byte `last` and the next one, where there are such addresses: two bytes
    /// before it, one after it, bytes on both sides at once, and bytes on each side with a page in between.
    ///
    /// Of the bytes before it, none is accessed alone: QEMU's virtio-iommu also translates the byte before each mapping
    /// (up to 10.2 it looks the address up as if it were two bytes).
    fn around(last: u64) -> impl Iterator<Item = Self> {
        let next = last.checked_add(1);
        let accesses = [
            (last.checked_sub(1), 2),
            (next, 1),
            (next.map(|next| next - 4), 8),
            (last.checked_sub(PAGE + SLOT - 1), SLOT),
            (next.and_then(|next| next.checked_add(PAGE)), SLOT),
        ];
        accesses.into_iter().filter_map(|(iova, bytes)| Some(Self { iova: iova?, bytes }))
    }

    /// What it is in each page, which the IOMMU translates on its own: offset, IOVA and length.
    fn parts(self) -> impl Iterator<Item = (u64, u64, u64)> {
        let first = self.bytes.min(PAGE - self.iova % PAGE);
        let parts = [(0, first), (first, self.bytes - first)];
        parts
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(move |(offset, bytes)| (offset, self.iova + offset, bytes))
    }

    fn overlaps(self, other: Self) -> bool {
        self.iova <= other.iova + (other.bytes - 1) && other.iova <= self.iova + (self.bytes - 1)
    }
}

/// What a case has shown: one attempt for each page of each access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub case: &'static str,
    pub attempts: u64,
    pub refused: u64,
    pub landed: u64,
}

pub struct Hostile {
    devices: Vec<Edu>,
    /// Maps the pages of the devices' buffers between attacks.
    raw: Box<dyn Backend>,
    buffers_iova: u64,
    memory: Canaries,
    may_reach: Vec<Reachable>,
    pub tallies: Vec<Tally>,
}

impl Hostile {
    /// Devices in the container of `raw`, and the memory that they attack. Nothing else maps at `buffers_iova`.
    pub fn new(devices: Vec<Edu>, raw: Box<dyn Backend>, buffers_iova: u64, memory: Canaries) -> Self {
        Self { devices, raw, buffers_iova, memory, may_reach: Vec::new(), tallies: Vec::new() }
    }

    /// From now on the devices may reach this.
    pub fn permit(&mut self, range: IovaRange, hva: u64, perm: Perm) {
        self.may_reach.push(Reachable { range, hva, perm });
    }

    /// From now on the devices may not reach this.
    pub fn forbid(&mut self, hole: IovaRange) {
        let cut = |old: Reachable| {
            let (before, after) = match old.range.overlaps(hole) {
                true => old.range.without(hole),
                false => (Some(old.range), None),
            };
            let rest = move |range: IovaRange| Reachable {
                range,
                hva: old.hva + (range.start() - old.range.start()),
                ..old
            };
            before.into_iter().chain(after).map(rest)
        };
        self.may_reach = std::mem::take(&mut self.may_reach).into_iter().flat_map(cut).collect();
    }

    /// The host address that a device reaches at an IOVA.
    fn reached(&self, iova: u64, direction: Direction) -> Option<u64> {
        let range = IovaRange::new(Iova(iova), 1).expect("one byte");
        let at = self.may_reach.iter().find(|at| at.range.contains(range))?;
        let permitted = direction == Direction::Read || at.perm.is_writable();
        permitted.then(|| at.hva + (iova - at.range.start()))
    }

    /// Lets the devices attack edges, each named by the last byte before it. Fails if they do not reach exactly what
    /// they may.
    pub fn attack(&mut self, cases: &[(&'static str, &[u64])]) {
        let mut accesses = Vec::new();
        for (case, edges) in cases {
            self.tallies.push(Tally { case, attempts: 0, refused: 0, landed: 0 });
            let case = self.tallies.len() - 1;
            accesses.extend(edges.iter().flat_map(|edge| Access::around(*edge)).map(|access| (case, access)));
        }
        self.read(&accesses);
        self.write(&accesses);
    }

    fn count(&mut self, case: usize, landed: bool) {
        let tally = &mut self.tallies[case];
        tally.attempts += 1;
        *(if landed { &mut tally.landed } else { &mut tally.refused }) += 1;
    }

    /// Nothing but what was restored may have changed.
    fn assert_unchanged(&self, by: &str) {
        let changed = self.memory.first_change();
        assert!(changed.is_none(), "{by} changed the memory at {:#x}", changed.unwrap_or(0));
    }

    fn read(&mut self, accesses: &[(usize, Access)]) {
        let devices = self.devices.len();
        let slot = |n: usize| HALF + (n / devices) as u64 * SLOT;
        assert!(slot(accesses.len() - 1) < BUFFER, "more accesses than the buffers have room for");
        let buffer = [pattern(Owner::Device, 0, HALF), vec![UNREAD; HALF as usize]].concat();
        for n in 0..devices {
            write(buffer_page(n), &buffer);
        }
        self.move_buffers(|device, iova| device.start_read(iova, 0, BUFFER));
        for round in (0..accesses.len()).collect::<Vec<_>>().chunks(devices) {
            for (device, n) in self.devices.iter().zip(round) {
                let Access { iova, bytes } = accesses[*n].1;
                device.start_read(iova, slot(*n), bytes);
            }
            self.finish();
        }
        for n in 0..devices {
            write(buffer_page(n), &vec![0; BUFFER as usize]);
        }
        self.move_buffers(|device, iova| device.start_write(iova, 0, BUFFER));
        for n in 0..devices {
            assert!(
                read(buffer_page(n), HALF) == buffer[..HALF as usize],
                "no copy of the buffer of device {n}"
            );
        }
        for (n, (case, access)) in accesses.iter().enumerate() {
            for (offset, iova, bytes) in access.parts() {
                let got = read(buffer_page(n % devices) + slot(n) + offset, bytes);
                let may = self.reached(iova, Direction::Read);
                let is_right = match may {
                    Some(address) => got == self.memory.at(address, bytes),
                    None => got.iter().all(|byte| NOTHING_READ.contains(byte)),
                };
                let case_name = self.tallies[*case].case;
                assert!(
                    is_right,
                    "{case_name}: a read of {bytes} bytes at {iova:#x} got {got:x?}; may reach {may:x?}"
                );
                self.count(*case, may.is_some());
            }
        }
        self.assert_unchanged("reading");
    }

    fn write(&mut self, accesses: &[(usize, Access)]) {
        let source = pattern(Owner::Device, 0, HALF);
        for round in rounds(accesses, self.devices.len()) {
            for (n, (device, (_, Access { iova, bytes }))) in self.devices.iter().zip(&round).enumerate() {
                device.start_write(*iova, n as u64 * SLOT, *bytes);
            }
            self.finish();
            for (n, (case, access)) in round.iter().enumerate() {
                for (offset, iova, bytes) in access.parts() {
                    let may = self.reached(iova, Direction::Write);
                    if let Some(address) = may {
                        let from = (n as u64 * SLOT + offset) as usize;
                        let (got, written) = (read(address, bytes), &source[from..from + bytes as usize]);
                        let case_name = self.tallies[*case].case;
                        assert!(
                            got == written,
                            "{case_name}: a write of {bytes} bytes at {iova:#x} left {got:x?}"
                        );
                        self.memory.restore(address, bytes);
                    }
                    self.count(*case, may.is_some());
                }
            }
            // What is refused has changed nothing, and what has landed nothing besides.
            self.assert_unchanged(&format!("one of the writes {round:x?}"));
        }
    }

    /// Moves each device's buffer from or to its page, to which it has access only here.
    fn move_buffers(&self, start: impl Fn(&Edu, u64)) {
        let iova = |n: usize| self.buffers_iova + n as u64 * PAGE;
        let bytes = self.devices.len() as u64 * PAGE;
        let range = IovaRange::new(Iova(self.buffers_iova), bytes).unwrap();
        // SAFETY: the memory exists until the container is closed, and no reference into it exists.
        let hva = unsafe { host_va(buffer_page(0)) };
        self.raw.map(&Mapping { range, hva, perm: Perm::ReadWrite }, None).unwrap();
        self.devices.iter().enumerate().for_each(|(n, device)| start(device, iova(n)));
        self.finish();
        assert_eq!(self.raw.unmap(range), Ok(bytes));
    }

    fn finish(&self) {
        self.devices.iter().for_each(Edu::finish);
    }
}

/// The host address of the page of a device's buffer.
fn buffer_page(device: usize) -> u64 {
    hva_of(BUFFERS, 0) + device as u64 * PAGE
}

/// Accesses that devices can make at the same time: none overlaps another one.
fn rounds(accesses: &[(usize, Access)], devices: usize) -> Vec<Vec<(usize, Access)>> {
    let mut rounds: Vec<Vec<(usize, Access)>> = Vec::new();
    for one in accesses {
        let fits = |round: &&mut Vec<(usize, Access)>| {
            round.len() < devices && round.iter().all(|other| !other.1.overlaps(one.1))
        };
        match rounds.iter_mut().find(fits) {
            Some(round) => round.push(*one),
            None => rounds.push(vec![*one]),
        }
    }
    rounds
}
