//! Converts C structs to engine values and back. Rejects fields with unknown values.

use vfio_fast_engine::addr::{HostVa, Iova, IovaRange, Superpages};
use vfio_fast_engine::limits::MemlockScope;
use vfio_fast_engine::log::Level;
use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::stats::Stats;
use vfio_fast_engine::{CpuSet, Descriptor, DiscardMode, Info, Outcome, Phase, Progress};

use crate::abi::{
    VFIO_FAST_INFO_IN_TRANSACTION, VFIO_FAST_INFO_MEMLOCK_PER_USER, VFIO_FAST_INFO_PARALLEL,
    VFIO_FAST_INFO_POISONED, VFIO_FAST_IOVA_LIST, VFIO_FAST_JOB_CANCELLED, VFIO_FAST_JOB_DONE,
    VFIO_FAST_JOB_FAILED, VFIO_FAST_JOB_NONE, VFIO_FAST_JOB_RUNNING, VFIO_FAST_LOG_DEBUG,
    VFIO_FAST_LOG_ERROR, VFIO_FAST_LOG_INFO, VFIO_FAST_LOG_WARN, VFIO_FAST_MEMORY_SHARED,
    VFIO_FAST_REGION_DEVICE, VFIO_FAST_REGION_EXACT, VFIO_FAST_REGION_FD, VFIO_FAST_REGION_JOIN,
    VFIO_FAST_REGION_WRITE, VFIO_FAST_SUPERPAGES_COARSE, VFIO_FAST_SUPERPAGES_FINE,
    VFIO_FAST_SUPERPAGES_UNKNOWN, vfio_fast_dirty, vfio_fast_entry, vfio_fast_info, vfio_fast_iova_range,
    vfio_fast_memory, vfio_fast_outcome, vfio_fast_pages, vfio_fast_progress, vfio_fast_range,
    vfio_fast_region, vfio_fast_stats,
};
use crate::failure::{Failure, Result};

const REGION_FLAGS: u32 = VFIO_FAST_REGION_WRITE
    | VFIO_FAST_REGION_DEVICE
    | VFIO_FAST_REGION_EXACT
    | VFIO_FAST_REGION_FD
    | VFIO_FAST_REGION_JOIN;

/// The region that a caller maps. `hva` is `region.hva`, for which the caller of host_va() vouches.
pub(crate) fn region(region: &vfio_fast_region, hva: HostVa) -> Result<Region> {
    known("struct vfio_fast_region: flags", region.flags, REGION_FLAGS)?;
    let has = |flag| region.flags & flag != 0;
    Ok(Region {
        range: iova_range(region.iova, region.length)?,
        hva,
        perm: perm(region.flags),
        kind: if has(VFIO_FAST_REGION_DEVICE) { Kind::Device } else { Kind::Ram },
        backing: Backing(region.backing),
        join: has(VFIO_FAST_REGION_JOIN),
        exact: has(VFIO_FAST_REGION_EXACT),
    })
}

/// The file or device that a caller names for the region's memory. `fd` is `region.fd`.
pub(crate) fn object<'a>(region: &vfio_fast_region, fd: Descriptor<'a>) -> Option<ObjectRef<'a>> {
    let has = |flag| region.flags & flag != 0;
    let kind = if has(VFIO_FAST_REGION_DEVICE) {
        ObjectKind::Bar { region_index: region.region_index }
    } else {
        ObjectKind::Memory
    };
    has(VFIO_FAST_REGION_FD).then_some(ObjectRef { fd, kind, offset: region.fd_offset })
}

/// A caller's set of CPUs.
pub(crate) fn cpu_set(bytes: &[u8]) -> Result<CpuSet> {
    CpuSet::from_bytes(bytes).ok_or_else(|| {
        Failure::check(libc::EINVAL, "struct vfio_fast_config: cpu_set contains no CPU".to_owned())
    })
}

