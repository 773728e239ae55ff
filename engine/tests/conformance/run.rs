//! Runs cases on a target of map and unmap calls, and reports every difference.

use std::fmt;

/// The driver that sets the expected results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Type1,
    Iommufd,
}

/// The conditions before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pages that may be locked in addition to those that are.
    pub memlock_pages: Option<u64>,
    /// iommufd counts locked memory per process.
    pub per_process: bool,
    /// The maximum number of entries.
    pub entries: Option<u64>,
    pub no_device: bool,
}

/// Memory of the runner. Every page was written once, so it is the process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hva {
    /// An offset into writable memory, which is followed by [`Hva::Nothing`].
    Writable(u64),
    /// An offset into read-only memory.
    ReadOnly(u64),
    /// An address without memory.
    Nothing,
    /// An absolute address.
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
    /// Maps `length` bytes from `offset` on of a memory file, which is as long as each of the other kinds.
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
    /// Attaches the first device of an IOAS.
    Attach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Success, with the number of bytes unmapped.
    Bytes(u64),
    /// Failure, with one of these errnos.
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
    /// The only driver that this case is for; `None`: both.
    pub only: Option<Kernel>,
    pub needs: Needs,
    pub steps: Vec<Step>,
    /// IOVA and length of each mapping at the end, on type1 and on iommufd.
    pub left: [Vec<(u64, u64)>; 2],
}

/// A target that returns what a kernel would; an errno is a positive number.
pub trait Target {
    fn map(&self, iova: u64, length: u64, memory: Hva, writable: bool) -> Result<(), i32>;
    fn map_file(&self, iova: u64, length: u64, offset: u64, writable: bool) -> Result<(), i32>;
    fn unmap(&self, iova: u64, length: u64) -> Result<u64, i32>;
    fn unmap_all(&self) -> Result<u64, i32>;
    fn attach(&self) -> Result<(), i32>;
}

/// A difference between expected and actual results.
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

/// Runs one case on a fresh target, and empties the target.
///
/// The mappings left at the end are checked by unmapping them piece by piece; after that nothing may be left.
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
