//! Errors that name the operation, the numbers, and the setting to change.

use std::fmt;

use crate::addr::{HostVa, IovaRange};

/// A kernel error number, unchanged: the kernel can return values that this crate has no name for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

#[allow(missing_docs, reason = "the names are errno(3)'s")]
impl Errno {
    pub const ENOENT: Self = Self(libc::ENOENT);
    pub const EIO: Self = Self(libc::EIO);
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    pub const EFAULT: Self = Self(libc::EFAULT);
    pub const EBUSY: Self = Self(libc::EBUSY);
    pub const EEXIST: Self = Self(libc::EEXIST);
    pub const EINVAL: Self = Self(libc::EINVAL);
    pub const ENOSPC: Self = Self(libc::ENOSPC);
    pub const EOVERFLOW: Self = Self(libc::EOVERFLOW);
    pub const EMSGSIZE: Self = Self(libc::EMSGSIZE);
    pub const EADDRINUSE: Self = Self(libc::EADDRINUSE);
    pub const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    pub const ENOTTY: Self = Self(libc::ENOTTY);
    pub const EHWPOISON: Self = Self(libc::EHWPOISON);
    pub const ENOTRECOVERABLE: Self = Self(libc::ENOTRECOVERABLE);

    /// The calling thread's errno.
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

/// The operation that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Opening the backend.
    Open,
    /// Checking arguments, state or limits, before any mapping was changed.
    Check,
    /// Mapping an entry.
    Map,
    /// Unmapping entries.
    Unmap,
    /// Reading the kernel's limits.
    Info,
    /// Reading the pages that devices have written to.
    Dirty,
    /// Discarding memory.
    Discard,
}

/// The kind of a failure, with the numbers needed to act on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The kernel returned the error, and there are no details.
    Kernel,
    /// An address or length is not a multiple of the smallest IOMMU page.
    Misaligned {
        /// The misaligned value.
        value: u64,
        /// The page size in bytes.
        page: u64,
    },
    /// A length of zero, or a range that extends past the end of its address space.
    BadRange,
    /// The range overlaps a wanted region.
    Overlap {
        /// The range of that region.
        with: IovaRange,
    },
    /// An unmap would cut a region that was declared exact.
    CutsExact {
        /// The range of that region.
        region: IovaRange,
    },
    /// The transaction would pin more memory than RLIMIT_MEMLOCK allows. All numbers are bytes.
    Memlock {
        /// Bytes that the transaction pins in addition to those already locked.
        needed: u64,
        /// VmLck before the transaction.
        locked: u64,
        /// RLIMIT_MEMLOCK.
        limit: u64,
    },
    /// The transaction needs more kernel entries than the container has left.
    Entries {
        /// Entries this transaction adds.
        needed: u64,
        /// Entries the container has left.
        available: u64,
    },
    /// A RAM region lies outside the ranges that the IOMMU can translate.
    OutsideIova {
        /// The valid ranges.
        valid: Vec<IovaRange>,
    },
    /// The kernel unmapped a different number of bytes than the table had: another user changed the container.
    ByteCount {
        /// Bytes in the table.
        expected: u64,
        /// Bytes the kernel reported.
        got: u64,
    },
    /// A transaction is already open, or none is open.
    Transaction {
        /// Whether one is open.
        open: bool,
    },
    /// The handle's record of the kernel's entries is no longer reliable.
    Poisoned {
        /// The failure that caused it.
        cause: String,
    },
    /// The file system of memory that is about to be faulted in has too little space left for it. Numbers are bytes.
    FileSystemFull {
        /// The file behind the memory.
        file: String,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The memory is a shared mapping of a file that the kernel does not pin, because its pages are written back.
    DiskFile {
        /// The file behind the memory.
        file: String,
    },
    /// Any other broken rule, as text.
    Other(&'static str),
}

/// A failed operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The operation that failed.
    pub op: Op,
    /// The kernel's error, or the one that the kernel would have returned.
    pub errno: Errno,
    /// The IOVAs in question, if any.
    pub range: Option<IovaRange>,
    /// The host address in question, if any.
    pub hva: Option<HostVa>,
    /// The kind, with its numbers.
    pub kind: ErrorKind,
}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The result of a kernel call. The caller knows the operation.
pub type KernelResult<T> = std::result::Result<T, Errno>;

impl Error {
    /// The error of a kernel call.
    pub fn kernel(op: Op, errno: Errno) -> Self {
        Self { op, errno, range: None, hva: None, kind: ErrorKind::Kernel }
    }

