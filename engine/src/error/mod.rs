//! Errors that name the operation, the numbers, and the setting to change.

mod hint;
mod unfinished;

use std::fmt;

use crate::addr::{Bytes, HostVa, IovaRange};
use crate::limits::UserCharges;
pub use unfinished::Unfinished;

/// A kernel error number, unchanged: the kernel can return values that this crate has no name for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

#[allow(missing_docs, reason = "the names are errno(3)'s")]
impl Errno {
    pub const ENOENT: Self = Self(libc::ENOENT);
    pub const EINTR: Self = Self(libc::EINTR);
    pub const EIO: Self = Self(libc::EIO);
    pub const EBADF: Self = Self(libc::EBADF);
    pub const EPERM: Self = Self(libc::EPERM);
    pub const EACCES: Self = Self(libc::EACCES);
    pub const ENODEV: Self = Self(libc::ENODEV);
    pub const ENFILE: Self = Self(libc::ENFILE);
    pub const EMFILE: Self = Self(libc::EMFILE);
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
    /// The kernel returned the error, and nothing more is known than what it means.
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
    /// The transaction would pin more memory than RLIMIT_MEMLOCK allows all processes of the user together. All
    /// numbers are bytes.
    UserMemlock {
        /// Bytes that the transaction pins in addition to those already charged.
        needed: u64,
        /// Bytes that are charged before the transaction, as far as they can be seen.
        locked: u64,
        /// RLIMIT_MEMLOCK.
        limit: u64,
        /// Who has pinned them.
        charges: Box<UserCharges>,
    },
    /// The kernel had too little memory, and no limit that can be seen explains it.
    NoMemory {
        /// Bytes that the machine has available; `None` if the kernel does not say.
        available: Option<u64>,
        /// RLIMIT_MEMLOCK, if processes that cannot be seen may be charged to the same user.
        user_limit: Option<u64>,
    },
    /// The transaction needs more kernel entries than the container has left.
    Entries(EntryUse),
    /// A region lies outside the ranges that the IOMMU can translate.
    OutsideIova {
        /// The valid ranges.
        valid: Vec<IovaRange>,
    },
    /// The kernel has a mapping in the range that the table does not have.
    Foreign,
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
    /// Another thread has a transaction open.
    OtherThread,
    /// The entries are handed over to another process.
    Suspended,
    /// The container has no way to hand entries over.
    NoHandover,
    /// The kernel has no entry that is exactly the range, or nobody has handed it over.
    NotHandedOver,
    /// The handle's record of the kernel's entries is no longer reliable.
    Poisoned {
        /// The failure that caused it.
        cause: String,
    },
    /// The file system of memory has too little space left for it. Numbers are bytes.
    FileSystemFull {
        /// The file behind the memory.
        file: String,
        /// The type of the file system.
        system: &'static str,
        /// What it can hold.
        size: u64,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The pool of huge pages is empty. Numbers are bytes.
    NoHugePages {
        /// The size of the pages.
        page: u64,
        /// The size of the pool.
        size: u64,
        /// Bytes that are free; less than a page.
        free: u64,
    },
    /// The memory is a shared mapping of a file that the kernel does not pin, because its pages are written back.
    DiskFile {
        /// The file behind the memory.
        file: String,
        /// The type of its file system.
        system: &'static str,
    },
    /// One page of the memory is the reason.
    Page {
        /// The first such address.
        at: HostVa,
        /// What is wrong with it.
        fault: PageFault,
    },
    /// The kernel's description of the container is malformed, as text.
    Malformed(&'static str),
    /// Any other broken rule, as text.
    Other(&'static str),
}

/// What a container's entries are used for, in numbers of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryUse {
    /// Entries that the transaction adds.
    pub needed: u64,
    /// Entries that the container has left for them.
    pub available: u64,
    /// Entries that the container can hold.
    pub total: u64,
    /// Entries that hold exact regions.
    pub exact: u64,
    /// Entries that hold device memory, and are not exact.
    pub device: u64,
    /// The other entries of the library.
    pub ram: u64,
    /// Entries that the library did not map.
    pub others: u64,
}

/// Why a page cannot be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageFault {
    /// Nothing is mapped there.
    Hole,
    /// The mapping does not allow the device's access, which is a write if `write`.
    NoAccess {
        /// Whether the device would write.
        write: bool,
    },
    /// It is device memory, such as a BAR.
    Device,
    /// The page has a memory error.
    Poisoned,
    /// An access would raise SIGBUS.
    Bus,
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
    /// What is different from what is wanted after a failed commit; `None`: nothing.
    pub unfinished: Option<Box<Unfinished>>,
}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The result of a kernel call. The caller knows the operation.
pub type KernelResult<T> = std::result::Result<T, Errno>;

impl Error {
    /// The error of a kernel call.
    pub fn kernel(op: Op, errno: Errno) -> Self {
        Self { op, errno, range: None, hva: None, kind: ErrorKind::Kernel, unfinished: None }
    }

    /// The error for a malformed description from the kernel.
    pub fn malformed(text: &'static str) -> Self {
        Self { kind: ErrorKind::Malformed(text), ..Self::kernel(Op::Info, Errno::EIO) }
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
            ErrorKind::Memlock { needed, locked, limit }
            | ErrorKind::UserMemlock { needed, locked, limit, .. } => {
                Some((locked.saturating_add(needed), limit))
            }
            ErrorKind::Entries(EntryUse { needed, available, .. }) => Some((needed, available)),
            ErrorKind::NoHugePages { page, free, .. } => Some((page, free)),
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
            write!(f, " IOVA {range} ({})", Bytes(range.length()))?;
        }
        if let Some(hva) = self.hva {
            write!(f, " at host address {hva:?}")?;
        }
        write!(f, " failed: {}", self.errno)?;
        self.write_kind(f)?;
        self.unfinished.as_ref().map_or(Ok(()), |unfinished| unfinished.fmt(f))
    }
}

