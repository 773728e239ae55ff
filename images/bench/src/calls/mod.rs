//! `cargo xtask bench --calls`: maps exact regions and arrays of pages, and unmaps a guest of 1 TiB in few and in many
//! calls, in L1 (see [`vfio_fast_e2e`]) under VT-d and under AMD-Vi. L0 counts the IOTLB invalidations that L1's kernel requests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

mod exact;

use super::nested::{About, Lab};
use super::summary::Spread;
use super::table::{Section, Table, promises};
use super::targets::{Target, percent, times};
use vfio_fast_e2e::ScenarioSpec;
use vfio_fast_protocol::bench::calls::{self as cases, Driver, Policy, Record, Shape, Unmap};
use vfio_fast_protocol::host::Host;
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::scenarios::map_bench;

const GIB: u64 = 1 << 30;
/// The name of the backends in the report.
const PINS: &str = "type1 and iommufd on an emulated VT-d and AMD-Vi";
/// Memory of L1: the file, the page tables of 1 TiB, and the bookkeeping of 16384 separate calls.
const MEMORY_MIB: u64 = 3072;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// GiB mapped in pages of 2 MiB.
    huge: u64,
    /// GiB mapped in pages of 4 KiB.
    small: u64,
    /// Pages of each array.
    pages: u64,
    /// Exact regions that are mapped and unmapped one by one.
    exact: u64,
    /// Exact regions that are unmapped at once.
    at_once: &'static [u64],
    /// Rounds per case.
    rounds: u32,
}

impl Wanted {
    /// Fails before anything is measured if L1 does not fit into this machine's memory.
    pub fn new(quick: bool, rounds: u32) -> Result<Self> {
        ensure!(rounds > 0, "Without rounds nothing is measured");
        let wanted = if quick {
            Self { huge: 64, small: 2, pages: 2048, exact: 1000, at_once: &[4096], rounds }
        } else {
            Self { huge: 1024, small: 8, pages: 16384, exact: 10_000, at_once: &[16384, 262_144], rounds }
        };
        wanted.plans().iter().try_for_each(vfio_fast_e2e::require_memory)?;
        Ok(wanted)
    }

    /// One boot of L1 under each IOMMU.
    fn plans(&self) -> Vec<ScenarioSpec> {
        let machines = Host::X86.into_iter().filter(|machine| machine.shows_invalidations());
        let plan = |machine| {
            let arguments = [
                ("--rounds", u64::from(self.rounds)),
                ("--huge", self.huge),
                ("--small", self.small),
                ("--array", self.pages),
                ("--exact", self.exact),
            ];
            let mut bench = vec!["calls".to_owned(), "--drivers".to_owned(), "type1,iommufd".to_owned()];
            bench
                .extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]));
            let at_once: Vec<String> = self.at_once.iter().map(u64::to_string).collect();
            bench.extend(["--at-once".to_owned(), at_once.join(",")]);
            // A generous multiple of the time that L1 needs.
            map_bench::spec(
                machine,
                Container::Iommufd,
                MEMORY_MIB,
                bench,
                Duration::from_secs(600 + 300 * u64::from(self.rounds)),
            )
        };
        machines.map(plan).collect()
    }
}

/// The results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub about: About,
    /// Exact regions, through raw calls and through the library.
    pub exact: Vec<exact::Row>,
    /// Arrays mapped page by page and in one call.
    pub arrays: Vec<ArrayRow>,
    /// Guests unmapped in one call, in bounded calls and page by page.
    pub unmaps: Vec<UnmapRow>,
    /// The targets that this run can judge.
    pub targets: Vec<Target>,
}

/// The results for arrays of one shape.
#[derive(Clone, Debug, Serialize)]
pub struct ArrayRow {
    /// The name of the IOMMU.
    host: String,
    driver: Driver,
    shape: Shape,
    pages: u64,
    /// Calls page by page, and as an array.
    calls: [u64; 2],
    /// Seconds to map and unmap page by page, and as an array.
    seconds: [Spread; 2],
    /// Speed-up of the array for mapping, unmapping, and both.
    faster: [Spread; 3],
}

/// The results for a guest unmapped under one policy.
#[derive(Clone, Debug, Serialize)]
pub struct UnmapRow {
    /// The name of the IOMMU.
    host: String,
    page: u64,
    bytes: u64,
    policy: Policy,
    calls: u64,
    /// Milliseconds per GiB.
    ms_per_gib: Spread,
    /// The longest call's share of the total time.
    longest: Spread,
    /// Time per byte, relative to a single call in the same round.
    against_one: Spread,
    /// Invalidations per GiB.
    invalidations: Spread,
}

