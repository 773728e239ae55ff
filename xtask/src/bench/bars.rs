//! What the project promises of its speed, held against one run.

use serde::Serialize;

use super::record::Backing;
use super::summary::Summary;

const GIB: u64 = 1 << 30;
/// Below this a guest is mapped in no time anyway.
const FROM: u64 = 4 * GIB;
/// Nanoseconds a transaction may take that has next to nothing to do.
const PURE: f64 = 20_000.0;

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    /// Of what.
    pub what: String,
    /// What was promised.
    pub promised: String,
    /// What was found: a median.
    pub found: String,
    /// Whether that is enough.
    pub reached: bool,
}

/// Every promise this run can say something about.
pub fn judge(summary: &Summary) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut bar = |what: String, promised: String, found: String, reached: bool| {
        bars.push(Bar { what, promised, found, reached });
    };
    for row in &summary.cold {
        let own = summary.engine(row.backing, row.bytes).filter(|own| std::ptr::eq(*own, row));
        let Some(row) = own.filter(|row| row.bytes >= FROM) else { continue };
        let what = format!("{}, {} GiB, {} threads", row.backing.name(), row.bytes / GIB, row.threads);
        if matches!(row.backing, Backing::Anon4k | Backing::AnonThp | Backing::MemfdThp) {
            let found = row.ratio.median;
            bar(format!("{what}: against stock"), "≥ 1.8×".into(), times(found), found >= 1.8);
        }
        let without = summary.engine(Backing::Memfd4k, row.bytes);
        if let (Backing::MemfdThp, Some(without)) = (row.backing, without) {
            let found = without.stock.median / row.fast.median;
            let what = format!("{what}: against stock without shmem huge pages");
            bar(what, "≥ 4×".into(), times(found), found >= 4.0);
        }
        let found = row.of_bare.median;
        bar(format!("{what}: of bare fault-in"), "≥ 90 %".into(), percent(found), found >= 0.9);
    }
    for row in summary.remap.iter().filter(|row| row.bytes >= FROM && row.threads == summary.machine.cpus) {
        let what =
            format!("{}, {} GiB: time to map populated memory again", row.backing.name(), row.bytes / GIB);
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
    bars
}

/// "1.87×".
pub fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}

/// "93 %".
pub fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// "3.20 µs".
pub fn micros(nanoseconds: f64) -> String {
    format!("{:.2} µs", nanoseconds / 1e3)
}