/// How to discard memory.
pub(crate) fn discard_mode(memory: &vfio_fast_memory) -> Result<DiscardMode> {
    known("struct vfio_fast_memory: flags", memory.flags, VFIO_FAST_MEMORY_SHARED)?;
    let shared = memory.flags & VFIO_FAST_MEMORY_SHARED != 0;
    Ok(if shared { DiscardMode::Shared } else { DiscardMode::Private })
}

/// The failure for a range of memory that does not consist of whole pages.
pub(crate) fn no_pages(memory: &vfio_fast_memory) -> Failure {
    let vfio_fast_memory { hva, length, .. } = *memory;
    let text = format!(
        "Giving memory back at host address {hva:#x} failed: {length:#x} bytes there are not one or more whole pages"
    );
    Failure { hva, length, ..Failure::check(libc::EINVAL, text) }
}

/// The permission of an array of pages, and whether to join them with other regions.
pub(crate) fn pages_flags(pages: &vfio_fast_pages) -> Result<(Perm, bool)> {
    let vfio_fast_pages { flags, .. } = *pages;
    known("struct vfio_fast_pages: flags", flags, VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_JOIN)?;
    Ok((perm(flags), flags & VFIO_FAST_REGION_JOIN != 0))
}

fn perm(flags: u32) -> Perm {
    if flags & VFIO_FAST_REGION_WRITE != 0 { Perm::ReadWrite } else { Perm::Read }
}

/// The range that a caller passes.
pub(crate) fn range(range: &vfio_fast_range) -> Result<IovaRange> {
    known("struct vfio_fast_range: flags", range.flags, 0)?;
    iova_range(range.iova, range.length)
}

/// The range of a dirty bitmap; `page` is the size of the smallest IOMMU page.
pub(crate) fn dirty_range(dirty: &vfio_fast_dirty, page: u64) -> Result<IovaRange> {
    known("struct vfio_fast_dirty: flags", dirty.flags, 0)?;
    if dirty.page_size != page {
        let asked = dirty.page_size;
        let text = format!(
            "struct vfio_fast_dirty: page_size is {asked}, but the smallest page of the IOMMU has {page} bytes"
        );
        return Err(Failure::check(libc::EINVAL, text));
    }
    iova_range(dirty.iova, dirty.length)
}

/// A kernel entry for its list.
pub(crate) fn entry_out(range: IovaRange, perm: Perm) -> vfio_fast_entry {
    let flags = if perm.is_writable() { VFIO_FAST_REGION_WRITE } else { 0 };
    vfio_fast_entry { iova: range.start(), length: range.length(), flags: u64::from(flags) }
}

/// A caller's list of kernel entries, all of which are checked before anything is done.
pub(crate) fn entries_in(entries: &[vfio_fast_entry]) -> Result<Vec<(IovaRange, Perm)>> {
    let mut checked = Vec::new();
    let count = entries.len();
    let text = || format!("entries: a list of {count} entries");
    checked.try_reserve_exact(count).map_err(|_| Failure::check(libc::ENOMEM, text()))?;
    for entry in entries {
        checked.push(entry_in(entry)?);
    }
    Ok(checked)
}

fn entry_in(entry: &vfio_fast_entry) -> Result<(IovaRange, Perm)> {
    let unknown = entry.flags & !u64::from(VFIO_FAST_REGION_WRITE);
    if unknown != 0 {
        let text = format!("struct vfio_fast_entry: flags has the unknown bits {unknown:#x}");
        return Err(Failure::check(libc::EOPNOTSUPP, text));
    }
    Ok((iova_range(entry.iova, entry.length)?, perm(entry.flags as u32)))
}

/// Fails if `flags` has a bit that is not in `all`.
pub(crate) fn known(field: &str, flags: u32, all: u32) -> Result<()> {
    if flags & !all != 0 { Err(Failure::unknown(field, flags & !all)) } else { Ok(()) }
}