/// Measures. The inner result reports a failure; the summary has what was measured before it.
pub fn run(wanted: &Wanted, folder: &Path) -> Result<(Summary, Result<()>)> {
    let plans = wanted.plans();
    let lab = Lab::prepare(&plans, folder, PINS)?;
    let booted = lab.boot(&plans);
    booted.outcome?;
    let mut wrong = Vec::new();
    let (mut exact, mut arrays, mut unmaps) = (Vec::new(), Vec::new(), Vec::new());
    for (verdict, plan) in booted.verdicts.iter().zip(&plans) {
        wrong.extend(verdict.problems());
        let text = fs::read_to_string(verdict.folder.join("calls.log"))
            .with_context(|| format!("Nothing was measured: {}", verdict.problems().join("\n")))?;
        let invalidated = Invalidated::read(&verdict.folder)?;
        let host = plan.host.to_string();
        let (of_arrays, of_unmaps) = rows(&host, &text, &invalidated)?;
        if (of_arrays.len(), of_unmaps.len()) != (2 * Shape::ALL.len(), 2 * Policy::ALL.len()) {
            wrong.push(format!("{host}: {} and {} cases were measured", of_arrays.len(), of_unmaps.len()));
        }
        let of_exact = exact::rows(&host, &records(&text)?);
        if of_exact.len() != 2 * (2 + wanted.at_once.len()) {
            wrong.push(format!("{host}: {} cases of exact regions were measured", of_exact.len()));
        }
        exact.extend(of_exact);
        arrays.extend(of_arrays);
        unmaps.extend(of_unmaps);
    }
    let mut targets = exact::judge(&exact);
    targets.extend(judge(&arrays, &unmaps));
    let about = lab.about(Spread::of([booted.others]));
    let summary = Summary { about, exact, arrays, unmaps, targets };
    let counted = if wrong.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(wrong.join("\n"))) };
    Ok((summary, counted))
}

/// The number of invalidations that L0 logged between two steps of L1.
#[derive(Debug, Default)]
struct Invalidated {
    steps: Vec<(String, u64)>,
    trace: Vec<u8>,
}

impl Invalidated {
    fn read(folder: &Path) -> Result<Self> {
        let steps = fs::read_to_string(folder.join(vfio_fast_e2e::STEPS))?;
        let steps = steps.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let trace = fs::read(vfio_fast_e2e::trace(folder)).context("L0 traced nothing")?;
        Ok(Self { steps, trace })
    }

    /// Invalidations between the start and the end of occurrence `nth` (from 0) of `what`.
    fn during(&self, what: &str, nth: usize) -> Option<u64> {
        let at = |end: &str| {
            let name = format!("{what}: {end}");
            self.steps.iter().filter(|(step, _)| *step == name).nth(nth).map(|(_, bytes)| *bytes as usize)
        };
        let part = self.trace.get(at("unmap")?..at("unmapped")?)?;
        Some(part.iter().filter(|byte| **byte == b'\n').count() as u64)
    }
}

fn records(text: &str) -> Result<Vec<Record>> {
    let record = |line| serde_json::from_str(line).with_context(|| format!("Not a record: {line}"));
    text.lines().map(record).collect()
}

/// Combines the records of arrays and guests into rows.
fn rows(host: &str, text: &str, invalidated: &Invalidated) -> Result<(Vec<ArrayRow>, Vec<UnmapRow>)> {
    let mut arrays = BTreeMap::<_, Vec<cases::Array>>::new();
    let mut unmaps = BTreeMap::<_, Vec<Unmap>>::new();
    for record in records(text)? {
        match record {
            Record::Array(array) => arrays.entry((array.driver, array.shape)).or_default().push(array),
            Record::Unmap(unmap) => unmaps.entry((unmap.page, unmap.policy)).or_default().push(unmap),
            Record::Exact(_) => {}
        }
    }
    let arrays = arrays.into_iter().map(|((driver, shape), samples)| {
        let spread = |of: &dyn Fn(&cases::Array) -> f64| Spread::of(samples.iter().map(of));
        let both = |toggle: cases::Toggle| toggle.map_seconds + toggle.unmap_seconds;
        ArrayRow {
            host: host.to_owned(),
            driver,
            shape,
            pages: samples[0].pages,
            calls: [samples[0].page_by_page.calls, samples[0].array.calls],
            seconds: [spread(&|s| both(s.page_by_page)), spread(&|s| both(s.array))],
            faster: [
                spread(&|s| s.page_by_page.map_seconds / s.array.map_seconds),
                spread(&|s| s.page_by_page.unmap_seconds / s.array.unmap_seconds),
                spread(&|s| both(s.page_by_page) / both(s.array)),
            ],
        }
    });
    let per_gib = |unmap: &Unmap| unmap.seconds / unmap.bytes as f64 * GIB as f64;
    let rows = unmaps.iter().map(|((page, policy), samples)| {
        let one_call = unmaps.get(&(*page, Policy::OneCall));
        let against_one = samples.iter().filter_map(|unmap| {
            let one = one_call?.iter().find(|one| one.round == unmap.round)?;
            Some(per_gib(unmap) / per_gib(one))
        });
        let invalidations = samples.iter().enumerate().filter_map(|(nth, unmap)| {
            let what = format!("{} GiB in pages of {} KiB, {}", unmap.bytes / GIB, page >> 10, policy.name());
            Some(invalidated.during(&what, nth)? as f64 / (unmap.bytes / GIB) as f64)
        });
        UnmapRow {
            host: host.to_owned(),
            page: *page,
            bytes: samples[0].bytes,
            policy: *policy,
            calls: samples[0].calls,
            ms_per_gib: Spread::of(samples.iter().map(|unmap| per_gib(unmap) * 1e3)),
            longest: Spread::of(samples.iter().map(|unmap| unmap.longest_seconds / unmap.seconds)),
            against_one: Spread::of(against_one),
            invalidations: Spread::of(invalidations),
        }
    });
    Ok((arrays.collect(), rows.collect()))
}

