//! Exact regions through raw calls and through the library.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::summary::Spread;
use crate::table::{Table, ratio};
use crate::targets::{Target, micros, times};
use vfio_fast_protocol::bench::calls::{Driver, Exact, Record, Sweep, Toggle};

pub const TITLE: &str = "Exact regions: median per region [least – most], within a round";
/// The targets for one map or unmap, and for the unmap of many regions by one call.
const ONE_BY_ONE: f64 = 1.5;
const AT_ONCE: f64 = 1.1;

/// The results for regions of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The name of the IOMMU.
    host: String,
    driver: Driver,
    sweep: Sweep,
    bytes: u64,
    regions: u64,
    /// Calls of the kernel: raw, and through the library.
    calls: [u64; 2],
    map: Cost,
    unmap: Cost,
}

/// What one region costs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// Nanoseconds per region by raw calls.
    raw: Spread,
    /// Nanoseconds per region through the library.
    library: Spread,
    /// The library's time divided by that of raw calls in the same round.
    ratio: Spread,
}

impl Cost {
    fn of(samples: &[&Exact], seconds: fn(Toggle) -> f64) -> Self {
        let each = |of: fn(&Exact) -> Toggle| {
            Spread::of(samples.iter().map(|sample| seconds(of(sample)) * 1e9 / sample.regions as f64))
        };
        let ratio = samples.iter().map(|sample| seconds(sample.library) / seconds(sample.raw));
        Self { raw: each(|s| s.raw), library: each(|s| s.library), ratio: Spread::of(ratio) }
    }

    fn cells(self) -> [String; 3] {
        [micros(self.raw.median), micros(self.library.median), ratio(self.ratio)]
    }
}

/// Combines the records of exact regions into rows.
pub fn rows(host: &str, records: &[Record]) -> Vec<Row> {
    let mut cases = BTreeMap::<_, Vec<&Exact>>::new();
    for record in records {
        if let Record::Exact(exact) = record {
            cases.entry((exact.driver, exact.sweep, exact.bytes, exact.regions)).or_default().push(exact);
        }
    }
    let row = |((driver, sweep, bytes, regions), samples): (_, Vec<&Exact>)| Row {
        host: host.to_owned(),
        driver,
        sweep,
        bytes,
        regions,
        calls: [samples[0].raw.calls, samples[0].library.calls],
        map: Cost::of(&samples, |toggle| toggle.map_seconds),
        unmap: Cost::of(&samples, |toggle| toggle.unmap_seconds),
    };
    cases.into_iter().map(row).collect()
}

/// Judges every target that these rows cover.
pub fn judge(rows: &[Row]) -> Vec<Target> {
    let mut targets = Vec::new();
    for row in rows {
        let (host, driver, kib, regions) = (&row.host, row.driver, row.bytes >> 10, row.regions);
        let mut bar = |what: &str, found: f64, most: f64| {
            targets.push(Target {
                what: format!(
                    "{host}, {driver}, {what} of {regions} regions of {kib} KiB, {}",
                    row.sweep.name()
                ),
                promised: format!("≤ {most}×"),
                found: times(found),
                reached: found <= most,
            });
        };
        if row.sweep == Sweep::AtOnce {
            bar("unmap", row.unmap.ratio.median, AT_ONCE);
            continue;
        }
        bar("map", row.map.ratio.median, ONE_BY_ONE);
        bar("unmap", row.unmap.ratio.median, ONE_BY_ONE);
    }
    targets
}

pub fn table(rows: &[Row]) -> Table {
    let cells = |row: &Row| {
        let which = [
            row.host.clone(),
            row.driver.to_string(),
            format!("{} of {} KiB, {}", row.regions, row.bytes >> 10, row.sweep.name()),
            format!("{} / {}", row.calls[0], row.calls[1]),
        ];
        which.into_iter().chain(row.map.cells()).chain(row.unmap.cells()).collect()
    };
    Table {
        head: vec![
            "host",
            "driver",
            "regions",
            "calls",
            "map, raw",
            "library",
            "× raw",
            "unmap, raw",
            "library",
            "× raw",
        ],
        rows: rows.iter().map(cells).collect(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn exact(sweep: Sweep, map: f64, unmap: f64) -> Record {
        let toggle = |map_seconds, unmap_seconds| Toggle { calls: 200, map_seconds, unmap_seconds };
        let (raw, library) = (toggle(1.0, 2.0), toggle(map, 2.0 * unmap));
        Record::Exact(Exact {
            round: 0,
            driver: Driver::Type1,
            sweep,
            bytes: 4096,
            regions: 100,
            raw,
            library,
        })
    }

    /// The records of a correct run.
    pub fn records() -> Vec<Record> {
        vec![exact(Sweep::OneByOne, 1.5, 1.5), exact(Sweep::AtOnce, 9.0, 1.1)]
    }

    #[test]
    fn each_promise_can_fail() {
        let reached = |records: &[Record]| -> Vec<bool> {
            judge(&rows("x", records)).iter().map(|target| target.reached).collect()
        };
        assert_eq!(reached(&records()), [true; 3]);
        assert_eq!(reached(&[exact(Sweep::OneByOne, 1.6, 1.5)]), [false, true]);
        assert_eq!(reached(&[exact(Sweep::OneByOne, 1.5, 1.6)]), [true, false]);
        assert_eq!(reached(&[exact(Sweep::AtOnce, 1.0, 1.2)]), [false]);
    }

    #[test]
    fn costs_are_per_region() {
        let row = &rows("x", &records())[0];
        assert_eq!((row.map.raw.median, row.map.library.median, row.map.ratio.median), (1e7, 1.5e7, 1.5));
        assert_eq!(row.calls, [200, 200]);
    }
}
