//! Checks whether host memory is device memory, according to the kernel's list of mappings.
//!
//! Mappings of a VFIO device are recognised by their name (Linux 6.11), in a few microseconds. Everything else is
//! recognised by flags, which are only available in /proc/self/smaps. The kernel walks the page tables of every mapping
//! that it lists there, which takes milliseconds per GiB of memory at lower addresses. So this is read only after a
//! populate call has failed with EINVAL (as it always does for device memory), and reading stops at the first mapping
//! that decides the result.

use std::io::{self, BufRead, BufReader};

use super::procmap;
use crate::addr::HostVa;
use crate::sys::proc;

/// One page: reading further ahead would make the kernel walk mappings that do not matter here.
const READ_AHEAD: usize = 4096;

/// Whether all of the `bytes` bytes at `hva` are mapped to device memory.
///
/// "All", because a region is treated as a whole: a region that is only partly device memory contains RAM that must
/// be faulted in, and the map ioctl decides about the rest.
pub(crate) fn is_device(hva: HostVa, bytes: u64) -> io::Result<bool> {
    let Some(last) = bytes.checked_sub(1).and_then(|more| hva.raw().checked_add(more)) else {
        return Ok(false);
    };
    if procmap::is_bar(hva, bytes) {
        return Ok(true);
    }
    let smaps = BufReader::with_capacity(
        READ_AHEAD,
        proc::open("/proc/self/smaps").ok_or(io::ErrorKind::PermissionDenied)?,
    );
    all_device(smaps, hva.raw(), last)
}

/// Whether all of the `bytes` bytes at `hva` are memory that type1 does not count as locked: the kernel has no pages for
/// it, or they are those of a DAX device. Before Linux 6.15, such a mapping has the flag VM_MIXEDMAP (`mm`).
pub(crate) fn is_uncounted(hva: HostVa, bytes: u64) -> bool {
    let Some(last) = bytes.checked_sub(1).and_then(|more| hva.raw().checked_add(more)) else {
        return false;
    };
    let by_flag = || {
        let smaps = BufReader::with_capacity(READ_AHEAD, proc::open("/proc/self/smaps")?);
        all_flagged(smaps, hva.raw(), last, &[b"io", b"pf", b"mm"]).ok()
    };
    procmap::is_bar(hva, bytes) || procmap::is_dax(hva, bytes) || by_flag().unwrap_or(false)
}

/// Whether every byte from `start` to the inclusive `last` lies in a mapping in `smaps` that is marked as I/O (`io`,
/// VM_IO) or as bare page frames (`pf`, VM_PFNMAP).
pub(super) fn all_device(smaps: impl BufRead, start: u64, last: u64) -> io::Result<bool> {
    all_flagged(smaps, start, last, &[b"io", b"pf"])
}

/// Whether every byte from `start` to the inclusive `last` lies in a mapping in `smaps` that has one of the flags.
fn all_flagged(mut smaps: impl BufRead, start: u64, last: u64, flags: &[&[u8]]) -> io::Result<bool> {
    // The first byte without a mapping so far, and the end of the current mapping if that covers it.
    let mut next = start;
    let mut covering: Option<u64> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if smaps.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if let Some((begin, end)) = header(&line) {
            // Mappings are in address order, so this byte lies in a hole, or in a mapping without flags.
            if begin > next {
                return Ok(false);
            }
            covering = (next < end).then_some(end);
        } else if let (Some(end), Some(set)) = (covering, line.strip_prefix(b"VmFlags:")) {
            if !set.split(u8::is_ascii_whitespace).any(|flag| flags.contains(&flag)) {
                return Ok(false);
            }
            if end > last {
                return Ok(true);
            }
            next = end;
            covering = None;
        }
    }
}

