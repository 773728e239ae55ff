//! The IOMMU's own page tables, as VT-d's driver shows them in debugfs: what a device can access, independent of the
//! engine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::cases::PAGE;
use super::common::{Space, UNIT};
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::region::Perm;

/// The physical address in a page table entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const WRITABLE: u64 = 2;
/// Maximum number of differences to report.
const SHOWN: usize = 8;
/// The kernel moves a page within milliseconds, or longer on a busy host.
const MOVED_WITHIN: Duration = Duration::from_secs(30);

/// The translation of one page of IOVAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub physical: u64,
    pub writable: bool,
}

/// Every translated page, by IOVA.
pub type Translations = BTreeMap<u64, Translation>;

/// The page tables of one device.
#[derive(Debug)]
pub struct PageTables {
    file: PathBuf,
}

impl PageTables {
    /// The page tables of the device with that PCI address. AMD-Vi's driver shows none, nor does that of VT-d if it was
    /// not built to.
    pub fn of(device: &str) -> Option<Self> {
        let folder = Path::new("/sys/kernel/debug/iommu/intel");
        let file = folder.join(device).join("domain_translation_struct");
        folder.exists().then_some(Self { file })
    }

    /// The current translations.
    pub fn read(&self) -> Translations {
        self.dump(parse)
    }

    /// The IOVA and the bytes of each leaf entry, ascending.
    pub fn leaves(&self) -> Vec<(u64, u64)> {
        let leaves = self.dump(leaves);
        leaves.iter().map(|leaf| (leaf.page * PAGE, leaf.pages * PAGE)).collect()
    }

    fn dump<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let text =
            fs::read_to_string(&self.file).unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
        parse(&text).unwrap_or_else(|error| panic!("{}: {error}", self.file.display()))
    }
}

/// A leaf entry: the first page number that it translates, and how many it translates.
struct Leaf {
    page: u64,
    pages: u64,
    entry: u64,
}

/// Parses a dump: a line for the device, a line of titles, and a line for each leaf entry. Such a line has the page
/// number and the entries on the path to it, from level 5 down.
fn leaves(text: &str) -> Result<Vec<Leaf>, String> {
    let mut lines = text.lines();
    // A dump without a device has no tables, which is not the same as an empty table.
    let device = lines.next().filter(|line| line.starts_with("Device "));
    device.and(lines.next()).filter(|line| line.starts_with("IOVA_PFN")).ok_or("it shows no device")?;
    let leaf = |line: &str| {
        let (page, entries) = line.split_once('|')?;
        let hex = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
        let entries: Vec<u64> = entries.split_whitespace().map(hex).collect::<Option<_>>()?;
        // With three entries the last one is at level 3 and translates 1 GiB.
        let pages = match entries.len() {
            3 => 1 << 18,
            4 => 1 << 9,
            5 => 1,
            _ => return None,
        };
        Some(Leaf { page: hex(page)?, pages, entry: *entries.last()? })
    };
    let lines = lines.filter(|line| !line.is_empty());
    lines.map(|line| leaf(line).ok_or_else(|| format!("what does `{line}` mean?"))).collect()
}

/// The translations in a dump.
fn parse(text: &str) -> Result<Translations, String> {
    let mut found = Translations::new();
    for Leaf { page, pages, entry } in leaves(text)? {
        let first = entry & FRAME & !(pages * PAGE - 1);
        for number in 0..pages {
            let translation =
                Translation { physical: first + number * PAGE, writable: entry & WRITABLE != 0 };
            if found.insert((page + number) * PAGE, translation).is_some() {
                return Err(format!("page {:#x} is translated again", page + number));
            }
        }
    }
    Ok(found)
}

/// The translations that a space requires, page by page, with the memory that this process has there now.
pub fn wanted(space: &Space) -> Translations {
    let cells = (0..).zip(&space.cells).filter_map(|(unit, cell)| Some((unit, (*cell)?)));
    translations(cells.map(|(unit, cell)| (space.iova(unit), cell.hva, UNIT, cell.perm)))
}

/// The translations of these mappings.
pub fn mapped(mappings: &[Mapping]) -> Translations {
    let part =
        |mapping: &Mapping| (mapping.range.start(), mapping.hva.raw(), mapping.range.length(), mapping.perm);
    translations(mappings.iter().map(part))
}

/// The translations of memory: its IOVA, host address, length and permission.
fn translations(parts: impl Iterator<Item = (u64, u64, u64, Perm)>) -> Translations {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut pages = Translations::new();
    for (iova, hva, bytes, perm) in parts {
        for offset in (0..bytes).step_by(PAGE as usize) {
            let physical = physical(&pagemap, hva + offset);
            pages.insert(iova + offset, Translation { physical, writable: perm == Perm::ReadWrite });
        }
    }
    pages
}

