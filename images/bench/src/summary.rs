//! Aggregates samples: medians, spreads, and ratios within a round.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::criterion::Pure;
use vfio_fast_protocol::bench::native::{Case, LeftOut, Machine, Record, Sample};
use vfio_fast_protocol::memory::MemoryKind;

/// The results of the native part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub machine: Machine,
    /// The command line that repeats the run.
    pub command: String,
    /// Mapping cold memory with different numbers of threads and bytes per call, compared with stock.
    pub cold: Vec<Row>,
    /// Mapping memory that is already present, compared with stock.
    pub remap: Vec<Row>,
    /// Unmapping, compared with stock.
    pub unmap: Vec<Row>,
    pub limits: Vec<Limit>,
    /// The share of all CPUs' time that other processes used, over the rounds.
    pub others: Spread,
    /// Cases that could not be measured.
    pub left_out: Vec<LeftOut>,
    /// The benchmarks of code that makes no system calls.
    pub pure: Vec<Pure>,
}

/// One case, compared with stock.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub memory: MemoryKind,
    pub bytes: u64,
    /// Maximum number of threads.
    pub threads: usize,
    pub case: Case,
    /// 4 KiB pages per populate call; `None`: the engine's own chunk size.
    pub pages_per_call: Option<u64>,
    /// Seconds that stock took.
    pub stock: Spread,
    /// Seconds that this case took.
    pub fast: Spread,
    /// Speed-up over stock in the same round.
    pub ratio: Spread,
    /// Speed relative to the order of calls of QEMU's `prealloc` in the same round.
    pub of_prealloc: Spread,
    /// Speed relative to the number of threads with the smallest median, in the same round.
    pub of_best: Spread,
    /// Speed relative to bare parallel fault-in in the same round.
    pub of_bare: Spread,
    /// Speed relative to parallel clearing in the same round.
    pub of_clear: Spread,
    /// Median seconds spent on faulting in.
    pub populate: f64,
    /// Median seconds in the calls that pin.
    pub pin: f64,
    /// Median share of the memory in huge pages afterwards: for stock, and for this case.
    pub huge: (f64, f64),
}

#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    pub memory: MemoryKind,
    pub bytes: u64,
    /// CPUs used.
    pub cpus: usize,
    /// Seconds to clear memory that is present.
    pub clear: Spread,
    /// Seconds to fault in the memory with one process per CPU.
    pub bare: Spread,
}

/// The spread of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// The number of values.
    pub count: usize,
}

impl Spread {
    /// All fields are 0 if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let (Some(min), Some(max)) = (values.first().copied(), values.last().copied()) else {
            return Self::default();
        };
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Self { median, min, max, count }
    }
}

/// The fields that samples of one case share in all rounds.
type Key = (MemoryKind, u64, Case, usize, Option<u64>);

impl Summary {
    /// Aggregates the file that the native bench wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
        Self::of(&text)
    }

    /// Aggregates the lines that the native bench printed.
    pub fn of(text: &str) -> Result<Self> {
        let mut summary = Self::default();
        let mut samples: BTreeMap<Key, Vec<Sample>> = BTreeMap::new();
        let mut others = Vec::new();
        for line in text.lines() {
            match serde_json::from_str(line).with_context(|| format!("Not a record: {line}"))? {
                Record::Machine(machine) => summary.machine = machine,
                Record::Others(shared) => others.push(shared.share),
                Record::LeftOut(left_out) => summary.left_out.push(left_out),
                Record::Sample(s) => {
                    let key = (s.memory, s.bytes, s.case, s.threads, s.pages_per_call);
                    samples.entry(key).or_default().push(s);
                }
            }
        }
        summary.others = Spread::of(others);
        for (key, rounds) in &samples {
            let (memory, bytes, case, ..) = *key;
            let others = |case: Case| {
                let found = samples.iter().find(|((b, n, c, ..), _)| (*b, *n, *c) == (memory, bytes, case));
                found.map_or(&[][..], |(_, rounds)| rounds)
            };
            match case {
                Case::Engine => {
                    let of_best =
                        best(&samples, key).map_or_else(Spread::default, |best| against(rounds, best));
                    summary.cold.push(Row { of_best, ..row(key, rounds, Case::Stock, &others) });
                }
                Case::Prealloc
                | Case::RegionByRegion
                | Case::InTurn
                | Case::MapsOnly
                | Case::ByAddress
                | Case::Batch => summary.cold.push(row(key, rounds, Case::Stock, &others)),
                Case::RemapEngine => summary.remap.push(row(key, rounds, Case::RemapStock, &others)),
                Case::Bare => summary.limits.push(Limit {
                    memory,
                    bytes,
                    cpus: key.3,
                    clear: Spread::of(others(Case::Clear).iter().map(|s| s.seconds)),
                    bare: Spread::of(rounds.iter().map(|s| s.seconds)),
                }),
                Case::UnmapEngine => summary.unmap.push(row(key, rounds, Case::UnmapStock, &others)),
                Case::Stock | Case::RemapStock | Case::UnmapStock | Case::Clear => {}
            }
        }
        Ok(summary)
    }

    /// Rounds per case.
    pub fn rounds(&self) -> usize {
        self.cold.iter().map(|row| row.fast.count).max().unwrap_or(0)
    }

    /// The kinds of memory that were measured, each with its largest size.
    pub fn largest(&self) -> Vec<(MemoryKind, u64)> {
        let mut largest = BTreeMap::new();
        for row in &self.cold {
            let bytes = largest.entry(row.memory).or_insert(0);
            *bytes = row.bytes.max(*bytes);
        }
        largest.into_iter().collect()
    }

    /// The engine's row with the largest number of threads, up to the number of CPUs.
    pub fn engine(&self, memory: MemoryKind, bytes: u64) -> Option<&Row> {
        let is_own = |row: &&Row| row.case == Case::Engine && row.threads <= self.machine.cpus;
        let own = self.cold.iter().filter(is_own);
        own.filter(|row| (row.memory, row.bytes) == (memory, bytes)).max_by_key(|row| row.threads)
    }
}

