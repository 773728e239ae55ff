//! What /proc/self/smaps says about mappings: the size of their pages, and the caller's advice about huge pages.
//!
//! The kernel walks the page tables of every mapping that it lists there, which takes milliseconds per GiB of memory
//! in base pages. So this is read once for all of the work, and only if little is present.

use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use super::page::base_page;
use super::proc;
use super::vma::header;

/// One page: reading further ahead would make the kernel walk mappings that do not matter here.
const READ_AHEAD: usize = 4096;

/// A mapping of this process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub range: Range<u64>,
    /// The size of its pages: of hugetlbfs its own size, otherwise the base page.
    pub page: u64,
    /// Whether the caller has advised for or against huge pages (MADV_HUGEPAGE, MADV_NOHUGEPAGE).
    pub advised: bool,
}

/// The mappings that overlap `range`, in ascending order.
pub(crate) fn mappings(range: Range<u64>) -> io::Result<Vec<Mapping>> {
    let smaps = proc::open("/proc/self/smaps").ok_or(io::ErrorKind::PermissionDenied)?;
    parsed(BufReader::with_capacity(READ_AHEAD, smaps), range)
}

/// Bytes that this process has in memory, according to a count that the kernel keeps.
pub(crate) fn resident() -> Option<u64> {
    let text = proc::read("/proc/self/statm")?;
    text.split(' ').nth(1)?.parse::<u64>().ok()?.checked_mul(base_page())
}

pub(super) fn parsed(mut smaps: impl BufRead, range: Range<u64>) -> io::Result<Vec<Mapping>> {
    let mut found: Vec<Mapping> = Vec::new();
    let mut line = Vec::new();
    let mut wanted = false;
    while smaps.read_until(b'\n', &mut line)? > 0 {
        if let Some((start, end)) = header(&line) {
            if start >= range.end {
                break;
            }
            wanted = range.start < end;
            if wanted {
                found.push(Mapping { range: start..end, page: base_page(), advised: false });
            }
        } else if let Some(mapping) = found.last_mut().filter(|_| wanted) {
            if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
                mapping.page = kilobytes(size).unwrap_or_else(base_page);
            } else if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                let mut flags = flags.split(u8::is_ascii_whitespace);
                mapping.advised = flags.any(|flag| flag == b"hg" || flag == b"nh");
            }
        }
        line.clear();
    }
    Ok(found)
}

/// Parses a size as the kernel writes it: "  2048 kB".
fn kilobytes(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac sd hg
7f0040000000-7f00c0000000 rw-s 00000000 00:0f 1234               /dev/hugepages/a KernelPageSize: nh
KernelPageSize:  1048576 kB
VmFlags: rd wr sh mr mw me ms de ht
7f0100000000-7f0100200000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac nh
7f0100200000-7f0100400000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac sd
";

    fn found(range: Range<u64>) -> Vec<(u64, u64, bool)> {
        let mappings = parsed(SMAPS.as_bytes(), range).unwrap();
        mappings.into_iter().map(|mapping| (mapping.range.start, mapping.page, mapping.advised)).collect()
    }

    #[test]
    fn page_sizes_and_advice_are_read() {
        let all = [
            (0x7f00_0000_0000, 4096, true),
            (0x7f00_4000_0000, 1 << 30, false),
            (0x7f01_0000_0000, 4096, true),
            (0x7f01_0020_0000, 4096, false),
        ];
        assert_eq!(found(0..u64::MAX), all);
        assert_eq!(found(0x7f00_0020_0000..0x7f01_0000_0001), all[1..3]);
        assert_eq!(found(0x7f00_0020_0000..0x7f00_4000_0000), []);
        assert_eq!(found(0x7f01_0020_0000..u64::MAX), all[3..]);
        assert!(resident().unwrap() > 1 << 16);
    }
}