impl Error {
    fn write_kind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ErrorKind::Kernel => hint::of(self.op, self.errno).map_or(Ok(()), |hint| write!(f, ": {hint}")),
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
                ": pinning needs {} of locked memory ({} in addition to the {} that this process has locked), \
                 RLIMIT_MEMLOCK is {}: raise it (`ulimit -l`, LimitMEMLOCK=, <memtune>/<hard_limit>) or grant \
                 CAP_IPC_LOCK",
                Bytes(locked.saturating_add(*needed)),
                Bytes(*needed),
                Bytes(*locked),
                Bytes(*limit)
            ),
            ErrorKind::UserMemlock { needed, locked, limit, charges } => write!(
                f,
                ": pinning needs {} of locked memory ({} in addition to {charges}), RLIMIT_MEMLOCK is {}: iommufd \
                 counts all processes of a user together: raise it (`ulimit -l`, LimitMEMLOCK=, \
                 <memtune>/<hard_limit>), grant CAP_IPC_LOCK, use another user, or let the process that opens \
                 /dev/iommu set IOMMU_OPTION_RLIMIT_MODE to 1",
                Bytes(locked.saturating_add(*needed)),
                Bytes(*needed),
                Bytes(*limit)
            ),
            ErrorKind::NoMemory { available, user_limit } => {
                write!(f, ": the kernel had no memory left for it")?;
                if let Some(available) = available {
                    write!(f, " (MemAvailable is {})", Bytes(*available))?;
                }
                write!(f, ", or could not move a page out of ZONE_MOVABLE or CMA memory: free memory")?;
                if let Some(limit) = user_limit {
                    write!(
                        f,
                        ", or raise RLIMIT_MEMLOCK ({}), which processes of this user that /proc does not show may \
                         have used up",
                        Bytes(*limit)
                    )?;
                }
                Ok(())
            }
            ErrorKind::Entries(EntryUse { needed, available, total, exact, device, ram, others }) => write!(
                f,
                ": mappings needed: {needed}; left: {available} of {total} (RAM {ram}, exact regions {exact}, device \
                 memory {device}, not the library's {others}): raise dma_entry_limit \
                 of vfio_iommu_type1 before the container is opened (`modprobe vfio_iommu_type1 dma_entry_limit=`), or \
                 map larger blocks"
            ),
            ErrorKind::OutsideIova { valid } => {
                let bits = valid.last().map_or(64, |range| u64::BITS - range.last().leading_zeros());
                write!(f, ": the IOMMU translates {bits}-bit addresses, only")?;
                for range in valid {
                    write!(f, " {range}")?;
                }
                write!(f, ": use addresses in these ranges, or an IOMMU with more address bits")
            }
            ErrorKind::Foreign => write!(
                f,
                ": something else has mapped a part of this range in the container: nothing but the library may map there"
            ),
            ErrorKind::ByteCount { expected, got } => write!(
                f,
                ": the kernel unmapped {got} bytes where {expected} were mapped: something else changed this container"
            ),
            ErrorKind::Transaction { open: true } => write!(f, ": a transaction is open already"),
            ErrorKind::Transaction { open: false } => write!(f, ": no transaction is open"),
            ErrorKind::OtherThread => write!(
                f,
                ": another thread has a transaction open: call again when it is committed or aborted, or use a handle for \
                 each thread"
            ),
            ErrorKind::Suspended => {
                write!(f, ": the mappings are handed over to another process: take them back first")
            }
            ErrorKind::NoHandover => write!(
                f,
                ": the container cannot hand its mappings over to another process: that takes type1 since Linux 5.12, or \
                 iommufd"
            ),
            ErrorKind::NotHandedOver => {
                write!(f, ": the container has no mapping of exactly this range that was handed over")
            }
            ErrorKind::Poisoned { cause } => {
                write!(
                    f,
                    ": what is mapped is not known any more since this failed: {cause}; only closing is left"
                )
            }
            ErrorKind::FileSystemFull { file, system, size, needed, free } => {
                let remedy = match *system {
                    "hugetlbfs" => "add huge pages to its pool (vm.nr_hugepages)",
                    _ => "enlarge it (mount -o remount,size=)",
                };
                write!(
                    f,
                    ": the file system of {file} ({system} of {}) has {} free, {} more are needed: {remedy}",
                    Bytes(*size),
                    Bytes(*free),
                    Bytes(*needed)
                )
            }
            ErrorKind::NoHugePages { page, size, free } => write!(
                f,
                ": the pool of huge pages of {} is empty ({} of {} free): add pages to it (vm.nr_hugepages), or reserve \
                 them when the memory is mapped",
                Bytes(*page),
                Bytes(*free),
                Bytes(*size)
            ),
            ErrorKind::DiskFile { file, system } => write!(
                f,
                ": Linux does not pin shared memory of a disk file system ({file} on {system}) for devices since 6.5: \
                 use tmpfs, hugetlbfs, memfd or share=off"
            ),
            ErrorKind::Page { at, fault } => write!(f, ": {}", fault.text(*at)),
            ErrorKind::Malformed(text) => write!(
                f,
                ": the kernel's description of the container is malformed: {text}: report it with the kernel's version"
            ),
            ErrorKind::Other(text) => write!(f, ": {text}"),
        }
    }
}

impl std::error::Error for Error {}