/// The bounds of the mapping that a header line starts (`begin-end perms offset dev inode path`, end exclusive);
/// `None` for any other line.
pub(super) fn header(line: &[u8]) -> Option<(u64, u64)> {
    let bounds = line.split(|&byte| byte == b' ').next()?;
    let (begin, end) = std::str::from_utf8(bounds).ok()?.split_once('-')?;
    Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ordinary mappings, a BAR of two contiguous VMAs, a hole, a mapping of I/O memory without page frames,
    /// directly followed by ordinary memory, and a mapping without reported flags, directly followed by a BAR.
    const SMAPS: &str = "\
00400000-00401000 r--p 00000000 fe:00 1234                       /opt/a-b c/VmFlags: io
Size:                  4 kB
THPeligible:           0
VmFlags: rd mr mw me sd
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Rss:                2048 kB
VmFlags: rd wr mr mw me ac sd iopf pfio
7f0000200000-7f0000300000 rw-s 10000000 00:0d 5                  /dev/vfio/12
VmFlags: rd wr sh mr mw me ms io pf dd de
7f0000300000-7f0000400000 rw-s 10100000 00:0d 5                  /dev/vfio/12
VmFlags: rd wr sh mr mw me ms pf dd
7f0000500000-7f0000501000 rw-s 00000000 00:06 9                  /dev/x
VmFlags: rd io
7f0000501000-7f0000502000 rw-p 00000000 00:00 0
VmFlags: rd wr
7f0000600000-7f0000601000 rw-p 00000000 00:00 0
Rss:                   0 kB
7f0000601000-7f0000602000 rw-s 00000000 00:0d 5                  /dev/vfio/12
VmFlags: rd wr sh mr mw me ms io pf dd de
7f0000700000-7f0000701000 r--p 00000000 00:00 0                  [vvar]
VmFlags: rd mr io pf\n";

    fn device(start: u64, last: u64) -> bool {
        all_device(SMAPS.as_bytes(), start, last).unwrap()
    }

    #[test]
    fn device_mappings_are_told_from_memory() {
        assert!(!device(0x40_0000, 0x40_0fff), "a file, whatever its name says");
        assert!(!device(0x7f00_0000_0000, 0x7f00_001f_ffff), "memory, though its flags contain the letters");
        assert!(device(0x7f00_0020_0000, 0x7f00_002f_ffff), "the first mapping of a BAR");
        assert!(device(0x7f00_0030_0000, 0x7f00_0030_0fff), "pf alone");
        assert!(device(0x7f00_0050_0000, 0x7f00_0050_0fff), "io alone");
        assert!(device(0x7f00_0070_0000, 0x7f00_0070_0fff), "the last mapping of all");
    }

    #[test]
    fn a_range_is_device_memory_only_as_a_whole() {
        assert!(device(0x7f00_0020_0000, 0x7f00_003f_ffff), "two mappings side by side");
        assert!(!device(0x7f00_001f_f000, 0x7f00_0020_0fff), "starts in memory");
        assert!(!device(0x7f00_0030_0000, 0x7f00_0040_0fff), "runs into a hole");
        assert!(!device(0x7f00_0050_0000, 0x7f00_0050_1fff), "runs into memory");
        assert!(!device(0x7f00_0040_0000, 0x7f00_0040_0fff), "is a hole");
        assert!(!device(0x7f00_0060_0000, 0x7f00_0060_0fff), "has no flags");
        assert!(!device(0x7f00_0060_0000, 0x7f00_0060_1fff), "starts where there are no flags");
        assert!(!device(0x7f00_0070_1000, u64::MAX), "lies behind everything");
        assert!(!device(0, 0xfff), "lies before everything");
        assert!(!all_device(&b""[..], 0, 1).unwrap());
    }

    #[test]
    fn reading_stops_where_the_question_is_settled() {
        struct Watched<'a>(&'a [u8]);
        impl io::Read for Watched<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                // One line at a time, as if the kernel had to walk page tables for each.
                let line = self.0.iter().position(|&byte| byte == b'\n').map_or(self.0.len(), |end| end + 1);
                self.0.read_exact(&mut buffer[..line])?;
                Ok(line)
            }
        }
        let mut watched = Watched(SMAPS.as_bytes());
        assert!(all_device(BufReader::new(&mut watched), 0x7f00_0020_0000, 0x7f00_0020_0fff).unwrap());
        assert!(watched.0.starts_with(b"7f0000300000-"), "{:?}", str::from_utf8(watched.0));
    }

    #[test]
    fn this_process_maps_device_memory_and_memory() {
        // The kernel maps its time data into every process as bare page frames.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let vvar =
            maps.lines().find(|line| line.ends_with("[vvar]")).expect("a [vvar] mapping in this process");
        let (begin, end) = header(vvar.as_bytes()).unwrap();
        assert!(is_device(HostVa::from_raw(begin), end - begin).unwrap());
        let ordinary = Box::new(1u8);
        let address = std::ptr::from_ref::<u8>(&ordinary) as u64;
        assert!(!is_device(HostVa::from_raw(address), 1).unwrap());
        assert!(!is_device(HostVa::from_raw(u64::MAX), 2).unwrap());
        assert!(!is_device(HostVa::from_raw(begin), 0).unwrap());
    }
}