/// Judges every target that this run covers.
fn judge(arrays: &[ArrayRow], unmaps: &[UnmapRow]) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut bar = |what: String, promised: &str, found: String, reached: bool| {
        targets.push(Target { what, promised: promised.into(), found, reached });
    };
    for row in arrays.iter().filter(|row| row.shape == Shape::Row) {
        let what = format!("{}, {:?}, pages in a row", row.host, row.driver);
        let fewer = row.calls[0] as f64 / row.calls[1] as f64;
        bar(format!("{what}: fewer calls"), "≥ 20×", times(fewer), fewer >= 20.0);
        let faster = row.faster[2].median;
        bar(format!("{what}: faster than page by page"), "≥ 5×", times(faster), faster >= 5.0);
    }
    for row in arrays.iter().filter(|row| row.shape == Shape::Random) {
        let what = format!("{}, {:?}, random pages: against page by page", row.host, row.driver);
        let slower = 1.0 / row.faster[2].median;
        bar(what, "≤ 1.1×", times(slower), slower <= 1.1);
    }
    // In a small guest the longest of a few calls is always a large share.
    let large = |row: &&UnmapRow| row.policy == Policy::Bounded && row.bytes >= 1024 * GIB;
    for row in unmaps.iter().filter(large) {
        let what = format!("{}, 1 TiB in pages of {} KiB", row.host, row.page >> 10);
        let longest = row.longest.median;
        bar(format!("{what}: the longest call"), "≤ 1 %", tenths(longest), longest <= 0.01);
    }
    for row in unmaps.iter().filter(|row| row.policy == Policy::Bounded) {
        let what = format!("{}, {} GiB in pages of {} KiB", row.host, row.bytes / GIB, row.page >> 10);
        let whole = row.against_one.median;
        bar(format!("{what}: bounded calls against one"), "≤ 105 %", percent(whole), whole <= 1.05);
    }
    targets
}

