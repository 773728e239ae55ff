//! The C interface on the model, called with anything that its documentation permits: structs of any size and content,
//! at the edge of readable memory, in any order.
//!
//! Pointers are NULL, or point to as many bytes as the documentation demands: anything else is undefined.

mod caller;
mod edge;

use arbitrary::Arbitrary;

use crate::Input;
use caller::Caller;

/// Maximum number of operations of an input.
const MAX_OPERATIONS: usize = 48;

pub fn run(input: &[u8]) {
    let Some(Input { setup, operations }) = Input::<Setup, Operation>::read(input, MAX_OPERATIONS) else {
        return;
    };
    let mut caller = Caller::new();
    caller.execute(&Operation::Open(setup));
    operations.iter().for_each(|operation| caller.execute(operation));
    caller.end();
}

/// An address or a length: small ones, and those at the edges of what 64 bits hold.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Number {
    kind: u8,
    value: u16,
}

impl Number {
    fn get(self) -> u64 {
        let value = u64::from(self.value);
        match self.kind % 8 {
            0..=2 => value << 12,
            3 => value << 20,
            4 => (value << 12).wrapping_neg(),
            5 => value,
            6 => value.wrapping_neg(),
            _ => 1 << (value % 64),
        }
    }

    /// A host address at which nothing is mapped.
    fn hva(self) -> u64 {
        let value = u64::from(self.value);
        match self.kind % 8 {
            0..=3 => 0x10_0000_0000 + (value << 12),
            4 => (value << 12).wrapping_neg(),
            5 => 0x10_0000_0000 + value,
            6 => value.wrapping_neg(),
            _ => value << 12,
        }
    }
}

/// The size that a struct states.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Own,
    /// That many bytes less.
    Less(u8),
    /// More bytes, of which one may not be zero.
    More {
        bytes: u8,
        other_than_zero: bool,
    },
    Any(u32),
}

impl Size {
    /// The same for a struct with pointers, of which a part is no valid pointer. They are at multiples of 8 bytes.
    fn with_whole_pointers(self) -> Self {
        match self {
            Self::Less(bytes) => Self::Less(bytes & !7),
            Self::Any(size) => Self::Any(size & !7),
            size => size,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setup {
    size: Size,
    sim_size: Size,
    flags: u8,
    /// The backend: mostly the model.
    backend: u8,
    iommufd: bool,
    without_sim: bool,
    entry_size: Number,
    threads: u8,
    log_level: u8,
    cuts: [u16; 2],
    cut_count: u8,
    cpus: Option<u64>,
    max_unmap_entries: u8,
    fail_nth: u8,
    fail_errno: u8,
    dma_avail: u8,
    memlock: Option<Number>,
    iova_bits: u8,
    /// Whether dirty pages may be tracked. All regions are then small, because the model has a bit for each page.
    tracks: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Region {
    size: Size,
    flags: u8,
    iova: Number,
    length: Number,
    hva: Number,
    backing: u8,
    fd: u8,
    region_index: u8,
    fd_offset: Number,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Range {
    size: Size,
    flags: u8,
    iova: Number,
    length: Number,
}

#[derive(Arbitrary, Clone, Debug)]
struct Pages {
    size: Size,
    flags: u8,
    first: Number,
    strides: Vec<u8>,
    hva: Number,
    backing: u8,
    array: Array,
}

/// What is wrong with an array.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Array {
    Nothing,
    Null,
    Misaligned,
    LargerThanMemory(Number),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Dirty {
    size: Size,
    flags: u8,
    iova: Number,
    length: Number,
    page_size: Number,
    words: u8,
    array: Array,
}

#[derive(Arbitrary, Clone, Debug)]
enum Operation {
    Open(Setup),
    Close,
    Begin,
    Commit { outcome: Option<Size>, background: bool },
    Check,
    Abort,
    Map(Region),
    Unmap(Range),
    MapPages(Pages),
    UnmapPages(Pages),
    Track(u8),
    ReadDirty(Dirty),
    UnmapDirty(Dirty),
    Discard { size: Size, flags: u8, offset: u16, length: Number },
    Remap(Range),
    Retry,
    Suspend,
    Resume,
    Entries { room: u8, null: bool },
    Adopt { own: bool, more: Vec<(Number, Number, u8)>, outcome: Option<Size>, array: Array },
    Stats(Option<Size>),
    Info(Option<Size>),
    Progress(Option<Size>),
    LastFailure(Option<Size>),
    LastError,
    Wait { iova: Number, length: Number, patiently: bool },
    CompletionFd { null: bool },
    Cancel(u8),
}
