//! Guest memory of every kind, not yet faulted in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vfio_fast_engine::addr::HostVa;
use vfio_fast_engine::host_va;

use vfio_fast_protocol::memory::MemoryKind;

/// Alignment of guest memory in this process, so that huge pages of every size can back it.
const ALIGNMENT: u64 = 1 << 30;
/// Bytes that a thread clears at a time.
const CLEARED_AT_ONCE: u64 = 2 << 20;

/// Memory that was never accessed, mapped as QEMU maps a guest's.
pub struct Memory {
    start: u64,
    bytes: u64,
    kind: MemoryKind,
    file: Option<OwnedFd>,
}

impl Memory {
    /// Maps the memory. This reserves hugetlb pages, but no other kind.
    pub fn new(kind: MemoryKind, bytes: u64) -> io::Result<Self> {
        let file = match kind {
            MemoryKind::Anon4k | MemoryKind::AnonThp => None,
            MemoryKind::Memfd4k | MemoryKind::MemfdThp => Some(memfd(bytes, 0)?),
            MemoryKind::Hugetlb => Some(memfd(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?),
            MemoryKind::Hugetlb1g => Some(memfd(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_1GB)?),
        };
        let reserve = if kind.reserved_page().is_some() { 0 } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = map(ptr::null_mut(), bytes + ALIGNMENT, libc::PROT_NONE, flags, -1)?;
        let start = (room as u64).next_multiple_of(ALIGNMENT);
        let (sharing, fd) = match &file {
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        map(start as *mut libc::c_void, bytes, protection, sharing | reserve | libc::MAP_FIXED, fd)?;
        let memory = Self { start, bytes, kind, file };
        match kind {
            MemoryKind::Anon4k | MemoryKind::Memfd4k => memory.advise(libc::MADV_NOHUGEPAGE)?,
            MemoryKind::AnonThp | MemoryKind::MemfdThp => memory.advise(libc::MADV_HUGEPAGE)?,
            MemoryKind::Hugetlb | MemoryKind::Hugetlb1g => {}
        }
        Ok(memory)
    }

    /// The address of the first byte, to be passed to a device.
    pub fn hva(&self) -> HostVa {
        // SAFETY: pins borrow the memory for as long as anything is pinned, no Rust reference into it exists, and it
        // contains only zeros.
        unsafe { host_va(self.start) }
    }

    /// The file that is mapped here from its first byte on, if the mapping is shared.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Faults in all of the memory by one call on this thread.
    pub fn populate(&self) -> io::Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Faults in `length` bytes from `offset` on, on threads that take an equal number of pages each, as QEMU's prealloc
    /// does.
    pub fn populate_split(&self, offset: u64, length: u64, threads: usize) -> io::Result<()> {
        let page = self.kind.reserved_page().unwrap_or(4 << 10);
        let (pages, threads) = (length / page, threads as u64);
        let start_of = |thread: u64| offset + page * (pages / threads * thread + thread.min(pages % threads));
        let parts: Vec<_> = (0..threads)
            .map(|thread| (start_of(thread), start_of(thread + 1)))
            .filter(|(from, to)| from < to)
            .collect();
        // As in QEMU, no thread begins before all have started: starting takes an mmap, which waits for faults.
        let started = Barrier::new(parts.len());
        thread::scope(|scope| {
            let started = &started;
            let workers: Vec<_> = parts
                .into_iter()
                .map(|(from, to)| {
                    scope.spawn(move || {
                        started.wait();
                        self.advise_at(from, to - from, libc::MADV_POPULATE_WRITE)
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("advises and nothing else"))
        })
    }

    /// Clears all of the memory on `threads` threads.
    pub fn clear(&self, threads: usize) -> Duration {
        let next = AtomicU64::new(0);
        let started = Instant::now();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let offset = next.fetch_add(CLEARED_AT_ONCE, Ordering::Relaxed);
                        if offset >= self.bytes {
                            return;
                        }
                        let bytes = CLEARED_AT_ONCE.min(self.bytes - offset) as usize;
                        let at = (self.start + offset) as *mut u8;
                        // SAFETY: inside the mapping, which is writable; each offset is taken by one thread only.
                        unsafe { ptr::write_bytes(at, 0, bytes) };
                    }
                });
            }
        });
        started.elapsed()
    }

    /// Bytes that huge pages map now.
    pub fn huge_bytes(&self) -> u64 {
        if self.kind.reserved_page().is_some() {
            return self.bytes;
        }
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let mut inside = false;
        let mut kib = 0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), second) = (words.next(), words.next()) else { continue };
            let bounds = first.split_once('-').map(|(from, _)| u64::from_str_radix(from, 16));
            if let Some(Ok(from)) = bounds {
                inside = (self.start..self.start + self.bytes).contains(&from);
            } else if inside && ["AnonHugePages:", "ShmemPmdMapped:"].contains(&first) {
                kib += second.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        kib << 10
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        self.advise_at(0, self.bytes, advice)
    }

    fn advise_at(&self, offset: u64, length: u64, advice: libc::c_int) -> io::Result<()> {
        let start = (self.start + offset) as *mut libc::c_void;
        // SAFETY: the range is in this mapping, and none of the advice values used here changes or discards a byte of
        // it.
        let answer = unsafe { libc::madvise(start, length as usize, advice) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nothing refers to it any more. After a failure it is unmapped when
        // the process exits.
        let _ = unsafe { libc::munmap(self.start as *mut libc::c_void, self.bytes as usize) };
    }
}

fn memfd(bytes: u64, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; a new descriptor is made.
    let fd = unsafe { libc::memfd_create(c"vfio-fast-bench".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, and nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a system call on an open descriptor.
    let sized = unsafe { libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) };
    if sized == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

fn map(
    at: *mut libc::c_void,
    bytes: u64,
    protection: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
) -> io::Result<*mut libc::c_void> {
    // SAFETY: without MAP_FIXED nothing is replaced; with it, `at` lies in the range that this module reserved for
    // that.
    let address = unsafe { libc::mmap(at, bytes as usize, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}