/// The physical address of this process's page at `address`.
pub fn physical_of(address: u64) -> u64 {
    physical(&File::open("/proc/self/pagemap").unwrap(), address)
}

fn physical(pagemap: &File, address: u64) -> u64 {
    let start = Instant::now();
    loop {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, address / PAGE * 8).unwrap();
        let entry = u64::from_ne_bytes(entry);
        // Not present, and yet there: the kernel is moving the page.
        if entry >> 62 == 1 && start.elapsed() < MOVED_WITHIN {
            sleep(Duration::from_millis(1));
            continue;
        }
        let frame = entry & ((1 << 55) - 1);
        assert!(
            entry >> 63 == 1 && frame != 0,
            "no page at {address:#x}, or none that may be seen: {entry:#x}"
        );
        return frame * PAGE;
    }
}

/// Pages that are translated but not wanted, wanted but not translated, or translated to something else.
pub fn differences(wanted: &Translations, found: &Translations) -> Vec<String> {
    let stale = found.iter().filter(|(iova, _)| !wanted.contains_key(iova));
    let stale = stale.map(|(iova, to)| format!("stale: IOVA {iova:#x} is mapped to {to:x?}"));
    let wrong = wanted.iter().filter(|(iova, to)| found.get(iova) != Some(to));
    let wrong = wrong.map(|(iova, to)| {
        format!("IOVA {iova:#x} should be mapped to {to:x?}, and is to {:x?}", found.get(iova))
    });
    stale.chain(wrong).collect()
}

/// Fails if there is a difference.
pub fn assert_same(what: &str, wanted: &Translations, found: &Translations) {
    let mut lines = differences(wanted, found);
    let pages = lines.len();
    lines.truncate(SHOWN);
    assert!(pages == 0, "{what}: {pages} pages differ in the IOMMU\n{}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "Device 0000:00:04.0 @0x10a2000\n\
        IOVA_PFN         \tPML5E             \tPML4E             \tPDPE              \tPDE               \tPTE\n\
        0x0000000000040 |\t0x0000000000000000\t0x00000000010a3003\t0x00000000010a4003\t0x00000000010a5003\t0x0000000007654003\n\
        0x0000000000041 |\t0x0000000000000000\t0x00000000010a3003\t0x00000000010a4003\t0x00000000010a5003\t0x0000000007655001\n\
        0x0000000000200 |\t0x0000000000000000\t0x00000000010a3003\t0x00000000010a4003\t0x0000000008000083\n";

    fn to(physical: u64, writable: bool) -> Translation {
        Translation { physical, writable }
    }

    #[test]
    fn a_dump_is_read_page_by_page() {
        let found = parse(DUMP).unwrap();
        assert_eq!(found.len(), 2 + 512);
        assert_eq!(found[&0x4_0000], to(0x765_4000, true));
        assert_eq!(found[&0x4_1000], to(0x765_5000, false));
        assert_eq!((found[&0x20_0000], found[&0x3f_f000]), (to(0x800_0000, true), to(0x81f_f000, true)));
        let sizes: Vec<(u64, u64)> =
            leaves(DUMP).unwrap().iter().map(|leaf| (leaf.page, leaf.pages)).collect();
        assert_eq!(sizes, [(0x40, 1), (0x41, 1), (0x200, 512)]);
        let empty: String = DUMP.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(parse(&empty), Ok(Translations::new()));
    }

    #[test]
    fn what_is_no_dump_is_not_an_empty_one() {
        let twice = format!("{DUMP}{}\n", DUMP.lines().last().unwrap());
        let short = DUMP.replace("\t0x0000000000000000\t0x00000000010a3003\t0x00000000010a4003", "");
        for text in
            ["", "DMA Remapping is not enabled on dmar0\n", "Device 0000:00:04.0 @0x0\n", &twice, &short]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_difference_is_one() {
        let wanted = Translations::from([(0, to(0x1000, true)), (0x1000, to(0x2000, false))]);
        let count =
            |found: &[(u64, Translation)]| differences(&wanted, &found.iter().copied().collect()).len();
        let [first, second] = [(0, to(0x1000, true)), (0x1000, to(0x2000, false))];
        assert_eq!(count(&[first, second]), 0);
        assert_eq!(count(&[first]), 1, "missing");
        assert_eq!(count(&[first, second, (0x2000, to(0x3000, true))]), 1, "stale");
        assert_eq!(count(&[first, (0x1000, to(0x2000, true))]), 1, "writable");
        assert_eq!(count(&[first, (0x1000, to(0x5000, false))]), 1, "elsewhere");
    }
}
