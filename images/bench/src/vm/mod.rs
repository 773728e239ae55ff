//! `cargo xtask bench --vm`: real VFIO. L1 (see [`vfio_fast_e2e`]) starts its guest repeatedly, alternating between
//! QEMU's own listener, the same after QEMU's own prealloc (with and without a thread context), the library, the
//! library in the background, and a guest without a passed through device.

mod figure;
mod flat;
mod judge;
mod summary;
mod table;
mod traffic;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::memory::MemoryKind;

use super::mebibytes;
use super::nested::Lab;
use super::summary::Spread;
use vfio_fast_e2e::Verdict;
use vfio_fast_protocol::scenarios::boot_time;

pub use figure::draw;
pub use summary::Summary;
pub use table::section;

/// The minimum memory of L2: its kernel does not boot with less.
const LEAST_MIB: u64 = 256;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Wanted {
    container: Container,
    /// Sizes of the guests in MiB.
    sizes: Vec<u64>,
    memories: Vec<MemoryKind>,
    /// Starts of each mode with each memory.
    rounds: u32,
}

impl Wanted {
    /// `sizes` are in GiB; no `kinds` are all kinds. Fails before anything is measured if a guest does not fit into this
    /// machine's memory, or if one of the kinds needs reserved pages.
    pub fn new(container: Container, sizes: &[f64], kinds: &[String], rounds: u32) -> Result<Self> {
        let sizes = mebibytes(sizes);
        ensure!(rounds > 0, "Without rounds nothing is measured");
        ensure!(sizes.iter().all(|mib| *mib >= LEAST_MIB), "L2 needs at least {LEAST_MIB} MiB");
        let spec = |mib: &u64| boot_time::spec(container, *mib, Vec::new());
        sizes.iter().try_for_each(|mib| vfio_fast_e2e::require_memory(&spec(mib)))?;
        let known = MemoryKind::UNRESERVED;
        if let Some(wrong) = kinds.iter().find(|kind| known.iter().all(|memory| memory.name() != *kind)) {
            let names = known.map(MemoryKind::name).join(", ");
            bail!("The guests have memory of the kinds {names}, not {wrong}");
        }
        let wanted = |memory: &MemoryKind| kinds.is_empty() || kinds.iter().any(|kind| kind == memory.name());
        Ok(Self { container, sizes, memories: known.into_iter().filter(wanted).collect(), rounds })
    }

    /// All memories, in every round.
    fn pairs(&self) -> Vec<(MemoryKind, u32)> {
        let rounds = |memory: &MemoryKind| {
            let memory = *memory;
            (0..self.rounds).map(move |round| (memory, round))
        };
        self.memories.iter().flat_map(rounds).collect()
    }
}

/// Measures. The inner result reports a failure; the summary has what was measured before it.
pub fn run(wanted: &Wanted, folder: &Path) -> Result<(Summary, Result<()>)> {
    let spec = |mib: &u64| boot_time::spec(wanted.container, *mib, wanted.pairs());
    let plans: Vec<_> = wanted.sizes.iter().map(spec).collect();
    // QEMU's part of a DMA map of the guest's is the same on iommufd.
    let with_viommu = (wanted.container == Container::Type1).then(|| traffic::plan(wanted.rounds));
    let all: Vec<_> = plans.iter().cloned().chain(with_viommu.clone()).collect();
    let lab = Lab::prepare(&all, folder, pins(wanted.container))?;
    let mut lines = File::create(folder.join(lines_file(wanted.container)))?;
    let (mut starts, mut shares) = (Vec::new(), Vec::new());
    let mut outcome = Ok(());
    for (&mib, plan) in wanted.sizes.iter().zip(plans) {
        let booted = lab.boot(&[plan]);
        shares.push(booted.others);
        outcome = booted.outcome;
        for verdict in booted.verdicts {
            outcome = outcome.and_then(|()| check(&verdict, mib, wanted));
            for start in verdict.starts {
                let bytes = mib << 20;
                writeln!(lines, "{}", json!({ "bytes": bytes, "start": start }))?;
                starts.push((bytes, start));
            }
        }
        if outcome.is_err() {
            break;
        }
    }
    let mut moved = Vec::new();
    if let Some(plan) = with_viommu.filter(|_| outcome.is_ok()) {
        let booted = lab.boot(&[plan]);
        shares.push(booted.others);
        outcome = booted.outcome;
        for verdict in booted.verdicts {
            outcome = outcome.and_then(|()| traffic::check(&verdict, wanted.rounds));
            for traffic in verdict.traffic {
                writeln!(lines, "{}", json!({ "traffic": traffic }))?;
                moved.push(traffic);
            }
        }
    }
    let mut summary = Summary::of(wanted.container, &starts, lab.about(Spread::of(shares)));
    summary.viommu = traffic::Rows::of(&moved);
    Ok((summary, outcome))
}

/// The name of the backend in the report.
fn pins(container: Container) -> &'static str {
    match container {
        Container::Type1 => "VFIO type1 on an emulated VT-d",
        Container::Iommufd => "iommufd on an emulated VT-d",
    }
}

