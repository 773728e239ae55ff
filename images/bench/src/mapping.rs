//! `cargo xtask bench --type1` and `--iommufd`: the engine's bench of real memory in L1 (see [`vfio_fast_e2e`]), for a
//! device in a type1 container on two kernels, or attached to an iommufd. Only iommufd has concurrent map and unmap
//! calls, and maps by file; the newest kernel's type1 pins large folios whole.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::mebibytes;
use super::nested::{About, Lab};
use super::summary::{Row, Spread, Summary as Measured};
use super::table::{Section, left_out, memory_tables, promises};
use super::targets::{self, Target, percent};
use vfio_fast_e2e::{ScenarioSpec, Verdict};
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_protocol::bench::native::Case;
use vfio_fast_protocol::host::{Host, Kernel};
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::scenarios::map_bench;

/// Memory of L1 that the bench leaves free: see its `SPARE`.
const SPARE_MIB: u64 = 1024;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Wanted {
    driver: Driver,
    /// Sizes of the guest memory in MiB.
    sizes: Vec<u64>,
    /// Rounds per case.
    rounds: u32,
}

impl Wanted {
    /// `sizes` are in GiB. Fails before anything is measured if one of them does not fit into this machine's memory.
    pub fn new(driver: Driver, sizes: &[f64], rounds: u32) -> Result<Self> {
        let wanted = Self { driver, sizes: mebibytes(sizes), rounds };
        ensure!(rounds > 0, "Without rounds nothing is measured");
        ensure!(wanted.sizes.iter().all(|mib| *mib > 0), "A size is below 2 MiB");
        wanted.plans().iter().try_for_each(vfio_fast_e2e::require_memory)?;
        Ok(wanted)
    }

    /// One boot of L1 on each kernel that has the driver, for all sizes.
    fn plans(&self) -> Vec<ScenarioSpec> {
        let hosts: &[Host] = match self.driver {
            Driver::Type1 => &[Host::INTEL_DEBIAN, Host::INTEL_NEWEST],
            Driver::Iommufd => &[Host::INTEL_NEWEST],
        };
        hosts.iter().map(|host| self.plan(*host)).collect()
    }

    fn plan(&self, host: Host) -> ScenarioSpec {
        let gib: Vec<String> = self.sizes.iter().map(|mib| (*mib as f64 / 1024.0).to_string()).collect();
        let arguments = [
            ["--driver", &self.driver.to_string()],
            ["--sizes", &gib.join(",")],
            ["--rounds", &self.rounds.to_string()],
            ["--kinds", &MemoryKind::UNRESERVED.map(MemoryKind::name).join(",")],
        ];
        let largest = self.sizes.last().copied().unwrap_or(0);
        // A generous multiple of the time that L1 needs.
        let work = self.sizes.iter().sum::<u64>() * u64::from(self.rounds);
        let container = match self.driver {
            Driver::Type1 => Container::Type1,
            Driver::Iommufd => Container::Iommufd,
        };
        map_bench::spec(
            host,
            container,
            largest + SPARE_MIB,
            ["native"].into_iter().chain(arguments.concat()).map(str::to_owned).collect(),
            Duration::from_secs(600 + work),
        )
    }
}

/// The results of one boot.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub about: About,
    /// The part of the report.
    title: &'static str,
    pub measured: Measured,
    /// The targets that this run can judge.
    pub targets: Vec<Target>,
}

/// Measures. The inner result reports a failure; the summaries have what was measured before it.
pub fn run(wanted: &Wanted, folder: &Path) -> Result<(Vec<Summary>, Result<()>)> {
    let plans = wanted.plans();
    let lab = Lab::prepare(&plans, folder, &format!("{} on an emulated VT-d", wanted.driver))?;
    let mut summaries = Vec::new();
    for plan in &plans {
        let booted = lab.boot(std::slice::from_ref(plan));
        booted.outcome?;
        let verdict = booted.verdicts.first().context("L1 was not run")?;
        let text = fs::read_to_string(verdict.folder.join("native.log"))
            .with_context(|| format!("Nothing was measured: {}", verdict.problems().join("\n")))?;
        fs::write(folder.join(format!("{}.jsonl", plan.name())), &text)?;
        let measured = Measured::of(&text)?;
        let outcome = check(verdict, &measured, wanted);
        let about = lab.about(Spread::of([booted.others]));
        summaries.push(Summary::of(title(wanted.driver, plan.host), wanted.driver, measured, about));
        if outcome.is_err() {
            return Ok((summaries, outcome));
        }
    }
    Ok((summaries, Ok(())))
}

fn title(driver: Driver, host: Host) -> &'static str {
    match (driver, host.kernel) {
        (Driver::Iommufd, _) => "iommufd, in the VM",
        (Driver::Type1, Kernel::Debian | Kernel::Debian16k) => "type1 of Debian's kernel, in the VM",
        (Driver::Type1, Kernel::Newest) => "type1 of the newest kernel, in the VM",
    }
}

