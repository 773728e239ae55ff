//! Long-term pins through io_uring, in place of VFIO's map ioctl. For benches on machines without VFIO; never
//! shipped.
//!
//! A buffer registered with an io_uring is pinned by the same kernel function and with the same semantics as a VFIO
//! mapping: `pin_user_pages` with FOLL_LONGTERM and FOLL_WRITE, 2 MiB a call, faulting in missing pages on the
//! calling thread, counted against RLIMIT_MEMLOCK. Everything after the pin is missing: no IOMMU page table is
//! written and no container lock is taken. Times with it are times of pinning, not of mapping.

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfio_fast_engine::addr::{IovaRange, PageSizes};
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping, PopulatePolicy};
use vfio_fast_engine::limits::{Limits, Memlock, MemlockScope};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::{Errno, Result};

/// Bytes of one registered buffer: the unit in which type1 pins. It also keeps a huge page alone in its buffer. For
/// each huge page that shares a buffer or a ring with small pages, io_uring searches all pages of the buffer and all
/// buffers of the ring, which took ten times as long as pinning them.
const BUFFER: u64 = 2 << 20;
/// Buffers per ring: few, for the same reason.
const BUFFERS: u64 = 64;

/// Pins what VFIO would map; see the module's description.
#[derive(Debug)]
pub struct PinStandIn {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Rings without buffers.
    free: Vec<Ring>,
    /// The pins by first IOVA.
    held: BTreeMap<u64, Pinned>,
}

#[derive(Debug)]
struct Pinned {
    range: IovaRange,
    rings: Vec<Ring>,
}

impl PinStandIn {
    /// The name in the report.
    pub const NAME: &str =
        "io_uring registered buffers (long-term pins, no IOMMU), standing in for VFIO's map ioctl";

    /// Allocates everything that is needed to pin `bytes`, and pins nothing. Fails if io_uring is forbidden or older
    /// than Linux 5.19.
    pub fn new(bytes: u64) -> io::Result<Self> {
        // One more per entry, because an entry does not have to end where a ring is full.
        Self::with_rings(bytes.div_ceil(BUFFER * BUFFERS) + 8 + (bytes >> 30))
    }