/// Where each start is written when it has ended.
fn lines_file(container: Container) -> &'static str {
    match container {
        Container::Type1 => "vm.jsonl",
        Container::Iommufd => "vm-iommufd.jsonl",
    }
}

/// Checks counts only, never times.
fn check(verdict: &Verdict, mib: u64, wanted: &Wanted) -> Result<()> {
    let mut wrong = verdict.problems();
    for (name, problems, _) in judge::all(&verdict.starts, mib << 20, &wanted.pairs()) {
        wrong.extend(problems.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    ensure!(wrong.is_empty(), "{mib} MiB: {}, logs: {}", wrong.join("\n"), verdict.folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure;
    use crate::nested::About;
    use vfio_fast_assets::outcome::{UNAVAILABLE, code_of};
    use vfio_fast_e2e::{Accel, Check};
    use vfio_fast_protocol::job::Mode;
    use vfio_fast_protocol::record::{Moment, Order, Start};

    pub const GIB: u64 = 1 << 30;

    /// The records of a correct bench: two rounds of a guest of 1 GiB.
    pub fn right() -> Vec<Start> {
        let first = Moment { at_ns: 20, map_bytes: GIB, map_ns: 5, populate_ns: 10, ..Moment::default() };
        let kernel = Moment { at_ns: 40, ..first };
        let mut starts = Vec::new();
        for memory in MemoryKind::UNRESERVED {
            for order in Order::ALL {
                for round in 0..2 {
                    starts.push(Start {
                        round,
                        order,
                        memory,
                        greeting_ns: 19,
                        mapped_ns: 18,
                        device_ns: 18,
                        first_instruction: first,
                        kernel,
                        held_bytes: GIB,
                        locked_bytes: GIB,
                        shmem_bytes: if memory.is_memfd() { GIB } else { 4096 },
                        huge_bytes: if memory.may_be_huge() { GIB } else { 0 },
                        exit_ns: 9,
                    });
                }
            }
        }
        starts
    }

    #[test]
    fn what_does_not_fit_ends_with_69_before_anything_runs() {
        let error = Wanted::new(Container::Type1, &[0.5, 1e6], &[], 5).unwrap_err();
        assert_eq!(code_of(&error), UNAVAILABLE, "{error}");
        assert_ne!(code_of(&Wanted::new(Container::Type1, &[0.1], &[], 5).unwrap_err()), UNAVAILABLE);
        assert!(Wanted::new(Container::Type1, &[], &[], 0).is_err());
        let kinds = ["memfd-thp".to_owned(), "hugetlb".to_owned()];
        assert_eq!(Wanted::new(Container::Type1, &[0.5], &kinds[..1], 2).unwrap().pairs().len(), 2);
        let error = Wanted::new(Container::Type1, &[0.5], &kinds, 2).unwrap_err().to_string();
        assert!(error.contains("not hugetlb"), "{error}");
    }

    #[test]
    fn every_memory_is_in_table_and_plots() {
        let starts: Vec<(u64, Start)> = right().into_iter().map(|start| (GIB, start)).collect();
        let machine = vfio_fast_protocol::bench::host::machine(pins(Container::Type1));
        let about = About::new(machine, Accel::Tcg("no processor"), Spread::default());
        let summary = Summary::of(Container::Type1, &starts, about);
        let section = section(&summary);
        assert!(section.about.iter().any(|line| line.contains("TCG (no processor)")));
        let figure = figure::draw(None, |canvas, y| draw(canvas, y, &summary, &section));
        for (title, table) in &section.tables {
            assert_eq!(table.rows.len(), MemoryKind::UNRESERVED.len(), "{title}");
            assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{title}");
        }
        for memory in MemoryKind::UNRESERVED {
            assert_eq!(figure.matches(memory.name()).count(), 2, "{}", memory.name());
        }
    }

    #[test]
    fn a_wrong_count_is_an_error() {
        let of = |ok: bool, starts: Vec<Start>| {
            let check = Check { name: "mappings-anon-4k-fast-0".into(), ok, detail: "a difference".into() };
            Verdict {
                name: "boot-time".into(),
                mode: Mode::Fast,
                timed: true,
                checks: vec![check],
                facts: None,
                starts,
                traffic: Vec::new(),
                folder: "logs".into(),
                seconds: 1.0,
                stalled: false,
                retries: Default::default(),
            }
        };
        let rounds = |rounds| Wanted::new(Container::Type1, &[1.0], &[], rounds).unwrap();
        check(&of(true, right()), 1024, &rounds(2)).unwrap();
        let error = check(&of(false, right()), 1024, &rounds(2)).unwrap_err().to_string();
        assert!(error.contains("mappings-anon-4k-fast-0: a difference"), "{error}");
        let error = check(&of(true, right()), 1025, &rounds(2)).unwrap_err().to_string();
        assert!(error.contains("all-memory-mapped: anon-4k-stock-0"), "{error}");
        assert!(check(&of(true, right()), 1024, &rounds(3)).is_err());
    }
}
