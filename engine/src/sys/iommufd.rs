//! iommufd's ioctls on one IOAS.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::ioctl::submit;
use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, KernelResult, Op, Result};
use crate::region::{Mapping, Perm};

// From include/uapi/linux/iommufd.h. The only published bindings may not be linked into every program that may use
// this library, so only the test below uses them, for comparison.

/// `_IO(IOMMUFD_TYPE, number)`: as with VFIO, the size is not encoded in the request but stored in the struct.
const fn request(number: libc::c_ulong) -> libc::c_ulong {
    const TYPE: libc::c_ulong = b';' as libc::c_ulong;
    TYPE << 8 | number
}

const IOAS_IOVA_RANGES: libc::c_ulong = request(0x84);
const IOAS_MAP: libc::c_ulong = request(0x85);
const IOAS_UNMAP: libc::c_ulong = request(0x86);
const OPTION: libc::c_ulong = request(0x87);
const IOAS_MAP_FILE: libc::c_ulong = request(0x8f);

const MAP_FIXED_IOVA: u32 = 1;
const MAP_WRITEABLE: u32 = 1 << 1;
const MAP_READABLE: u32 = 1 << 2;
const OPTION_RLIMIT_MODE: u32 = 0;
const OPTION_GET: u16 = 1;

/// `struct iommu_iova_range`
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct Range {
    start: u64,
    last: u64,
}