    /// The error for a malformed description from the kernel.
    pub fn malformed(text: &'static str) -> Self {
        Self { kind: ErrorKind::Other(text), ..Self::kernel(Op::Info, Errno::EIO) }
    }

    /// The error of a failed check that made no kernel call.
    pub fn check(errno: Errno, kind: ErrorKind) -> Self {
        Self { kind, ..Self::kernel(Op::Check, errno) }
    }

    /// Adds the IOVAs.
    pub fn at(self, range: IovaRange) -> Self {
        Self { range: Some(range), ..self }
    }

    /// Adds the host address.
    pub fn at_hva(self, hva: HostVa) -> Self {
        Self { hva: Some(hva), ..self }
    }

    /// Replaces the operation.
    pub fn of(self, op: Op) -> Self {
        Self { op, ..self }
    }

    /// The amounts needed and available: bytes for memlock and file systems, entries for `dma_avail`.
    pub fn needed_and_available(&self) -> Option<(u64, u64)> {
        match self.kind {
            ErrorKind::Memlock { needed, locked, limit } => Some((locked.saturating_add(needed), limit)),
            ErrorKind::Entries { needed, available } => Some((needed, available)),
            ErrorKind::FileSystemFull { needed, free, .. } => Some((needed, free)),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.op {
            Op::Open => "Opening the container",
            Op::Check => "Checking",
            Op::Map => "Mapping",
            Op::Unmap => "Unmapping",
            Op::Info => "Asking the container for its limits",
            Op::Dirty => "Asking for dirty pages",
            Op::Discard => "Giving memory back",
        };
        write!(f, "{verb}")?;
        if let Some(range) = self.range {
            write!(f, " IOVA {range} ({} bytes)", range.length())?;
        }
        if let Some(hva) = self.hva {
            write!(f, " at host address {hva:?}")?;
        }
        write!(f, " failed: {}", self.errno)?;
        match &self.kind {
            ErrorKind::Kernel => Ok(()),
            ErrorKind::Misaligned { value, page } => {
                write!(f, ": {value:#x} is not a multiple of the smallest IOMMU page, {page} bytes")
            }
            ErrorKind::BadRange => {
                write!(f, ": the length is zero or the range runs past the end of the address space")
            }
            ErrorKind::Overlap { with } => {
                write!(f, ": it overlaps the region at {with}, which must be unmapped first")
            }
            ErrorKind::CutsExact { region } => {
                write!(f, ": the range cuts the exact region at {region}, which can only be unmapped whole")
            }
            ErrorKind::Memlock { needed, locked, limit } => write!(
                f,
                ": pinning needs {} bytes of locked memory ({needed} on top of {locked} locked now), RLIMIT_MEMLOCK \
                 allows {limit}: raise it (`ulimit -l`, LimitMEMLOCK=, <memtune>/<hard_limit>) or grant CAP_IPC_LOCK",
                locked.saturating_add(*needed)
            ),
            ErrorKind::Entries { needed, available } => write!(
                f,
                ": {needed} mappings are needed and the container has {available} left: raise the module parameter \
                 vfio_iommu_type1.dma_entry_limit, or map larger blocks"
            ),
            ErrorKind::OutsideIova { valid } => {
                write!(f, ": the IOMMU can only translate")?;
                for range in valid {
                    write!(f, " {range}")?;
                }
                write!(f, ": a smaller guest address space or an IOMMU with more address bits is needed")
            }
            ErrorKind::ByteCount { expected, got } => write!(
                f,
                ": the kernel unmapped {got} bytes where {expected} were mapped: something else changed this container"
            ),
            ErrorKind::Transaction { open: true } => write!(f, ": a transaction is open already"),
            ErrorKind::Transaction { open: false } => write!(f, ": no transaction is open"),
            ErrorKind::Poisoned { cause } => {
                write!(
                    f,
                    ": what is mapped is not known any more since this failed: {cause}; only closing is left"
                )
            }
            ErrorKind::FileSystemFull { file, needed, free } => write!(
                f,
                ": the file system of {file} has {free} bytes free, {needed} are needed: enlarge it, or add huge pages \
                 to the pool (hugetlbfs)"
            ),
            ErrorKind::DiskFile { file } => write!(
                f,
                ": shared memory of a disk file system ({file}) cannot be given to devices: use tmpfs, memfd or share=off"
            ),
            ErrorKind::Other(text) => write!(f, ": {text}"),
        }
    }
}

impl std::error::Error for Error {}