/// Formats a share as "0.4 %".
fn tenths(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

pub fn section(summary: &Summary) -> Section {
    let rounds = summary.unmaps.first().map_or(0, |row| row.ms_per_gib.count);
    let about = summary.about.lines(rounds, "Linux 7.2, a device that does nothing by itself");
    let spread = |spread: Spread, digits: usize, unit: &str| {
        let Spread { median, min, max, .. } = spread;
        format!("{median:.digits$}{unit} [{min:.digits$}–{max:.digits$}]")
    };
    let arrays = Table {
        head: vec![
            "host",
            "driver",
            "pages",
            "calls",
            "with arrays",
            "ms",
            "with arrays",
            "map ×",
            "unmap ×",
        ],
        rows: summary
            .arrays
            .iter()
            .map(|row| {
                let milliseconds = |seconds: Spread| format!("{:.1}", seconds.median * 1e3);
                vec![
                    row.host.clone(),
                    format!("{:?}", row.driver).to_lowercase(),
                    format!("{} {}", row.pages, row.shape.name()),
                    row.calls[0].to_string(),
                    row.calls[1].to_string(),
                    milliseconds(row.seconds[0]),
                    milliseconds(row.seconds[1]),
                    spread(row.faster[0], 1, "×"),
                    spread(row.faster[1], 1, "×"),
                ]
            })
            .collect(),
    };
    let unmaps = Table {
        head: vec![
            "host",
            "guest",
            "page",
            "policy",
            "calls",
            "ms/GiB",
            "longest call",
            "× one call",
            "invalidations/GiB",
        ],
        rows: summary
            .unmaps
            .iter()
            .map(|row| {
                vec![
                    row.host.clone(),
                    format!("{} GiB", row.bytes / GIB),
                    format!("{} KiB", row.page >> 10),
                    row.policy.name().into(),
                    row.calls.to_string(),
                    spread(row.ms_per_gib, 2, ""),
                    tenths(row.longest.median),
                    spread(row.against_one, 2, "×"),
                    format!("{:.1}", row.invalidations.median),
                ]
            })
            .collect(),
    };
    let tables = vec![
        (exact::TITLE, exact::table(&summary.exact)),
        ("Arrays of pages: median [least – most], within a round", arrays),
        ("A guest unmapped", unmaps),
        ("Promises", promises(&summary.targets)),
    ];
    Section { title: "Many calls, in the VM", about, tables }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_fast_e2e::Accel;

    fn unmap(round: u32, policy: Policy, seconds: f64, longest: f64) -> String {
        let record = Record::Unmap(Unmap {
            round,
            page: 2 << 20,
            bytes: 1024 * GIB,
            policy,
            calls: 256,
            seconds,
            longest_seconds: longest,
            map_seconds: 1.0,
        });
        serde_json::to_string(&record).unwrap()
    }

    fn array(array_seconds: f64, calls: u64) -> String {
        let toggle = |calls, seconds| cases::Toggle { calls, map_seconds: seconds, unmap_seconds: seconds };
        let record = Record::Array(cases::Array {
            round: 0,
            driver: Driver::Type1,
            shape: Shape::Row,
            pages: 1000,
            page_by_page: toggle(2000, 1.0),
            array: toggle(calls, array_seconds),
        });
        serde_json::to_string(&record).unwrap()
    }

    fn targets(lines: &[String]) -> Vec<bool> {
        let (arrays, unmaps) = rows("intel-newest", &lines.join("\n"), &Invalidated::default()).unwrap();
        judge(&arrays, &unmaps).iter().map(|target| target.reached).collect()
    }

    #[test]
    fn each_promise_can_fail() {
        let unmaps = |bounded, longest| {
            let one = [0, 1].map(|round| unmap(round, Policy::OneCall, 10.0, 10.0));
            let bounded = [0, 1].map(|round| unmap(round, Policy::Bounded, bounded, longest));
            [one, bounded].concat()
        };
        assert_eq!(targets(&unmaps(10.4, 0.1)), [true, true]);
        assert_eq!(targets(&unmaps(10.4, 0.11)), [false, true]);
        assert_eq!(targets(&unmaps(10.6, 0.1)), [true, false]);
        assert_eq!(targets(&[array(0.1, 2)]), [true, true]);
        assert_eq!(targets(&[array(0.1, 200)]), [false, true]);
        assert_eq!(targets(&[array(0.3, 2)]), [true, false]);
    }

    #[test]
    fn invalidations_between_two_steps_are_counted() {
        let step = |end: &str, bytes| (format!("1 GiB in pages of 4 KiB, one call: {end}"), bytes);
        let steps = vec![step("unmap", 2), step("unmapped", 6), step("unmap", 6), step("unmapped", 8)];
        let invalidated = Invalidated { steps, trace: b"a\nb\nc\nd\n".to_vec() };
        let during = |nth| invalidated.during("1 GiB in pages of 4 KiB, one call", nth);
        assert_eq!([during(0), during(1), during(2)], [Some(2), Some(1), None]);
    }

    #[test]
    fn every_case_is_in_the_tables() {
        let lines =
            [unmap(0, Policy::OneCall, 10.0, 10.0), unmap(0, Policy::Bounded, 10.0, 0.1), array(0.1, 2)];
        let (arrays, unmaps) = rows("x", &lines.join("\n"), &Invalidated::default()).unwrap();
        let targets = judge(&arrays, &unmaps);
        let machine = vfio_fast_protocol::bench::host::machine(PINS);
        let about = About::new(machine, Accel::Tcg("no processor"), Spread::default());
        let exact = exact::rows("x", &exact::tests::records());
        let summary = Summary { about, exact, arrays, unmaps, targets };
        let section = section(&summary);
        let lengths: Vec<usize> = section.tables.iter().map(|(_, table)| table.rows.len()).collect();
        assert_eq!(lengths, [2, 1, 2, 4]);
        for (title, table) in &section.tables {
            assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{title}");
        }
    }
}
