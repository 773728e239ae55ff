//! Checks which file host memory is a shared mapping of, according to the kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::fd::{self, FileId};
use super::file_system;
use super::ioctl::submit;
use super::proc;
use crate::addr::HostVa;
use crate::error::KernelResult;

/// `PROCMAP_QUERY`, since Linux 6.11: `_IOWR('f', 17, struct procmap_query)`.
const QUERY: libc::c_ulong =
    3 << 30 | (size_of::<Query>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 17;
const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 2;
const VMA_SHARED: u64 = 8;

/// `struct procmap_query`
#[repr(C)]
#[derive(Default, Debug)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    /// The first byte after it.
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    /// The offset of `vma_start` in the file, in bytes.
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = {
    assert!(size_of::<Query>() == 104 && QUERY == 0xc068_6611);
    assert!(offset_of!(Query, inode) == 64 && offset_of!(Query, dev_major) == 72);
    assert!(offset_of!(Query, vma_name_size) == 80 && offset_of!(Query, build_id_addr) == 96);
};

/// The identity of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub inode: u64,
    pub major: u32,
    pub minor: u32,
}

/// Whether all of the `bytes` bytes at `hva` are a shared mapping of `file` from `offset` on that this process may read
/// or, with `writable`, write, and `file` is a memory file (shmem or hugetlbfs, including a memfd). Returns `false` if
/// that cannot be determined.
///
/// A private mapping has other pages than the file once it has been written to. A device may not do with memory what
/// the mapping forbids, as when it is mapped by address.
pub(crate) fn is_shared_memory(
    hva: HostVa,
    bytes: u64,
    writable: bool,
    file: BorrowedFd<'_>,
    offset: u64,
) -> bool {
    let flags = VMA_SHARED | if writable { VMA_WRITABLE } else { VMA_READABLE };
    let Some(end) = hva.raw().checked_add(bytes) else { return false };
    let Some(identity) = memory_file(file) else { return false };
    let Some(maps) = proc::open("/proc/self/maps") else { return false };
    let mut next = hva.raw();
    while next < end {
        let expected = offset.wrapping_add(next - hva.raw());
        let Ok(vma) = query(&maps, next) else { return false };
        let found = Identity { inode: vma.inode, major: vma.dev_major, minor: vma.dev_minor };
        let at = vma.vma_offset.wrapping_add(next.wrapping_sub(vma.vma_start));
        let permitted = vma.vma_flags & flags == flags;
        if !permitted || found != identity || at != expected || !(vma.vma_start..vma.vma_end).contains(&next)
        {
            return false;
        }
        next = vma.vma_end;
    }
    bytes > 0
}

/// A shared, writable mapping of a file.
#[derive(Debug)]
pub(crate) struct SharedFile {
    /// The first byte after the mapping.
    pub end: HostVa,
    /// The file's name, with the suffix " (deleted)" if it has none any more.
    pub name: Vec<u8>,
    /// The identity of the file.
    pub identity: Identity,
}

/// A mapping of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vma {
    /// The first byte after it.
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    /// The size of its pages, of hugetlbfs its own size.
    pub page: u64,
}

/// The mappings of this process.
#[derive(Debug)]
pub(crate) struct Maps(File);

impl Maps {
    /// `None` if there is no /proc, or the kernel has no PROCMAP_QUERY.
    pub fn open() -> Option<Self> {
        let maps = proc::open("/proc/self/maps")?;
        // The address of this function is mapped.
        query(&maps, Self::open as *const () as u64).ok().map(|_| Self(maps))
    }

    /// The size of the pages of the mapping at `hva`: of hugetlbfs its own size, otherwise the base page.
    pub fn page_size(&self, hva: HostVa) -> Option<u64> {
        query(&self.0, hva.raw()).ok().map(|vma| vma.vma_page_size)
    }

