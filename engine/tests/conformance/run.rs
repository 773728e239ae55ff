//! Runs cases on whatever answers map and unmap calls, and tells every difference.

use std::fmt;

/// Whose answers are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Type1,
    Iommufd,
}

/// What has to be there before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many pages more may be locked.
    pub memlock_pages: Option<u64>,
    /// How many entries there may be.
    pub entries: Option<u64>,
    /// No device is attached yet.
    pub no_device: bool,
}

/// Memory of the runner's. Every page was written once, so that it is the process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hva {
    /// This many bytes into memory that can be written. Behind its end there is [`Hva::Nothing`].
    Writable(u64),
    /// This many bytes into memory that can only be read.
    ReadOnly(u64),
    /// Where there is no memory.
    Nothing,
    /// A number.
    At(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Map {
        iova: u64,
        length: u64,
        memory: Hva,
        writable: bool,
    },
    /// Of a file of memory as long as the other memory, from `offset` on.
    MapFile {
        iova: u64,
        length: u64,
        offset: u64,
        writable: bool,
    },
    Unmap {
        iova: u64,
        length: u64,
    },
    UnmapAll,
    /// The first device of an IOAS.
    Attach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It worked.
    Done,
    /// It worked, and took away so many bytes.
    Bytes(u64),
    /// It failed, with one of these.
    No(&'static [i32]),
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub op: Op,
    pub type1: Answer,
    pub iommufd: Answer,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    /// None: for both.
    pub only: Option<Kernel>,
    pub needs: Needs,
    pub steps: Vec<Step>,
    /// IOVA and length of each mapping in the end, on type1 and on iommufd.
    pub left: [Vec<(u64, u64)>; 2],
}

/// Something that answers as a kernel does: an errno is a positive number.
pub trait Target {
    fn map(&self, iova: u64, length: u64, memory: Hva, writable: bool) -> Result<(), i32>;
    fn map_file(&self, iova: u64, length: u64, offset: u64, writable: bool) -> Result<(), i32>;
    fn unmap(&self, iova: u64, length: u64) -> Result<u64, i32>;
    fn unmap_all(&self) -> Result<u64, i32>;
    fn attach(&self) -> Result<(), i32>;
}

/// What differs.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Answer {
    fn fits(self, got: Result<Option<u64>, i32>) -> bool {
        match (self, got) {
            (Self::Done, Ok(None)) => true,
            (Self::Bytes(expected), Ok(Some(bytes))) => bytes == expected,
            (Self::No(expected), Err(errno)) => expected.contains(&errno),
            _ => false,
        }
    }
}

impl Step {
    pub fn answer(&self, kernel: Kernel) -> Answer {
        match kernel {
            Kernel::Type1 => self.type1,
            Kernel::Iommufd => self.iommufd,
        }
    }
}

impl Case {
    pub fn is_for(&self, kernel: Kernel) -> bool {
        self.only.is_none_or(|only| only == kernel)
    }

    pub fn left(&self, kernel: Kernel) -> &[(u64, u64)] {
        &self.left[usize::from(kernel == Kernel::Iommufd)]
    }
}

/// Runs one case on a fresh target, which holds nothing afterwards.
///
/// What is left at the end is found out by unmapping it, piece by piece; then there must be nothing more.
pub fn run(case: &Case, kernel: Kernel, target: &dyn Target) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut check = |step: &dyn fmt::Debug, expected: Answer, got: Result<Option<u64>, i32>| {
        if !expected.fits(got) {
            let text = format!("{}: {step:x?}: {expected:?} expected, {got:?} answered", case.name);
            differences.push(Difference(text));
        }
    };
    for step in &case.steps {
        let got = match step.op {
            Op::Map { iova, length, memory, writable } => {
                target.map(iova, length, memory, writable).map(|()| None)
            }
            Op::MapFile { iova, length, offset, writable } => {
                target.map_file(iova, length, offset, writable).map(|()| None)
            }
            Op::Unmap { iova, length } => target.unmap(iova, length).map(Some),
            Op::UnmapAll => target.unmap_all().map(Some),
            Op::Attach => target.attach().map(|()| None),
        };
        check(&step.op, step.answer(kernel), got);
    }
    for (iova, length) in case.left(kernel).iter().copied() {
        let got = target.unmap(iova, length).map(Some);
        check(&("left", iova, length), Answer::Bytes(length), got);
    }
    check(&"nothing else left", Answer::Bytes(0), target.unmap_all().map(Some));
    differences
}