fn row<'a>(key: &Key, rounds: &[Sample], stock: Case, others: &impl Fn(Case) -> &'a [Sample]) -> Row {
    let (memory, bytes, case, threads, pages_per_call) = *key;
    let against = |case: Case| against(rounds, others(case));
    let huge =
        |samples: &[Sample]| Spread::of(samples.iter().map(|s| s.huge_bytes as f64 / bytes as f64)).median;
    Row {
        memory,
        bytes,
        threads,
        case,
        pages_per_call,
        stock: Spread::of(others(stock).iter().map(|s| s.seconds)),
        fast: Spread::of(rounds.iter().map(|s| s.seconds)),
        ratio: against(stock),
        of_prealloc: against(Case::Prealloc),
        of_best: Spread::default(),
        of_bare: against(Case::Bare),
        of_clear: against(Case::Clear),
        populate: Spread::of(rounds.iter().filter_map(|s| s.populate_seconds)).median,
        pin: Spread::of(rounds.iter().filter_map(|s| s.pin_seconds)).median,
        huge: (huge(others(stock)), huge(rounds)),
    }
}

/// Within one round: the other case's seconds divided by this one's.
fn against(rounds: &[Sample], others: &[Sample]) -> Spread {
    Spread::of(rounds.iter().filter_map(|sample| {
        let other = others.iter().find(|other| other.round == sample.round)?;
        Some(other.seconds / sample.seconds)
    }))
}

/// The samples of the number of threads that has the smallest median for that case.
fn best<'a>(samples: &'a BTreeMap<Key, Vec<Sample>>, key: &Key) -> Option<&'a [Sample]> {
    let same = samples
        .iter()
        .filter(|((memory, bytes, case, ..), _)| (*memory, *bytes, *case) == (key.0, key.1, key.2));
    let median = |rounds: &[Sample]| Spread::of(rounds.iter().map(|sample| sample.seconds)).median;
    let best = same.min_by(|(_, one), (_, other)| median(one).total_cmp(&median(other)));
    best.map(|(_, rounds)| &rounds[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(case: &str, round: u32, seconds: f64) -> String {
        format!(
            "{{\"kind\":\"sample\",\"round\":{round},\"case\":\"{case}\",\"memory\":\"anon-4k\",\"bytes\":1073741824,\
             \"threads\":2,\"seconds\":{seconds},\"huge_bytes\":0}}\n"
        )
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // A machine that becomes twice as slow between the rounds.
        let mut text = String::new();
        for (round, slow) in [(0, 1.0), (1, 2.0), (2, 2.0)] {
            for (case, seconds) in [
                ("stock", 1.0),
                ("engine", 0.5),
                ("prealloc", 0.6),
                ("bare", 0.25),
                ("clear", 0.125),
                ("remap-stock", 0.1),
            ] {
                text += &line(case, round, seconds * slow);
            }
            text += &line("engine", round, 0.8 * slow).replace("\"threads\":2", "\"threads\":64");
            text += &line("remap-engine", round, 0.1 * slow);
        }
        let mut summary = Summary::of(&text).unwrap();
        summary.machine.cpus = 2;
        let row = summary.engine(MemoryKind::Anon4k, 1 << 30).unwrap();
        assert_eq!(row.ratio, Spread { median: 2.0, min: 2.0, max: 2.0, count: 3 });
        assert_eq!((row.of_bare.median, row.of_clear.median), (0.5, 0.25));
        assert_eq!((row.of_prealloc.median, row.of_best.median), (1.2, 1.0));
        let crowded = summary.cold.iter().find(|row| row.threads == 64).unwrap();
        assert_eq!(crowded.of_best, Spread { median: 0.625, min: 0.625, max: 0.625, count: 3 });
        assert_eq!((row.stock.median, row.stock.min, row.stock.max), (2.0, 1.0, 2.0));
        assert_eq!(summary.remap[0].ratio.median, 1.0);
        assert_eq!((summary.limits[0].clear.median, summary.limits[0].bare.median), (0.25, 0.5));
        assert_eq!(summary.largest(), [(MemoryKind::Anon4k, 1 << 30)]);
    }

    #[test]
    fn medians_of_even_and_odd_numbers_and_of_nothing() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0, count: 4 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert!(Summary::of("{\"kind\":\"other\"}").is_err());
        assert!(Summary::of("oops").is_err());
    }
}