    /// The same for `rings` mappings of at most 128 MiB each.
    pub fn with_rings(rings: u64) -> io::Result<Self> {
        let free = (0..rings).map(|_| Ring::new()).collect::<io::Result<_>>()?;
        Ok(Self { state: Mutex::new(State { free, held: BTreeMap::new() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Pins all of the memory, or nothing.
    fn pin(&mut self, start: u64, bytes: u64) -> std::result::Result<Vec<Ring>, Errno> {
        let end = start + bytes;
        let mut rings = Vec::new();
        let mut from = start;
        while from < end {
            let mut buffers = Vec::new();
            while from < end && (buffers.len() as u64) < BUFFERS {
                let to = end.min((from / BUFFER + 1) * BUFFER);
                buffers
                    .push(libc::iovec { iov_base: from as *mut libc::c_void, iov_len: (to - from) as usize });
                from = to;
            }
            let ring = self.free.pop().map_or_else(|| Ring::new().map_err(|error| errno(&error)), Ok);
            let pinned = ring.and_then(|mut ring| {
                let pinned = ring.fill(&buffers);
                rings.push(ring);
                pinned
            });
            if let Err(errno) = pinned {
                self.unpin(rings)?;
                return Err(errno);
            }
        }
        Ok(rings)
    }

    fn unpin(&mut self, rings: Vec<Ring>) -> std::result::Result<(), Errno> {
        for mut ring in rings {
            ring.empty()?;
            self.free.push(ring);
        }
        Ok(())
    }
}

impl Backend for PinStandIn {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn limits(&self) -> Result<Limits> {
        let (page_sizes, iova_ranges) = (PageSizes::FOUR_KIB, Vec::new());
        Ok(Limits { page_sizes, iova_ranges, entries: None, entries_at_open: None })
    }

    /// Unknown, because io_uring counts per user, not per process. The kernel enforces the limit.
    fn memlock(&self) -> Memlock {
        Memlock { locked: 0, limit: None, scope: MemlockScope::User }
    }

    fn capabilities(&self) -> Capabilities {
        let populate = PopulatePolicy::Overlapped;
        Capabilities { populate, parallel: false, objects: false, exclusive: false }
    }

    /// Always pins for writing: io_uring has no read-only pins.
    fn map(&self, mapping: &Mapping, _: Option<Object<'_>>) -> std::result::Result<(), Errno> {
        let mut state = self.state();
        let below = state.held.range(..=mapping.range.last()).next_back();
        if below.is_some_and(|(_, held)| held.range.overlaps(mapping.range)) {
            return Err(Errno::EEXIST);
        }
        let rings = state.pin(mapping.hva.raw(), mapping.range.length())?;
        state.held.insert(mapping.range.start(), Pinned { range: mapping.range, rings });
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> std::result::Result<u64, Errno> {
        let mut state = self.state();
        let touched: Vec<IovaRange> =
            state.held.values().map(|held| held.range).filter(|held| held.overlaps(range)).collect();
        if touched.iter().any(|held| !range.contains(*held)) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = 0;
        for held in touched {
            let Some(held) = state.held.remove(&held.start()) else { continue };
            state.unpin(held.rings)?;
            bytes += held.range.length();
        }
        Ok(bytes)
    }

    fn unmap_all(&self) -> std::result::Result<u64, Errno> {
        self.unmap(IovaRange::ALL)
    }
}

// From include/uapi/linux/io_uring.h.
const IORING_REGISTER_BUFFERS2: libc::c_uint = 15;
const IORING_REGISTER_BUFFERS_UPDATE: libc::c_uint = 16;
const IORING_RSRC_REGISTER_SPARSE: u32 = 1;

/// `struct io_uring_params`, with all options off.
#[repr(C, align(8))]
struct Params([u8; 120]);

/// `struct io_uring_rsrc_register`
#[repr(C)]
#[derive(Default)]
struct Register {
    nr: u32,
    flags: u32,
    resv2: u64,
    data: u64,
    tags: u64,
}

/// `struct io_uring_rsrc_update2`
#[repr(C)]
#[derive(Default)]
struct Update {
    offset: u32,
    resv: u32,
    data: u64,
    tags: u64,
    nr: u32,
    resv2: u32,
}

const _: () = assert!(size_of::<Register>() == 32 && size_of::<Update>() == 32);

/// An io_uring that receives no requests: only its table of buffers is used.
#[derive(Debug)]
struct Ring {
    fd: OwnedFd,
    /// The number of buffers in the table, from its first slot on.
    buffers: usize,
}

impl Ring {
    fn new() -> io::Result<Self> {
        let mut params = Params([0; 120]);
        // SAFETY: the kernel reads and writes the 120 bytes of its parameters.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let ring = Self { fd, buffers: 0 };
        let table =
            Register { nr: BUFFERS as u32, flags: IORING_RSRC_REGISTER_SPARSE, ..Register::default() };
        ring.register(IORING_REGISTER_BUFFERS2, (&raw const table).cast(), size_of::<Register>())?;
        Ok(ring)
    }

    /// Writes buffers to the table from slot `offset` on, up to the first that cannot be pinned. Returns how many it
    /// wrote, or an error if that is none. A zeroed buffer clears its slot.
    fn update(&self, offset: usize, buffers: &[libc::iovec]) -> std::result::Result<usize, Errno> {
        let (nr, data) = (buffers.len() as u32, buffers.as_ptr() as u64);
        let update = Update { offset: offset as u32, nr, data, ..Update::default() };
        self.register(IORING_REGISTER_BUFFERS_UPDATE, (&raw const update).cast(), size_of::<Update>())
            .map_err(|error| errno(&error))
    }

    fn fill(&mut self, buffers: &[libc::iovec]) -> std::result::Result<(), Errno> {
        while self.buffers < buffers.len() {
            self.buffers += self.update(self.buffers, &buffers[self.buffers..])?;
        }
        Ok(())
    }

    fn empty(&mut self) -> std::result::Result<(), Errno> {
        let nothing = vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; self.buffers];
        if !nothing.is_empty() && self.update(0, &nothing)? != nothing.len() {
            return Err(Errno::EIO);
        }
        self.buffers = 0;
        Ok(())
    }

    fn register(&self, what: libc::c_uint, argument: *const libc::c_void, size: usize) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: the argument is `size` bytes of the struct that this operation reads, and refers to buffers that
        // outlive the call. The kernel pins and unpins the memory of those buffers and accesses none of its bytes,
        // because no request refers to it. The creator of the `HostVa` guarantees that it stays mapped.
        let answer =
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, argument, size as libc::c_uint) };
        usize::try_from(answer).map_err(|_| io::Error::last_os_error())
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}