    /// The mapping at `address`; `None` if nothing is mapped there.
    pub fn at(&self, address: u64) -> Option<Vma> {
        let vma =
            query(&self.0, address).ok().filter(|vma| (vma.vma_start..vma.vma_end).contains(&address))?;
        let has = |flag| vma.vma_flags & flag != 0;
        let (readable, writable) = (has(VMA_READABLE), has(VMA_WRITABLE));
        Some(Vma { end: vma.vma_end, readable, writable, page: vma.vma_page_size })
    }

    /// The file at `hva`, if that is a shared and writable mapping of one. `None` if the kernel is older than 6.11.
    pub fn shared_file(&self, hva: HostVa) -> Option<SharedFile> {
        const FLAGS: u64 = VMA_SHARED | VMA_WRITABLE;
        let vma = query(&self.0, hva.raw()).ok().filter(|vma| vma.vma_flags & FLAGS == FLAGS)?;
        let mut name = vec![0u8; libc::PATH_MAX as usize];
        let length = query_name(&self.0, hva.raw(), &mut name).ok()?;
        name.truncate(length.saturating_sub(1));
        let identity = Identity { inode: vma.inode, major: vma.dev_major, minor: vma.dev_minor };
        Some(SharedFile { end: HostVa::from_raw(vma.vma_end), name, identity })
    }
}

/// Asks for the name of the mapping at `address`. Returns its length with the terminating zero; 0 if it has none.
fn query_name(maps: &File, address: u64, name: &mut [u8]) -> KernelResult<usize> {
    let mut argument = Query {
        size: size_of::<Query>() as u64,
        query_addr: address,
        vma_name_size: u32::try_from(name.len()).unwrap_or(u32::MAX),
        vma_name_addr: name.as_mut_ptr() as u64,
        ..Query::default()
    };
    // SAFETY: `argument` is as long as its first field states, and the name is as long as its field states. Both
    // outlive the call.
    unsafe { submit(maps.as_fd(), QUERY, (&raw mut argument).cast()) }?;
    Ok(name.len().min(argument.vma_name_size as usize))
}

fn query(maps: &File, address: u64) -> KernelResult<Query> {
    let mut argument = Query { size: size_of::<Query>() as u64, query_addr: address, ..Query::default() };
    // SAFETY: `argument` is as long as its first field states and outlives the call; it requests no name.
    unsafe { submit(maps.as_fd(), QUERY, (&raw mut argument).cast()) }?;
    Ok(argument)
}

