//! `cargo xtask bench --vm`: real VFIO. L1 (see [`crate::e2e`]) starts its guest again and again, mapped by QEMU's own
//! listener and by the library in turns.

mod figure;
mod judge;
mod summary;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_agent::job::{Memory, Mode};
use vfio_fast_agent::record::Start;

use super::machine::{Busy, machine};
use super::summary::Spread;
use crate::cache::Cache;
use crate::e2e::{self, Phase, Phases, Plan, Runs, Verdict};
use crate::packages;

pub use figure::draw;
pub use summary::Summary;
pub use table::section;

/// What maps there.
const PINS: &str = "VFIO type1 on an emulated VT-d";
/// L2's kernel does not start with less.
const LEAST_MIB: u64 = 256;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Guests with so many MiB.
    sizes: Vec<u64>,
    /// How often each mode is started with each memory.
    rounds: u32,
}

impl Wanted {
    /// Guests of these sizes in GiB. Where one does not fit into this machine's memory, that ends the verb before anything
    /// is measured.
    pub fn new(sizes: &[f64], rounds: u32) -> Result<Self> {
        let mut sizes: Vec<u64> = sizes.iter().map(|gib| (gib * 1024.0) as u64 & !1).collect();
        sizes.sort_unstable();
        sizes.dedup();
        ensure!(rounds > 0, "Without rounds nothing is measured");
        ensure!(sizes.iter().all(|mib| *mib >= LEAST_MIB), "L2 needs at least {LEAST_MIB} MiB");
        sizes.iter().try_for_each(|mib| e2e::require_memory(&Plan::starts(*mib, Vec::new())))?;
        Ok(Self { sizes, rounds })
    }

    /// Every memory in every round.
    fn pairs(&self) -> Vec<(Memory, u32)> {
        let rounds = |memory| (0..self.rounds).map(move |round| (memory, round));
        Memory::ALL.into_iter().flat_map(rounds).collect()
    }
}

/// What was measured so far.
#[derive(Default)]
struct Measured {
    starts: Vec<(u64, Start)>,
    /// The part of the CPUs' time that others used, boot by boot.
    shares: Vec<f64>,
    /// Where L1 itself hung.
    hung: Vec<String>,
    boots: usize,
}

/// Measures. The second answer says what went wrong; what was measured until then is in the first.
pub fn run(wanted: &Wanted, folder: &Path) -> Result<(Summary, Result<()>)> {
    let phases = Phases::default();
    phases.enter(Phase::Setup);
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let (parts, accel) = e2e::prepare(&cache, folder, &phases)?;
    let machine = machine(PINS);
    let mut measured = Measured::default();
    let mut outcome = Ok(());
    for &mib in &wanted.sizes {
        let boot = |plan: Plan, number: usize| {
            // Each with its logs.
            let folder = folder.join(format!("boot-{number}"));
            let runs = Runs { parts: &parts, folder: &folder, accel, phases: &phases };
            let (mut verdicts, end) = runs.all(&[plan]);
            end.and_then(|()| verdicts.pop().context("L1 was not booted"))
        };
        outcome = one_size(wanted, mib, boot, &mut measured);
        if outcome.is_err() {
            break;
        }
    }
    let mut lines = File::create(folder.join("vm.jsonl"))?;
    for (bytes, start) in &measured.starts {
        writeln!(lines, "{}", json!({ "bytes": bytes, "start": start }))?;
    }
    let others = Spread::of(measured.shares);
    Ok((Summary::of(&measured.starts, machine, accel, others, measured.hung), outcome))
}

/// Guests of one size, in one boot of L1. An emulated processor may stop for good, and takes L1 with it: it cannot even
/// power off then. That is nobody's fault who is measured here. What is left is done in another boot, and the report says so.
fn one_size(
    wanted: &Wanted,
    mib: u64,
    boot: impl Fn(Plan, usize) -> Result<Verdict>,
    measured: &mut Measured,
) -> Result<()> {
    let mut left = wanted.pairs();
    let mut starts = Vec::new();
    while !left.is_empty() {
        let before = Busy::now();
        measured.boots += 1;
        let verdict = boot(Plan::starts(mib, left.clone()), measured.boots)?;
        measured.shares.push(Busy::now().others_since(&before));
        let done = left.len();
        // The two sides of a round ran in one boot.
        left.retain(|pair| !is_whole(&verdict.starts, *pair));
        let done = done - left.len();
        let wrong = failed(&verdict);
        let counted = verdict.starts.into_iter().filter(|start| !left.contains(&(start.memory, start.round)));
        starts.extend(counted);
        ensure!(wrong.is_empty(), "{mib} MiB: {}", wrong.join("; "));
        if verdict.hung {
            let at = left.first().map_or(String::new(), |(memory, round)| {
                format!("{mib} MiB, {}, round {}", memory.name(), round + 1)
            });
            println!("    L1 itself hung in {at}; booting it again for the rest");
            measured.hung.push(at);
            ensure!(done > 0, "L1 hung and had measured nothing, logs: {}", verdict.folder.display());
        }
    }
    let checks = judge::all(&starts, mib << 20, wanted.rounds);
    measured.starts.extend(starts.into_iter().map(|start| (mib << 20, start)));
    let wrong: Vec<String> = checks
        .into_iter()
        .filter(|(_, problems, _)| !problems.is_empty())
        .map(|(name, problems, _)| format!("{name}: {}", problems.join("; ")))
        .collect();
    ensure!(wrong.is_empty(), "{mib} MiB: {}", wrong.join("\n"));
    Ok(())
}