impl Summary {
    fn of(title: &'static str, driver: Driver, measured: Measured, about: About) -> Self {
        let targets = targets::judge_mapping(&measured, driver);
        Self { about, title, measured, targets }
    }
}

/// Checks counts only, never times.
fn check(verdict: &Verdict, measured: &Measured, wanted: &Wanted) -> Result<()> {
    let mut wrong = verdict.problems();
    wrong.extend(measured.left_out.iter().map(left_out));
    for memory in MemoryKind::UNRESERVED {
        for mib in &wanted.sizes {
            let problem = missing(measured, memory, mib << 20, wanted.rounds as usize);
            wrong.extend(problem.map(|problem| format!("{mib} MiB of {}: {problem}", memory.name())));
        }
    }
    ensure!(wrong.is_empty(), "{}, logs: {}", wrong.join("\n"), verdict.folder.display());
    Ok(())
}

/// The reason why the results for that memory are incomplete, if they are.
fn missing(measured: &Measured, memory: MemoryKind, bytes: u64, rounds: usize) -> Option<String> {
    let row = |rows: &'_ [Row], case: Case| {
        let of = rows.iter().filter(|row| (row.memory, row.bytes, row.case) == (memory, bytes, case));
        of.max_by_key(|row| row.threads).cloned()
    };
    let mapped = row(&measured.cold, Case::Engine);
    let unmapped = row(&measured.unmap, Case::UnmapEngine);
    for (row, what) in [(&mapped, "mapped"), (&unmapped, "unmapped")] {
        let times = row.as_ref().map_or(0, |row| row.ratio.count);
        if times != rounds {
            return Some(format!("{what} {times} times and not {rounds}"));
        }
    }
    let (stock, fast) = mapped.map_or((0.0, 0.0), |row| row.huge);
    let as_asked = |part: f64| if memory.may_be_huge() { part > 0.5 } else { part == 0.0 };
    let parts = format!("{} and {} are in huge pages", percent(stock), percent(fast));
    (!as_asked(stock) || !as_asked(fast)).then_some(parts)
}

pub fn section(summary: &Summary) -> Section {
    let (measured, l1) = (&summary.measured, &summary.measured.machine);
    let l1 = format!(
        "Linux {}, THP {}, shmem THP {}, a device that does nothing by itself",
        l1.kernel, l1.thp, l1.shmem_thp
    );
    let mut about = summary.about.lines(measured.rounds(), &l1);
    about.extend(measured.left_out.iter().map(left_out));
    let mut tables = memory_tables(measured);
    tables.push(("Promises", promises(&summary.targets)));
    Section { title: summary.title, about, tables }
}

#[cfg(test)]
mod tests {
    use vfio_fast_protocol::spec::Program;

    use super::*;
    use crate::figure;
    use vfio_fast_assets::outcome::{UNAVAILABLE, code_of};
    use vfio_fast_e2e::{Accel, Check};
    use vfio_fast_protocol::job::Mode;

    const WANTED: Wanted = Wanted { driver: Driver::Iommufd, sizes: Vec::new(), rounds: 2 };

    fn wanted() -> Wanted {
        Wanted { sizes: vec![2048], ..WANTED }
    }

    /// The output of a correct bench: two rounds of 2 GiB.
    fn right() -> Vec<String> {
        let mut lines = vec![
            "{\"kind\":\"machine\",\"cpus\":2,\"cpu\":\"TCG\",\"virtual_machine\":true,\"kernel\":\"7.2.13\",\"memory\":1,\
             \"available\":1,\"thp\":\"madvise\",\"shmem_thp\":\"advise\",\"load\":0.0,\"pins\":\"iommufd\"}"
                .to_owned(),
        ];
        let seconds = [
            ("stock", 2.0),
            ("engine", 1.0),
            ("maps-only", 1.5),
            ("unmap-stock", 0.2),
            ("unmap-engine", 0.1),
        ];
        for (memory, round) in
            MemoryKind::UNRESERVED.into_iter().flat_map(|memory| [(memory, 0), (memory, 1)])
        {
            let name = memory.name();
            let huge: u64 = if name.ends_with("thp") { 2 << 30 } else { 0 };
            lines.extend(seconds.map(|(case, seconds)| {
                format!(
                    "{{\"kind\":\"sample\",\"round\":{round},\"case\":\"{case}\",\"memory\":\"{name}\",\
                     \"bytes\":2147483648,\"threads\":2,\"seconds\":{seconds},\"huge_bytes\":{huge}}}"
                )
            }));
        }
        lines
    }