/// The identity of a memory file; `None` for any other file.
fn memory_file(file: BorrowedFd<'_>) -> Option<Identity> {
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the struct is the one that the call fills.
    let asked = unsafe { libc::fstatfs(file.as_raw_fd(), system.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it has filled the struct.
    let system = (asked == 0).then(|| unsafe { system.assume_init() })?;
    let kind = file_system::magic(&system);
    if ![libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&kind) {
        return None;
    }
    let FileId { device, inode } = fd::file_id(file.into()).ok()?;
    Some(Identity { inode, major: libc::major(device), minor: libc::minor(device) })
}

/// The longest name of a VFIO device's mapping, with room to spare. The kernel refuses to return a longer name.
const NAME_BYTES: usize = 64;

/// Whether all of the `bytes` bytes at `hva` are shared mappings of VFIO devices, which map nothing but BARs. Returns
/// `false` if that cannot be determined.
pub(crate) fn is_bar(hva: HostVa, bytes: u64) -> bool {
    all_named(hva, bytes, is_vfio_device)
}

/// Whether all of the `bytes` bytes at `hva` are shared mappings of DAX devices (persistent memory, CXL memory). Returns
/// `false` if that cannot be determined.
pub(crate) fn is_dax(hva: HostVa, bytes: u64) -> bool {
    all_named(hva, bytes, |name| name.starts_with(b"/dev/dax"))
}

/// A device's file descriptor comes from its group or from its character device.
fn is_vfio_device(name: &[u8]) -> bool {
    name == b"anon_inode:[vfio-device]" || name.starts_with(b"/dev/vfio/devices/vfio")
}

/// Whether all of the `bytes` bytes at `hva` are shared mappings with such names.
fn all_named(hva: HostVa, bytes: u64, is: impl Fn(&[u8]) -> bool) -> bool {
    let Some(end) = hva.raw().checked_add(bytes) else { return false };
    let Some(maps) = proc::open("/proc/self/maps") else { return false };
    let mut next = hva.raw();
    while next < end {
        let mut name = [0; NAME_BYTES];
        let mut vma = Query {
            size: size_of::<Query>() as u64,
            query_addr: next,
            vma_name_size: NAME_BYTES as u32,
            vma_name_addr: name.as_mut_ptr() as u64,
            ..Query::default()
        };
        // SAFETY: `vma` is as long as its first field states, and `name` is as long as its field states. Both outlive
        // the call.
        let asked = unsafe { submit(maps.as_fd(), QUERY, (&raw mut vma).cast()) };
        // The length includes the zero at the end of the name, and is 0 without a name.
        let length = (vma.vma_name_size as usize).saturating_sub(1);
        let named = asked.is_ok() && name.get(..length).is_some_and(&is);
        if !named || vma.vma_flags & VMA_SHARED == 0 || !(vma.vma_start..vma.vma_end).contains(&next) {
            return false;
        }
        next = vma.vma_end;
    }
    bytes > 0
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use memfd::MemfdOptions;

    use super::*;

    const PAGE: usize = 4096;
    const BYTES: usize = 8 * PAGE;

    /// A mapping of pages 4 to 11 of a file of 16 pages.
    struct Mapped {
        start: *mut libc::c_void,
    }

    impl Mapped {
        fn new(file: &File) -> Self {
            let shared = Self { start: ptr::null_mut() };
            Self { start: shared.map(file, libc::MAP_SHARED, 0, BYTES, 4) }
        }

        /// Maps `bytes` bytes of the file from `page` on, `at` bytes into this mapping.
        fn map(
            &self,
            file: &File,
            flags: libc::c_int,
            at: usize,
            bytes: usize,
            page: usize,
        ) -> *mut libc::c_void {
            let address = self.start.wrapping_byte_add(at);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let offset = i64::try_from(page * PAGE).unwrap();
            // SAFETY: without MAP_FIXED a mapping replaces nothing, and with it only what this struct has mapped
            // itself.
            let got = unsafe { libc::mmap(address, bytes, protection, flags, file.as_raw_fd(), offset) };
            assert_ne!(got, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            got
        }

        fn at(&self, bytes: usize) -> HostVa {
            HostVa::from_raw(self.start as u64 + bytes as u64)
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: the mapping is this struct's, and no reference into it exists.
            assert_eq!(unsafe { libc::munmap(self.start, BYTES) }, 0);
        }
    }

    fn file() -> File {
        let file = MemfdOptions::default().create("vfio-fast-test").unwrap().into_file();
        file.set_len(16 * PAGE as u64).unwrap();
        file
    }

    #[test]
    fn only_the_named_part_of_the_named_file_is_it() {
        let (first, other) = (file(), file());
        let mapped = Mapped::new(&first);
        let is = |at: usize, bytes: usize, file: &File, page: usize| {
            is_shared_memory(mapped.at(at), bytes as u64, true, file.as_fd(), (page * PAGE) as u64)
        };
        assert!(is(0, BYTES, &first, 4));
        assert!(is(2 * PAGE, PAGE, &first, 6));
        assert!(!is(2 * PAGE, PAGE, &first, 5), "another part");
        assert!(!is(0, BYTES, &other, 4), "another file");
        assert!(!is(0, BYTES + PAGE, &first, 4), "longer than what is mapped");
        assert!(!is(0, 0, &first, 4), "nothing");
        let regular = File::open("/proc/self/exe").unwrap();
        assert!(!is(0, BYTES, &regular, 4), "no file of memory");
        assert!(!is_shared_memory(HostVa::from_raw(u64::MAX - 4095), 8192, true, first.as_fd(), 0), "wraps");
        // Several contiguous mappings count as one.
        mapped.map(&first, libc::MAP_SHARED | libc::MAP_FIXED, 2 * PAGE, PAGE, 6);
        assert!(is(0, BYTES, &first, 4));
        mapped.map(&first, libc::MAP_SHARED | libc::MAP_FIXED, 2 * PAGE, PAGE, 9);
        assert!(!is(0, BYTES, &first, 4), "a page of another part in between");
        assert!(is(0, 2 * PAGE, &first, 4) && is(3 * PAGE, PAGE, &first, 7));
    }

    #[test]
    fn every_mapping_of_a_range_must_have_such_a_name() {
        let file = file();
        let mapped = Mapped::new(&file);
        let is = |at: usize, bytes: u64| {
            all_named(mapped.at(at), bytes, |name| name == b"/memfd:vfio-fast-test (deleted)")
        };
        assert!(is(0, BYTES as u64) && is(3 * PAGE, 1));
        assert!(!is(0, 0) && !is(0, (BYTES + PAGE) as u64), "nothing, or more than is mapped");
        assert!(!all_named(mapped.at(0), 1, |name| name == b"/memfd:vfio-fast-test"), "another name");
        // Several contiguous mappings count as one.
        mapped.map(&file, libc::MAP_SHARED | libc::MAP_FIXED, 2 * PAGE, PAGE, 9);
        assert!(is(0, BYTES as u64));
        mapped.map(&file, libc::MAP_PRIVATE | libc::MAP_FIXED, 4 * PAGE, PAGE, 9);
        assert!(!is(0, BYTES as u64) && is(0, 4 * PAGE as u64), "a private mapping");
        assert!(!is_bar(mapped.at(0), 1), "not a device");
    }

    #[test]
    fn vfio_devices_are_known_by_name() {
        assert!(is_vfio_device(b"anon_inode:[vfio-device]") && is_vfio_device(b"/dev/vfio/devices/vfio0"));
        for other in
            [&b""[..], b"/dev/vfio/12", b"anon_inode:[vfio-device] ", b"/tmp/anon_inode:[vfio-device]"]
        {
            assert!(!is_vfio_device(other));
        }
    }

    #[test]
    fn a_private_mapping_is_not_the_file() {
        let file = file();
        let mapped = Mapped::new(&file);
        mapped.map(&file, libc::MAP_PRIVATE | libc::MAP_FIXED, 5 * PAGE, PAGE, 9);
        let is = |at: usize, bytes: usize| {
            is_shared_memory(mapped.at(at), bytes as u64, true, file.as_fd(), (at + 4 * PAGE) as u64)
        };
        assert!(is(0, 5 * PAGE) && is(6 * PAGE, 2 * PAGE));
        assert!(!is(5 * PAGE, PAGE) && !is(0, BYTES));
    }

    #[test]
    fn a_device_may_do_what_the_mapping_permits() {
        let file = file();
        let mapped = Mapped::new(&file);
        let is =
            |writable| is_shared_memory(mapped.at(0), BYTES as u64, writable, file.as_fd(), 4 * PAGE as u64);
        // One page of several must not make the others writable.
        for (protection, reads, writes) in [
            (libc::PROT_READ | libc::PROT_WRITE, true, true),
            (libc::PROT_READ, true, false),
            (libc::PROT_NONE, false, false),
        ] {
            let page = mapped.start.wrapping_byte_add(2 * PAGE);
            // SAFETY: the page is this test's, and no reference into it exists.
            assert_eq!(unsafe { libc::mprotect(page, PAGE, protection) }, 0);
            assert_eq!((is(false), is(true)), (reads, writes), "{protection}");
        }
    }
}