fn is_whole(starts: &[Start], (memory, round): (Memory, u32)) -> bool {
    let is_there = |mode| starts.iter().any(|s| (s.memory, s.round, s.mode) == (memory, round, mode));
    is_there(Mode::Stock) && is_there(Mode::Fast)
}

/// The checks that failed; of a boot that hung only those that were about a start.
fn failed(verdict: &Verdict) -> Vec<String> {
    let about_start = |name: &str| name.starts_with("mappings-") || name.starts_with("stats-");
    let failed = verdict.checks.iter().filter(|check| !check.ok);
    let counts = failed.filter(|check| !verdict.hung || about_start(&check.name));
    counts.map(|check| format!("{}: {}", check.name, check.detail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure;
    use crate::e2e::{Accel, Check};
    use crate::outcome::{UNAVAILABLE, code_of};
    use vfio_fast_agent::job::Scenario;
    use vfio_fast_agent::record::Moment;

    pub const GIB: u64 = 1 << 30;

    /// Two rounds of a guest of 1 GiB, with nothing wrong.
    pub fn right() -> Vec<Start> {
        let first = Moment { at_ns: 20, map_bytes: GIB, map_ns: 5, populate_ns: 10, ..Moment::default() };
        let kernel = Moment { at_ns: 40, ..first };
        let mut starts = Vec::new();
        for memory in Memory::ALL {
            for mode in [Mode::Stock, Mode::Fast] {
                for round in 0..2 {
                    starts.push(Start {
                        round,
                        mode,
                        memory,
                        first_instruction: first,
                        kernel,
                        held_bytes: GIB,
                        locked_bytes: GIB,
                        shmem_bytes: if memory.is_memfd() { GIB } else { 4096 },
                        huge_bytes: if memory.may_be_huge() { GIB } else { 0 },
                    });
                }
            }
        }
        starts
    }

    #[test]
    fn what_does_not_fit_ends_with_69_before_anything_runs() {
        let error = Wanted::new(&[0.5, 1e6], 5).unwrap_err();
        assert_eq!(code_of(&error), UNAVAILABLE, "{error}");
        assert_ne!(code_of(&Wanted::new(&[0.1], 5).unwrap_err()), UNAVAILABLE);
        assert!(Wanted::new(&[], 0).is_err());
    }

    #[test]
    fn every_memory_is_in_table_and_plots() {
        let starts: Vec<(u64, Start)> = right().into_iter().map(|start| (GIB, start)).collect();
        let summary =
            Summary::of(&starts, super::machine(PINS), Accel::Tcg("no processor"), Spread::default(), vec![]);
        let section = section(&summary);
        assert!(section.about.iter().any(|line| line.contains("TCG (no processor)")));
        let figure = figure::draw(None, |canvas, y| draw(canvas, y, &summary, &section));
        for (title, table) in &section.tables {
            assert_eq!(table.rows.len(), Memory::ALL.len(), "{title}");
            assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{title}");
        }
        for memory in Memory::ALL {
            assert_eq!(figure.matches(memory.name()).count(), 2, "{}", memory.name());
        }
    }

    /// Measures two rounds with boots that hang after so many starts; the last one does not.
    fn measure(hangs: &[usize], wrong: Option<&str>) -> (Result<()>, Measured) {
        let wanted = Wanted { sizes: vec![1024], rounds: 2 };
        let mut measured = Measured::default();
        let boot = |plan: Plan, number: usize| {
            let mut starts = right();
            starts.retain(|start| plan.starts.contains(&(start.memory, start.round)));
            starts.sort_by_key(|start| (start.memory, start.round));
            let hangs = hangs.get(number - 1);
            starts.truncate(hangs.copied().unwrap_or(usize::MAX));
            let check = |name: &str, ok| Check { name: name.into(), ok, detail: String::new() };
            let mut checks = vec![check("ran-to-its-end", hangs.is_none())];
            checks.extend(wrong.filter(|_| number == 1).map(|name| check(name, false)));
            Ok(Verdict {
                scenario: Scenario::Starts,
                name: "starts".into(),
                mode: Mode::Fast,
                timed: true,
                checks,
                facts: None,
                starts,
                hung: hangs.is_some(),
                folder: "logs".into(),
                seconds: 1.0,
            })
        };
        (one_size(&wanted, 1024, boot, &mut measured), measured)
    }

    #[test]
    fn what_a_hung_machine_left_is_done_in_another() {
        let (outcome, measured) = measure(&[], None);
        outcome.unwrap();
        assert_eq!((measured.starts.len(), measured.boots, measured.hung.len()), (16, 1, 0));
        // In the middle of a pair: both of it are started again.
        let (outcome, measured) = measure(&[5, 4], None);
        outcome.unwrap();
        assert_eq!((measured.starts.len(), measured.boots), (16, 3));
        assert_eq!(measured.hung, ["1024 MiB, anon-thp, round 1", "1024 MiB, memfd-4k, round 1"]);
        assert!(measure(&[5, 1], None).0.is_err(), "a boot that brings nothing is the last");
    }

    #[test]
    fn a_wrong_count_is_an_error_whether_the_machine_hung_or_not() {
        for hangs in [&[][..], &[5]] {
            assert!(measure(hangs, Some("mappings-anon-4k-fast-0")).0.is_err());
            assert!(measure(hangs, Some("stats-anon-4k-fast-0")).0.is_err());
        }
        assert!(measure(&[], Some("kernel-logs")).0.is_err());
        assert!(measure(&[5], Some("kernel-logs")).0.is_ok(), "a hung machine complains in its log");
    }
}