    fn verdict(ok: bool) -> Verdict {
        let check = Check { name: "measured".into(), ok, detail: "ended with 1; no room".into() };
        Verdict {
            name: "map-bench".into(),
            mode: Mode::Fast,
            timed: true,
            checks: vec![check],
            facts: None,
            starts: Vec::new(),
            traffic: Vec::new(),
            folder: "logs".into(),
            seconds: 1.0,
            stalled: false,
            retries: Default::default(),
        }
    }

    /// The error that `change` to a correct output causes.
    fn wrong(change: impl FnOnce(&mut Vec<String>)) -> String {
        let mut lines = right();
        change(&mut lines);
        let measured = Measured::of(&lines.join("\n")).unwrap();
        check(&verdict(true), &measured, &wanted()).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn each_check_can_fail() {
        assert_eq!(wrong(|_| ()), "");
        let without = |case: &'static str| {
            wrong(move |lines| {
                let found = lines.iter().position(|line| line.contains(&format!("\"{case}\""))).unwrap();
                lines.remove(found);
            })
        };
        assert!(without("engine").contains("2048 MiB of anon-4k: mapped 1 times and not 2"));
        assert!(without("unmap-engine").contains("unmapped 1 times"));
        assert!(without("stock").contains("mapped 1 times"), "a ratio is missing");
        let small =
            wrong(|lines| lines.iter_mut().for_each(|line| *line = line.replace("2147483648}", "0}")));
        assert!(small.contains("anon-thp: 0 % and 0 % are in huge pages"), "{small}");
        assert!(!small.contains("4k"), "{small}");
        let huge = wrong(|lines| lines.iter_mut().for_each(|line| *line = line.replace(":0}", ":2097152}")));
        assert!(huge.contains("memfd-4k: 0 % and 0 % are in huge pages"), "{huge}");
        let out = "{\"kind\":\"left-out\",\"memory\":\"anon-4k\",\"bytes\":1073741824,\"why\":\"no memory\"}";
        assert!(wrong(|lines| lines.push(out.into())).contains("Left out: 1 GiB of anon-4k: no memory"));
        let measured = Measured::of(&right().join("\n")).unwrap();
        let error = check(&verdict(false), &measured, &wanted()).unwrap_err().to_string();
        assert!(error.contains("measured: ended with 1; no room"), "{error}");
    }

    #[test]
    fn every_case_is_in_tables_and_plots() {
        let measured = Measured::of(&right().join("\n")).unwrap();
        let machine = vfio_fast_protocol::bench::host::machine("iommufd");
        let about = About::new(machine, Accel::Tcg("no processor"), Spread::default());
        let summary = Summary::of("x", Driver::Iommufd, measured, about);
        let section = section(&summary);
        assert!(section.about.iter().any(|line| line.contains("TCG (no processor): Linux 7.2.13")));
        let rows = |title: &str| {
            let (_, table) = section.tables.iter().find(|(found, _)| found.starts_with(title)).unwrap();
            assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{title}");
            table.rows.clone()
        };
        assert_eq!((rows("Cold memory").len(), rows("Taking it away").len()), (8, 4));
        assert!(rows("Cold memory").iter().any(|row| row[3] == "by the map calls"));
        let promised: Vec<String> = rows("Promises").into_iter().map(|row| row[3].clone()).collect();
        assert_eq!(promised, ["reached"; 4]);
        let figure =
            figure::draw(None, |canvas, y| figure::draw_mapping(canvas, y, &summary.measured, &section));
        assert!(MemoryKind::UNRESERVED.iter().all(|memory| figure.contains(memory.name())));
    }

    #[test]
    fn what_does_not_fit_ends_with_69_before_anything_runs() {
        let error = Wanted::new(Driver::Type1, &[0.5, 1e6], 5).unwrap_err();
        assert_eq!(code_of(&error), UNAVAILABLE, "{error}");
        assert_ne!(code_of(&Wanted::new(Driver::Type1, &[0.0], 5).unwrap_err()), UNAVAILABLE);
        assert!(Wanted::new(Driver::Type1, &[], 0).is_err());
    }

    #[test]
    fn the_bench_is_told_what_is_wanted() {
        let wanted = Wanted { driver: Driver::Type1, sizes: vec![512, 2048], rounds: 3 };
        let plans = wanted.plans();
        let hosts: Vec<Host> = plans.iter().map(|plan| plan.host).collect();
        assert_eq!(hosts, [Host::INTEL_DEBIAN, Host::INTEL_NEWEST]);
        let plan = &plans[0];
        let Program::Bench(command) = &plan.program else { panic!("no bench") };
        assert_eq!(
            *command,
            [
                "native",
                "--driver",
                "type1",
                "--sizes",
                "0.5,2",
                "--rounds",
                "3",
                "--kinds",
                "anon-4k,anon-thp,memfd-4k,memfd-thp"
            ]
        );
        // The bench itself leaves 2 GiB unused, and L1's system needs the rest.
        assert_eq!(plan.l1().mib(), 2048 + 3072);
    }
}
