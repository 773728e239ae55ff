//! The project's performance targets, and the comparison of one run with them.

use serde::Serialize;

use super::summary::{Row, Spread, Summary};
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_protocol::bench::native::Case;
use vfio_fast_protocol::memory::MemoryKind;

const GIB: u64 = 1 << 30;
/// The minimum guest size: smaller guests are mapped too quickly to matter.
const FROM: u64 = 4 * GIB;
/// The minimum size with iommufd: a smaller guest can be a single entry, which threads cannot share.
const FROM_BESIDE: u64 = 2 * GIB;
/// The target for mapping and unmapping huge pages through iommufd on two threads: the speed-up over stock.
const MAP_BESIDE: f64 = 1.6;
const UNMAP_BESIDE: f64 = 1.5;
/// The target against what users do without the library: fault-in by threads before one map call per region.
const OF_PREALLOC: f64 = 0.98;
/// The target for more threads than CPUs, relative to the best number of threads.
const CROWDED: f64 = 0.95;
/// The target for a transaction with little or nothing to do, in nanoseconds.
const PURE: f64 = 20_000.0;

/// A target and the result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// The quantity that was measured.
    pub what: String,
    /// The value to reach.
    pub promised: String,
    /// The median that was measured.
    pub found: String,
    /// Whether the run reached the target.
    pub reached: bool,
}

/// Judges every target that this run covers.
pub fn judge(summary: &Summary) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut bar = |what: String, promised: String, found: String, reached: bool| {
        targets.push(Target { what, promised, found, reached });
    };
    for row in &summary.cold {
        let own = summary.engine(row.memory, row.bytes).filter(|own| std::ptr::eq(*own, row));
        let Some(row) = own.filter(|row| row.bytes >= FROM) else { continue };
        let what = format!("{}, {} GiB, {} threads", row.memory.name(), row.bytes / GIB, row.threads);
        if matches!(row.memory, MemoryKind::Anon4k | MemoryKind::AnonThp | MemoryKind::MemfdThp) {
            let found = row.ratio.median;
            bar(format!("{what}: against stock"), "≥ 1.8×".into(), times(found), found >= 1.8);
        }
        let without = summary.engine(MemoryKind::Memfd4k, row.bytes);
        if let (MemoryKind::MemfdThp, Some(without)) = (row.memory, without) {
            let found = without.stock.median / row.fast.median;
            let what = format!("{what}: against stock without shmem huge pages");
            bar(what, "≥ 4×".into(), times(found), found >= 4.0);
        }
        let found = row.of_bare.median;
        bar(format!("{what}: of bare fault-in"), "≥ 90 %".into(), percent(found), found >= 0.9);
    }
    targets.extend(judge_orders(summary));
    let mut bar = |what: String, promised: String, found: String, reached: bool| {
        targets.push(Target { what, promised, found, reached });
    };
    for row in summary.remap.iter().filter(|row| row.bytes >= FROM && row.threads == summary.machine.cpus) {
        let what =
            format!("{}, {} GiB: time to map populated memory again", row.memory.name(), row.bytes / GIB);
        let found = 1.0 / row.ratio.median;
        bar(what, "≤ 105 % of stock".into(), percent(found), found <= 1.05);
    }
    for pure in summary.pure.iter().filter(|pure| pure.name.contains("told") || pure.name.contains("touched"))
    {
        bar(pure.name.clone(), "≤ 20 µs".into(), micros(pure.median), pure.median <= PURE);
    }
    for pure in summary.pure.iter().filter(|pure| pure.name.starts_with("plan, PAM")) {
        bar(pure.name.clone(), "≤ 20 µs".into(), micros(pure.median), pure.median <= PURE);
    }
    targets
}

/// Judges cold memory against the orders of calls that users have without the library, and with more threads than CPUs.
fn judge_orders(summary: &Summary) -> Vec<Target> {
    let mut targets = Vec::new();
    for row in summary.cold.iter().filter(|row| row.case == Case::Engine) {
        let (memory, size) = (row.memory.name(), gib(row.bytes));
        let mut bar = |what: &str, spread: Spread, least: f64| {
            targets.push(Target {
                what: format!("{memory}, {size}, {} threads: {what}", row.threads),
                promised: format!("≥ {least}×"),
                found: times(spread.median),
                reached: spread.median >= least,
            });
        };
        if row.of_prealloc.count > 0 && row.threads == summary.machine.cpus {
            bar("against the order of QEMU's prealloc", row.of_prealloc, OF_PREALLOC);
        }
        if row.threads > summary.machine.cpus {
            bar("against the best number of threads", row.of_best, CROWDED);
        }
    }
    targets
}

