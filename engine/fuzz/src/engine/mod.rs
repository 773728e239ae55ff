//! The engine on its model of a kernel: calls in any order, of which some fail, compared unit by unit with what the
//! caller wants.

mod caller;
mod dirty;

use arbitrary::Arbitrary;
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::PageSizes;
use vfio_fast_engine::backend::sim::{Rules, SimConfig};
use vfio_fast_engine::region::{Kind, Perm};
use vfio_fast_testing::{Piece, UNIT, UNITS};

use crate::Input;
use caller::Caller;

/// Maximum number of operations of an input: longer ones find nothing that these do not.
const MAX_OPERATIONS: usize = 64;
/// What the model returns where an input asks for a failure. It means nothing but a refusal.
const INJECTED: [Errno; 3] = [Errno(libc::EREMOTEIO), Errno::EBUSY, Errno::ENOMEM];

pub fn run(input: &[u8]) {
    let Some(Input { setup, operations }) = Input::<Setup, Operation>::read(input, MAX_OPERATIONS) else {
        return;
    };
    let mut caller = Caller::new(&setup);
    operations.iter().for_each(|operation| caller.execute(operation));
    caller.end();
}

/// The container and the engine.
#[derive(Arbitrary, Debug)]
struct Setup {
    iommufd: bool,
    threads: u8,
    page: u8,
    /// Whether the space ends at 2^64.
    at_the_top: bool,
    /// Maximum number of entries.
    entries: Option<u8>,
    /// RLIMIT_MEMLOCK in units, and whether the engine can see it.
    memlock: Option<(u8, bool)>,
    /// Whether calls may be made to fail.
    fails: bool,
}

impl Setup {
    fn threads(&self) -> usize {
        1 + usize::from(self.threads % 4)
    }

    fn page(&self) -> u64 {
        [4 << 10, 16 << 10, 64 << 10][usize::from(self.page % 3)]
    }

    fn base(&self) -> u64 {
        if self.at_the_top { (UNITS * UNIT).wrapping_neg() } else { 0 }
    }

    /// Whether a call can be refused though it is right. Device regions can then be wanted and not mapped.
    fn may_refuse(&self) -> bool {
        self.entries.is_some() || self.memlock.is_some() || self.fails
    }

    fn sim(&self) -> SimConfig {
        let default = SimConfig::default();
        SimConfig {
            rules: if self.iommufd { Rules::Iommufd } else { Rules::Type1 },
            page_sizes: PageSizes::from_bitmap(self.page() | 1 << 21 | 1 << 30),
            dma_avail: self.entries.map_or(default.dma_avail, |entries| u64::from(entries % 48) + 1),
            memlock_limit: self.memlock.map(|(units, _)| u64::from(units % 80) * UNIT),
            memlock_told: self.memlock.is_none_or(|(_, told)| told),
            all_dirty: false,
            ..default
        }
    }
}

/// Units of the space, and a little more than that.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Span {
    start: u8,
    units: u8,
}

impl Span {
    fn start(self) -> u64 {
        u64::from(self.start) % UNITS
    }

    fn units(self) -> u64 {
        1 + u64::from(self.units) % (UNITS - self.start())
    }
}

/// A region: the lowest bits of `kind` say which.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Memory {
    at: Span,
    object: u8,
    kind: u8,
}

impl Memory {
    fn piece(self, may_be_device: bool) -> Piece {
        let has = |bit: u8| self.kind >> bit & 1 == 1;
        Piece {
            start: self.at.start(),
            units: self.at.units(),
            object: 1 + u64::from(self.object % 3),
            // Offsets that follow the IOVA let neighbours join often.
            offset: self.at.start() + if has(5) { 1 } else { 0 },
            perm: if has(0) { Perm::Read } else { Perm::ReadWrite },
            kind: if has(1) && has(2) && may_be_device { Kind::Device } else { Kind::Ram },
            join: !has(3),
            exact: has(4),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Operation {
    Map(Memory),
    Unmap(Span),
    MapPages(Memory),
    UnmapPages(Span),
    /// A range that does not consist of whole pages.
    Misaligned {
        unit: u8,
        bytes: u16,
        unmap: bool,
    },
    Begin,
    Check,
    Commit,
    CommitInBackground,
    Abort,
    Wait {
        patiently: bool,
    },
    WaitFor(Span),
    Cancel {
        unmap: bool,
    },
    Remap {
        object: u8,
        unit: u8,
        units: u8,
    },
    Retry,
    HandOver,
    Track(bool),
    Write {
        unit: u8,
        page: u8,
    },
    ReadDirty(Span),
    UnmapDirty(Span),
    Fail {
        after: u8,
        errno: u8,
    },
}