pub(crate) fn iova_range(iova: u64, length: u64) -> Result<IovaRange> {
    IovaRange::new(Iova(iova), length).ok_or_else(|| {
        let text = if length == 0 {
            format!("Checking IOVA {iova:#x} failed: its length is 0")
        } else {
            format!(
                "Checking IOVA {iova:#x} failed: its length of {length:#x} bytes reaches past the end of the 64-bit \
                 address space"
            )
        };
        Failure { iova, length, ..Failure::check(libc::EINVAL, text) }
    })
}

/// The VFIO_FAST_LOG_* of a message.
pub(crate) fn level(level: Level) -> u32 {
    match level {
        Level::Error => VFIO_FAST_LOG_ERROR,
        Level::Warn => VFIO_FAST_LOG_WARN,
        Level::Info => VFIO_FAST_LOG_INFO,
        Level::Debug => VFIO_FAST_LOG_DEBUG,
    }
}

/// The outcome of a commit.
pub(crate) fn outcome(outcome: &Outcome) -> vfio_fast_outcome {
    let executed = &outcome.executed;
    // A caller may lose peer-to-peer access to a BAR, but not RAM.
    let declared_ram = executed.refusals.iter().find(|refusal| refusal.declared == Kind::Ram);
    let first = declared_ram.or(executed.refusals.first());
    vfio_fast_outcome {
        size: 0,
        device_failures: count(executed.refusals.len() as u64),
        device_iova: first.map_or(0, |refusal| refusal.region.start()),
        device_length: first.map_or(0, |refusal| refusal.region.length()),
        // The entry that failed is a part of the region, which is contiguous in host memory.
        device_hva: first.map_or(0, |refusal| {
            let offset = refusal.entry.range.start() - refusal.region.start();
            refusal.entry.hva.raw().wrapping_sub(offset)
        }),
        device_error: first.map_or(0, |refusal| refusal.errno.0.saturating_neg()),
        map_calls: count(executed.map_calls),
        unmap_calls: count(executed.unmap_calls),
        kept_entries: count(outcome.kept_entries),
        map_bytes: executed.map_bytes,
        unmap_bytes: executed.unmap_bytes,
        kept_bytes: outcome.kept_bytes,
        ns: u64::try_from(outcome.duration.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// A count as a 32-bit field. No host has the memory for 2^32 entries.
fn count(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The statistics. The names come from the engine's declaration, so a field that one side lacks does not compile.
pub(crate) fn stats(stats: &Stats) -> vfio_fast_stats {
    macro_rules! from_each {
        ($($name:ident)+) => { vfio_fast_stats { size: 0, reserved: 0, $($name: stats.$name.number()),+ } };
    }
    vfio_fast_engine::with_each_stat!(from_each)
}

/// A value that C represents as a number.
trait Number {
    fn number(self) -> u64;
}

impl Number for u64 {
    fn number(self) -> u64 {
        self
    }
}

impl Number for Superpages {
    fn number(self) -> u64 {
        superpages(self).into()
    }
}

/// The VFIO_FAST_SUPERPAGES_* of an IOMMU.
fn superpages(superpages: Superpages) -> u32 {
    match superpages {
        Superpages::Unknown => VFIO_FAST_SUPERPAGES_UNKNOWN,
        Superpages::Coarse => VFIO_FAST_SUPERPAGES_COARSE,
        Superpages::Fine => VFIO_FAST_SUPERPAGES_FINE,
    }
}

/// The properties of a handle; `backend` is VFIO_FAST_BACKEND_*.
pub(crate) fn progress(progress: &Progress) -> vfio_fast_progress {
    let state = match progress.phase {
        Phase::None => VFIO_FAST_JOB_NONE,
        Phase::Running => VFIO_FAST_JOB_RUNNING,
        Phase::Done => VFIO_FAST_JOB_DONE,
        Phase::Failed => VFIO_FAST_JOB_FAILED,
        Phase::Cancelled => VFIO_FAST_JOB_CANCELLED,
    };
    let &Progress { wanted_bytes, present_bytes, mapped_bytes, threads, elapsed_ns, left_ns, .. } = progress;
    let left_ns = left_ns.unwrap_or(u64::MAX);
    vfio_fast_progress {
        size: 0,
        state,
        wanted_bytes,
        present_bytes,
        mapped_bytes,
        threads,
        elapsed_ns,
        left_ns,
    }
}

pub(crate) fn info(info: &Info, backend: u32) -> vfio_fast_info {
    let flag = |set, flag| if set { flag } else { 0 };
    let ranges = &info.limits.iova_ranges;
    vfio_fast_info {
        size: 0,
        flags: flag(info.poisoned, VFIO_FAST_INFO_POISONED)
            | flag(info.in_transaction, VFIO_FAST_INFO_IN_TRANSACTION)
            | flag(info.parallel, VFIO_FAST_INFO_PARALLEL)
            | flag(info.memlock.scope == MemlockScope::User, VFIO_FAST_INFO_MEMLOCK_PER_USER),
        backend,
        threads: count(info.threads as u64),
        iova_pgsizes: info.limits.page_sizes.bitmap(),
        entry_size: info.entry_size,
        dma_avail: info.limits.entries.unwrap_or(u64::MAX),
        iova_first: ranges.first().map_or(0, |range| range.start()),
        iova_last: ranges.last().map_or(u64::MAX, |range| range.last()),
        iova_ranges: ranges.len() as u64,
        memlock_limit: info.memlock.limit.unwrap_or(u64::MAX),
        memlock_used: info.memlock.locked,
        max_unmap_bytes: info.batch.bytes,
        max_unmap_entries: count(info.batch.entries),
        superpages: superpages(info.limits.page_sizes.superpages()),
        iova_list: iova_list(ranges),
        iova_ranges_left_out: ranges.len().saturating_sub(VFIO_FAST_IOVA_LIST as usize) as u64,
        leftover_entries: info.leftover_entries,
        missing_bytes: info.missing_bytes,
    }
}

/// The first ranges, then zeros.
fn iova_list(ranges: &[IovaRange]) -> [vfio_fast_iova_range; VFIO_FAST_IOVA_LIST as usize] {
    let mut list = [vfio_fast_iova_range::default(); VFIO_FAST_IOVA_LIST as usize];
    for (element, range) in list.iter_mut().zip(ranges) {
        *element = vfio_fast_iova_range { first: range.start(), last: range.last() };
    }
    list
}

/// What an IOMMU with addresses of `bits` bits, more than 32, translates on a PC: all but the addresses of interrupts.
pub(crate) fn around_interrupts(bits: u32) -> Vec<IovaRange> {
    let last = u64::MAX.checked_shr(u64::BITS.saturating_sub(bits)).unwrap_or(0);
    let ranges = [IovaRange::from_bounds(0, 0xfedf_ffff), IovaRange::from_bounds(0xfef0_0000, last)];
    ranges.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use vfio_fast_engine::Errno;
    use vfio_fast_engine::execute::{Executed, Refusal};
    use vfio_fast_engine::reconcile::table::{Entry, Generation};

    use super::*;

    #[test]
    fn ranges_are_listed_as_far_as_they_fit() {
        let ranges = |count: u64| -> Vec<IovaRange> {
            (0..count).filter_map(|n| IovaRange::from_bounds(n << 20, (n << 20) + 0xfff)).collect()
        };
        for (count, listed) in [(0, 0), (1, 1), (32, 32), (33, 32), (100, 32)] {
            let list = iova_list(&ranges(count));
            let expected = |n: u64| {
                let first = n << 20;
                if n < listed {
                    vfio_fast_iova_range { first, last: first + 0xfff }
                } else {
                    Default::default()
                }
            };
            assert_eq!(list.to_vec(), (0..32).map(expected).collect::<Vec<_>>());
        }
        assert_eq!(around_interrupts(64).last().map(|range| range.last()), Some(u64::MAX));
        assert_eq!(around_interrupts(39).last().map(|range| range.last()), Some(0x7f_ffff_ffff));
    }

    #[test]
    #[allow(unsafe_code)]
    fn flags_of_pages_say_what_they_say() {
        // SAFETY: all fields of the struct may be zero.
        let zeros: vfio_fast_pages = unsafe { std::mem::zeroed() };
        let of = |flags| pages_flags(&vfio_fast_pages { flags, ..zeros });
        let (write, join) = (VFIO_FAST_REGION_WRITE, VFIO_FAST_REGION_JOIN);
        assert_eq!(of(0).unwrap(), (Perm::Read, false));
        assert_eq!(of(write).unwrap(), (Perm::ReadWrite, false));
        assert_eq!(of(join).unwrap(), (Perm::Read, true));
        assert_eq!(of(write | join).unwrap(), (Perm::ReadWrite, true));
        assert_eq!(of(VFIO_FAST_REGION_EXACT).unwrap_err().errno, libc::EOPNOTSUPP);
    }

    #[test]
    fn superpages_have_the_numbers_of_the_header() {
        let all = [Superpages::Unknown, Superpages::Coarse, Superpages::Fine];
        let numbers = [VFIO_FAST_SUPERPAGES_UNKNOWN, VFIO_FAST_SUPERPAGES_COARSE, VFIO_FAST_SUPERPAGES_FINE];
        assert_eq!(all.map(superpages), numbers);
        assert_eq!(all.map(Number::number), numbers.map(u64::from));
    }

    #[test]
    #[allow(unsafe_code)]
    fn memory_declared_as_ram_is_reported_before_bars() {
        let at = |start: u64, declared| {
            let region = IovaRange::from_bounds(start, start + 0xfff).unwrap();
            // SAFETY: nothing accesses memory at this address, because no region is declared with it.
            let hva = unsafe { vfio_fast_engine::host_va(start) };
            let (perm, kind) = (Perm::Read, Kind::Device);
            let entry =
                Entry { range: region, hva, perm, kind, backing: Backing(1), generation: Generation::SHARED };
            Refusal { region, declared, entry, errno: Errno::EFAULT }
        };
        let reported = |refusals: &[Refusal]| {
            let executed = Executed { refusals: refusals.to_vec(), ..Executed::default() };
            let outcome = outcome(&Outcome { executed, ..Outcome::default() });
            (outcome.device_failures, outcome.device_iova)
        };
        let (bar, ram) = (at(0x1000, Kind::Device), at(0x5000, Kind::Ram));
        assert_eq!(reported(&[bar, at(0x3000, Kind::Device)]), (2, 0x1000));
        assert_eq!(reported(&[bar, ram]), (2, 0x5000));
        assert_eq!(reported(&[ram, bar]), (2, 0x5000));
        assert_eq!(reported(&[]), (0, 0));
    }

    /// QEMU copies the statistics in the order of the struct, and its schema has them with dashes. Several patches of a
    /// series may add to it.
    #[test]
    fn the_query_of_qemu_has_every_statistic() {
        macro_rules! names {
            ($($name:ident)+) => { [$(stringify!($name)),+] };
        }
        let names = vfio_fast_engine::with_each_stat!(names);
        let inside = |folder: &Path| {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths
        };
        let every_series = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-patches");
        let every_series: Vec<PathBuf> =
            inside(&every_series).into_iter().filter(|path| path.is_dir()).collect();
        assert!(!every_series.is_empty());
        for series in every_series {
            let patches =
                inside(&series).into_iter().filter(|path| path.extension() == Some("patch".as_ref()));
            let text: String = patches.map(|patch| fs::read_to_string(patch).unwrap()).collect();
            let copied = text.lines().filter_map(|line| line.strip_prefix("+    STAT(")?.strip_suffix(");"));
            assert_eq!(copied.collect::<Vec<_>>(), names, "{}", series.display());
            let members = text.lines().filter_map(|line| line.strip_prefix("+      '")?.split_once("': '"));
            let members = members.map(|(member, _)| member.replace('-', "_"));
            let described = members.filter(|member| names.contains(&member.as_str()));
            assert_eq!(described.collect::<Vec<_>>(), names, "{}", series.display());
        }
    }
}