/// Judges every target for maps in L1 that this run covers.
pub fn judge_mapping(summary: &Summary, driver: Driver) -> Vec<Target> {
    let mut targets = judge_orders(summary);
    if driver == Driver::Iommufd {
        targets.extend(judge_iommufd(summary));
    }
    targets
}

/// Judges the targets for iommufd, which maps and unmaps entries concurrently.
fn judge_iommufd(summary: &Summary) -> Vec<Target> {
    let rows = [
        (&summary.cold, "cold, against one map per region", MAP_BESIDE),
        (&summary.unmap, "unmapped, against one call per region", UNMAP_BESIDE),
    ];
    let mut targets = Vec::new();
    for (rows, what, promised) in rows {
        let is_wanted = |row: &&Row| {
            let of_engine = matches!(row.case, Case::Engine | Case::UnmapEngine);
            let is_huge = matches!(row.memory, MemoryKind::AnonThp | MemoryKind::MemfdThp);
            of_engine && is_huge && row.bytes >= FROM_BESIDE && row.threads == summary.machine.cpus
        };
        for row in rows.iter().filter(is_wanted) {
            let found = row.ratio.median;
            let (memory, bytes, threads) = (row.memory.name(), row.bytes / GIB, row.threads);
            targets.push(Target {
                what: format!("{memory}, {bytes} GiB, {threads} threads: {what}"),
                promised: format!("≥ {promised}×"),
                found: times(found),
                reached: found >= promised,
            });
        }
    }
    targets
}

/// Formats bytes as "4 GiB" or "0.5 GiB".
pub fn gib(bytes: u64) -> String {
    format!("{} GiB", (bytes as f64 / GIB as f64 * 100.0).round() / 100.0)
}

/// Formats a ratio as "1.87×".
pub fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}

/// Formats a share as "93 %".
pub fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// Formats nanoseconds as "3.20 µs".
pub fn micros(nanoseconds: f64) -> String {
    format!("{:.2} µs", nanoseconds / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sample of 2 GiB with two threads.
    fn line(case: &str, memory: &str, seconds: f64) -> String {
        format!(
            "{{\"kind\":\"sample\",\"round\":0,\"case\":\"{case}\",\"memory\":\"{memory}\",\"bytes\":2147483648,\
             \"threads\":2,\"seconds\":{seconds},\"huge_bytes\":0}}\n"
        )
    }

    #[test]
    fn iommufd_is_held_against_both_targets() {
        let mut text = String::new();
        for (memory, seconds) in [("anon-4k", 9.0), ("anon-thp", 1.0), ("memfd-thp", 1.1)] {
            for (case, seconds) in
                [("stock", 1.6), ("engine", seconds), ("unmap-stock", 1.5), ("unmap-engine", seconds)]
            {
                text += &line(case, memory, seconds);
            }
            // There are no targets for the other ways to map.
            text += &line("maps-only", memory, 9.0);
        }
        let mut summary = Summary::of(&text).unwrap();
        summary.machine.cpus = 2;
        let targets = judge_iommufd(&summary);
        let found: Vec<_> = targets.iter().map(|target| (target.found.as_str(), target.reached)).collect();
        assert_eq!(found, [("1.60×", true), ("1.45×", false), ("1.50×", true), ("1.36×", false)]);
        assert_eq!(targets[3].what, "memfd-thp, 2 GiB, 2 threads: unmapped, against one call per region");
    }

    #[test]
    fn fast_is_held_against_prealloc_and_more_threads_against_the_best() {
        let found = |prealloc, crowded| {
            let mut text = line("engine", "anon-4k", 1.0) + &line("prealloc", "anon-4k", prealloc);
            text += &line("engine", "anon-4k", crowded).replace("\"threads\":2", "\"threads\":8");
            let mut summary = Summary::of(&text).unwrap();
            summary.machine.cpus = 2;
            let targets = judge_mapping(&summary, Driver::Type1);
            targets.iter().map(|target| target.reached).collect::<Vec<_>>()
        };
        assert_eq!(found(0.98, 1.05), [true, true]);
        assert_eq!(found(0.97, 1.05), [false, true]);
        assert_eq!(found(0.98, 1.06), [true, false]);
    }
}