/// `struct iommu_ioas_iova_ranges`
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct IovaRanges {
    size: u32,
    ioas_id: u32,
    /// In: the capacity of the array. Out: the number of ranges.
    num_iovas: u32,
    reserved: u32,
    /// The address of the array.
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

/// `struct iommu_ioas_map`
#[repr(C)]
#[derive(Default)]
struct Map {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

/// `struct iommu_ioas_map_file`
#[repr(C)]
#[derive(Default)]
struct MapFile {
    size: u32,
    flags: u32,
    ioas_id: u32,
    fd: i32,
    start: u64,
    length: u64,
    iova: u64,
}

/// `struct iommu_ioas_unmap`
#[repr(C)]
#[derive(Default)]
struct Unmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

/// `struct iommu_option`
#[repr(C)]
#[derive(Default)]
struct GetOption {
    size: u32,
    option_id: u32,
    op: u16,
    reserved: u16,
    object_id: u32,
    val64: u64,
}

const _: () = {
    assert!(size_of::<Range>() == 16 && offset_of!(Range, start) == 0 && offset_of!(Range, last) == 8);
    assert!(size_of::<IovaRanges>() == 32 && offset_of!(IovaRanges, num_iovas) == 8);
    assert!(offset_of!(IovaRanges, allowed_iovas) == 16 && offset_of!(IovaRanges, out_iova_alignment) == 24);
    assert!(size_of::<Map>() == 40 && offset_of!(Map, flags) == 4 && offset_of!(Map, ioas_id) == 8);
    assert!(offset_of!(Map, user_va) == 16 && offset_of!(Map, length) == 24 && offset_of!(Map, iova) == 32);
    assert!(
        size_of::<MapFile>() == 40 && offset_of!(MapFile, flags) == 4 && offset_of!(MapFile, ioas_id) == 8
    );
    assert!(offset_of!(MapFile, fd) == 12 && offset_of!(MapFile, start) == 16);
    assert!(offset_of!(MapFile, length) == 24 && offset_of!(MapFile, iova) == 32);
    assert!(size_of::<Unmap>() == 24 && offset_of!(Unmap, ioas_id) == 4);
    assert!(offset_of!(Unmap, iova) == 8 && offset_of!(Unmap, length) == 16);
    assert!(size_of::<GetOption>() == 24 && offset_of!(GetOption, option_id) == 4);
    assert!(offset_of!(GetOption, op) == 8 && offset_of!(GetOption, object_id) == 12);
    assert!(offset_of!(GetOption, val64) == 16);
};

/// The capacity of the first array. An IOMMU has one to four ranges.
const FIRST_RANGES: usize = 16;
/// Maximum number of ranges: a file that reports more is not an IOAS.
const MAX_RANGES: usize = 1 << 16;

/// The size of an argument, for its first field.
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Maps the memory at the mapping's host address for devices.
pub(crate) fn map(iommufd: BorrowedFd<'_>, ioas_id: u32, mapping: &Mapping) -> KernelResult<()> {
    let mut argument = Map {
        size: size::<Map>(),
        flags: map_flags(mapping.perm),
        ioas_id,
        user_va: mapping.hva.raw(),
        length: mapping.range.length(),
        iova: mapping.range.start(),
        ..Map::default()
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call. The creator of the `HostVa`
    // guaranteed that the memory may be mapped.
    unsafe { submit(iommufd, IOAS_MAP, (&raw mut argument).cast()) }.map(drop)
}

/// Maps a file for devices, from `start` on. Kernels before 6.13 return ENOTTY.
pub(crate) fn map_file(
    iommufd: BorrowedFd<'_>,
    ioas_id: u32,
    mapping: &Mapping,
    file: BorrowedFd<'_>,
    start: u64,
) -> KernelResult<()> {
    let mut argument = MapFile {
        size: size::<MapFile>(),
        flags: map_flags(mapping.perm),
        ioas_id,
        fd: file.as_raw_fd(),
        start,
        length: mapping.range.length(),
        iova: mapping.range.start(),
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call. It maps a file's or a device's
    // memory, and only what this process has mapped shared: the creator of that mapping's `HostVa` guaranteed that it
    // may be mapped.
    unsafe { submit(iommufd, IOAS_MAP_FILE, (&raw mut argument).cast()) }.map(drop)
}

fn map_flags(perm: Perm) -> u32 {
    MAP_FIXED_IOVA | MAP_READABLE | if perm.is_writable() { MAP_WRITEABLE } else { 0 }
}

/// Unmaps every entry inside `range`; returns the number of bytes unmapped.
pub(crate) fn unmap(iommufd: BorrowedFd<'_>, ioas_id: u32, range: IovaRange) -> KernelResult<u64> {
    // The length of the whole space does not fit in 64 bits; the kernel takes the maximum for it.
    let (iova, length) = (range.start(), range.length());
    let mut argument = Unmap { size: size::<Unmap>(), ioas_id, iova, length };
    // SAFETY: `argument` is as long as its first field states and outlives the call.
    unsafe { submit(iommufd, IOAS_UNMAP, (&raw mut argument).cast()) }?;
    Ok(argument.length)
}

/// Whether pinned memory is counted per process, as VFIO does, and not per user.
pub(crate) fn counts_per_process(iommufd: BorrowedFd<'_>) -> KernelResult<bool> {
    let mut argument = GetOption {
        size: size::<GetOption>(),
        option_id: OPTION_RLIMIT_MODE,
        op: OPTION_GET,
        ..GetOption::default()
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call.
    unsafe { submit(iommufd, OPTION, (&raw mut argument).cast()) }?;
    Ok(argument.val64 == 1)
}

/// The restrictions on an IOAS's mappings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    /// The IOVAs that can be translated, ascending and never empty.
    pub(crate) ranges: Vec<IovaRange>,
    /// The alignment of every IOVA, length and host address: a power of two.
    pub(crate) alignment: u64,
}

/// Reads the restrictions of the devices that are attached now.
pub(crate) fn space(iommufd: BorrowedFd<'_>, ioas_id: u32) -> Result<Space> {
    read_space(|buffer| {
        let mut argument = IovaRanges {
            size: size::<IovaRanges>(),
            ioas_id,
            num_iovas: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
            allowed_iovas: buffer.as_mut_ptr() as u64,
            ..IovaRanges::default()
        };
        // SAFETY: `argument` is as long as its first field states, the array that it refers to has the stated
        // capacity, and both outlive the call.
        let asked = unsafe { submit(iommufd, IOAS_IOVA_RANGES, (&raw mut argument).cast()) };
        match asked {
            // The kernel has filled the struct despite EMSGSIZE.
            Ok(_) | Err(Errno::EMSGSIZE) => Ok(argument),
            Err(errno) => Err(Error::kernel(Op::Info, errno)),
        }
    })
}

/// Reads with an array that grows until all ranges fit. Every value in the result is checked.
fn read_space(mut ask: impl FnMut(&mut [Range]) -> Result<IovaRanges>) -> Result<Space> {
    let mut buffer = vec![Range::default(); FIRST_RANGES];
    loop {
        let answer = ask(&mut buffer)?;
        let count = answer.num_iovas as usize;
        let Some(ranges) = buffer.get(..count) else {
            // Devices can be attached between two calls, but each array is longer than the one before.
            if count > MAX_RANGES {
                return Err(Error::malformed("the IOAS says it has more than 65536 ranges of valid IOVAs"));
            }
            buffer = vec![Range::default(); count];
            continue;
        };
        if ranges.is_empty() {
            let kind =
                ErrorKind::Other("no IOVA of the IOAS can be mapped: its devices have no address in common");
            return Err(Error { kind, ..Error::kernel(Op::Info, Errno::EIO) });
        }
        let mut ranges: Vec<IovaRange> = ranges
            .iter()
            .map(|range| IovaRange::from_bounds(range.start, range.last))
            .collect::<Option<_>>()
            .ok_or_else(|| Error::malformed("a range of valid IOVAs ends before it starts"))?;
        ranges.sort_unstable();
        let alignment = answer.out_iova_alignment;
        if !alignment.is_power_of_two() {
            return Err(Error::malformed("the IOAS's alignment of IOVAs is no power of two"));
        }
        return Ok(Space { ranges, alignment });
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use iommufd_bindings as uapi;

    use super::*;
    use crate::addr::{HostVa, Iova};

    #[test]
    fn the_numbers_are_the_published_ones() {
        let theirs = |command: u32| libc::c_ulong::from(uapi::IOMMUFD_TYPE) << 8 | command as libc::c_ulong;
        assert_eq!(IOAS_IOVA_RANGES, theirs(uapi::IOMMUFD_CMD_IOAS_IOVA_RANGES));
        assert_eq!(IOAS_MAP, theirs(uapi::IOMMUFD_CMD_IOAS_MAP));
        assert_eq!(IOAS_UNMAP, theirs(uapi::IOMMUFD_CMD_IOAS_UNMAP));
        assert_eq!(OPTION, theirs(uapi::IOMMUFD_CMD_OPTION));
        assert_eq!(IOAS_MAP_FILE, theirs(uapi::IOMMUFD_CMD_IOAS_MAP_FILE));
        assert_eq!(MAP_FIXED_IOVA, uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA);
        assert_eq!(MAP_WRITEABLE, uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE);
        assert_eq!(MAP_READABLE, uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE);
        assert_eq!(OPTION_RLIMIT_MODE, uapi::iommufd_option_IOMMU_OPTION_RLIMIT_MODE);
        assert_eq!(u32::from(OPTION_GET), uapi::iommufd_option_ops_IOMMU_OPTION_OP_GET);
    }

    /// Compares sizes, and the offsets of fields by name; the last list has the fields with another name there.
    macro_rules! same_layout {
        ($ours:ty, $theirs:ty, $($field:ident),+ $(; $own:ident = $their:ident)?) => {
            assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($theirs));
            $(assert_eq!(
                offset_of!($ours, $field),
                offset_of!($theirs, $field),
                concat!(stringify!($theirs), ".", stringify!($field))
            );)+
            $(assert_eq!(offset_of!($ours, $own), offset_of!($theirs, $their), stringify!($theirs));)?
        };
    }

    #[test]
    fn the_layouts_are_the_published_ones() {
        same_layout!(Range, uapi::iommu_iova_range, start, last);
        same_layout!(IovaRanges, uapi::iommu_ioas_iova_ranges, size, ioas_id, num_iovas,
            allowed_iovas, out_iova_alignment; reserved = __reserved);
        same_layout!(Map, uapi::iommu_ioas_map, size, flags, ioas_id, user_va, length, iova; reserved = __reserved);
        same_layout!(MapFile, uapi::iommu_ioas_map_file, size, flags, ioas_id, fd, start, length, iova);
        same_layout!(Unmap, uapi::iommu_ioas_unmap, size, ioas_id, iova, length);
        same_layout!(GetOption, uapi::iommu_option, size, option_id, op, object_id, val64; reserved = __reserved);
    }

    #[test]
    fn what_is_not_an_iommufd_answers_enotty() {
        let file = File::open("/proc/self/status").unwrap();
        let fd = file.as_fd();
        let range = IovaRange::new(Iova(0), 0x1000).unwrap();
        let mapping = Mapping { range, hva: HostVa::from_raw(0), perm: Perm::ReadWrite };
        let tried = [
            counts_per_process(fd).map(drop),
            map(fd, 1, &mapping),
            map_file(fd, 1, &mapping, fd, 0),
            unmap(fd, 1, range).map(drop),
            unmap(fd, 1, IovaRange::ALL).map(drop),
        ];
        assert_eq!(tried, [Err(Errno::ENOTTY); 5]);
        assert_eq!(space(fd, 1).unwrap_err(), Error::kernel(Op::Info, Errno::ENOTTY));
    }

    /// Behaves as the kernel does: fills the array, and reports the number of ranges.
    fn kernel(all: &[(u64, u64)], alignment: u64) -> impl FnMut(&mut [Range]) -> Result<IovaRanges> + '_ {
        move |buffer| {
            for (to, &(start, last)) in buffer.iter_mut().zip(all) {
                *to = Range { start, last };
            }
            let num_iovas = u32::try_from(all.len()).unwrap();
            Ok(IovaRanges { num_iovas, out_iova_alignment: alignment, ..IovaRanges::default() })
        }
    }

    #[test]
    fn ranges_are_read_however_many_there_are() {
        for count in [1, 2, FIRST_RANGES, FIRST_RANGES + 1, MAX_RANGES] {
            let all: Vec<(u64, u64)> =
                (0..count as u64).map(|n| (n * 0x10_000, n * 0x10_000 + 0xfff)).collect();
            let space = read_space(kernel(&all, 0x1000)).unwrap();
            let bounds: Vec<_> = space.ranges.iter().map(|range| (range.start(), range.last())).collect();
            assert_eq!((bounds, space.alignment), (all, 0x1000), "{count} ranges");
        }
        // No device is attached yet.
        let space = read_space(kernel(&[(0, u64::MAX)], 1)).unwrap();
        assert_eq!(space, Space { ranges: vec![IovaRange::ALL], alignment: 1 });
    }

    #[test]
    fn ranges_that_grow_while_they_are_read_are_asked_for_again() {
        let mut asked = 0;
        let space = read_space(|buffer| {
            asked += 1;
            // One more than fits, in three calls.
            let count = if asked <= 3 { buffer.len() + 1 } else { buffer.len() };
            let all: Vec<(u64, u64)> = (0..count as u64).map(|n| (n, n)).collect();
            kernel(&all, 1)(buffer)
        });
        assert_eq!((asked, space.unwrap().ranges.len()), (4, FIRST_RANGES + 3));
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut asked = 0;
        let endless = read_space(|_| {
            asked += 1;
            Ok(IovaRanges { num_iovas: u32::MAX, out_iova_alignment: 1, ..IovaRanges::default() })
        });
        assert_eq!((asked, endless.unwrap_err().errno), (1, Errno::EIO));
        for (all, alignment) in
            [(&[][..], 0x1000), (&[(0x2000, 0x1fff)], 0x1000), (&[(0, 0xffff)], 0), (&[(0, 0xffff)], 0x1001)]
        {
            let error = read_space(kernel(all, alignment)).unwrap_err();
            assert_eq!((error.op, error.errno), (Op::Info, Errno::EIO), "{all:?} {alignment}");
        }
    }
}
