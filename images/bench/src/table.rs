//! Renders a run as text.

use std::fmt::Write as _;

use super::criterion::Pure;
use super::summary::{Limit, Row, Spread, Summary};
use super::targets::{Target, gib, micros, percent, times};
use vfio_fast_protocol::bench::native::{Case, LeftOut, Machine};

const GIB: f64 = (1u64 << 30) as f64;

pub struct Table {
    /// The headings of the columns.
    pub head: Vec<&'static str>,
    /// Rows with one cell per column.
    pub rows: Vec<Vec<String>>,
}

/// The results of one part of a run.
pub struct Section {
    pub title: &'static str,
    /// The environment, and what could not be measured.
    pub about: Vec<String>,
    /// The tables with their titles.
    pub tables: Vec<(&'static str, Table)>,
}

/// The report for the terminal.
pub fn text(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let _ = writeln!(text, "\n{}", section.title);
        for line in &section.about {
            let _ = writeln!(text, "{line}");
        }
        for (title, table) in &section.tables {
            let _ = write!(text, "\n{title}\n{}", lines(table));
        }
    }
    text
}

/// The section of the native part.
pub fn section(summary: &Summary, targets: &[Target]) -> Section {
    Section { title: "Natively", about: about(summary), tables: tables(summary, targets) }
}

/// The lines about machine and command that begin each section.
pub fn about_run(machine: &Machine, command: &str, rounds: usize, others: Spread) -> Vec<String> {
    let kind = if machine.virtual_machine { "a virtual machine" } else { "bare metal" };
    vec![
        format!(
            "{} CPUs {} ({kind}), {:.0} GiB, Linux {}, THP {}, shmem THP {}, load {:.2}",
            machine.cpus,
            machine.cpu,
            machine.memory as f64 / GIB,
            machine.kernel,
            machine.thp,
            machine.shmem_thp,
            machine.load
        ),
        format!("Pins: {}", machine.pins),
        format!("Command: {command} ({rounds} rounds)"),
        format!(
            "Others used {} of the CPUs meanwhile (median; least {}, most {})",
            percent(others.median),
            percent(others.min),
            percent(others.max)
        ),
    ]
}

fn about(summary: &Summary) -> Vec<String> {
    let mut lines = about_run(&summary.machine, &summary.command, summary.rounds(), summary.others);
    lines.extend(summary.left_out.iter().map(left_out));
    lines
}

/// Describes a case that could not be measured.
pub fn left_out(out: &LeftOut) -> String {
    format!("Left out: {} of {}: {}", gib(out.bytes), out.memory.name(), out.why)
}

fn tables(summary: &Summary, targets: &[Target]) -> Vec<(&'static str, Table)> {
    let mut tables = memory_tables(summary);
    tables.extend([("The pure part", pure(summary)), ("Promises", promises(targets))]);
    tables
}

/// The tables of cases on real memory.
pub fn memory_tables(summary: &Summary) -> Vec<(&'static str, Table)> {
    vec![
        ("Cold memory: median [least – most]; ratios and parts within a round", cold(summary)),
        ("Memory that is there already", remap(summary)),
        ("Taking it away", unmap(summary)),
        ("Limits of the machine, all CPUs", limits(summary)),
    ]
}

/// The columns that identify a row.
const WHICH: [&str; 3] = ["memory", "size", "threads"];

fn which(row: &Row) -> [String; 3] {
    [row.memory.name().into(), gib(row.bytes), row.threads.to_string()]
}

/// A table of cases: the columns that identify the row, then `head`.
fn cases<const N: usize>(rows: &[Row], head: [&'static str; N], cells: fn(&Row) -> [String; N]) -> Table {
    Table {
        head: WHICH.into_iter().chain(head).collect(),
        rows: rows.iter().map(|row| which(row).into_iter().chain(cells(row)).collect()).collect(),
    }
}

fn cold(summary: &Summary) -> Table {
    let head = [
        "fault-in",
        "stock",
        "fast",
        "× stock",
        "× prealloc",
        "× best threads",
        "of bare",
        "of clearing",
        "in huge pages",
    ];
    cases(&summary.cold, head, |row| {
        [
            fault_in(row),
            seconds(row.stock),
            seconds(row.fast),
            ratio(row.ratio),
            if_measured(row.of_prealloc),
            if_measured(row.of_best),
            percent(row.of_bare.median),
            percent(row.of_clear.median),
            percent(row.huge.1),
        ]
    })
}

fn remap(summary: &Summary) -> Table {
    let head = ["stock", "fast", "fast, fault-in", "fast, pins", "× stock"];
    cases(&summary.remap, head, |row| {
        let median = |seconds: f64| format!("{seconds:.3} s");
        [seconds(row.stock), seconds(row.fast), median(row.populate), median(row.pin), ratio(row.ratio)]
    })
}

fn unmap(summary: &Summary) -> Table {
    cases(&summary.unmap, ["stock", "fast", "× stock"], |row| {
        [seconds(row.stock), seconds(row.fast), ratio(row.ratio)]
    })
}

fn limits(summary: &Summary) -> Table {
    let row = |limit: &Limit| {
        let speed = |spread: Spread| format!("{:.2}", limit.bytes as f64 / GIB / spread.median);
        vec![
            limit.memory.name().into(),
            gib(limit.bytes),
            limit.cpus.to_string(),
            seconds(limit.clear),
            speed(limit.clear),
            seconds(limit.bare),
            speed(limit.bare),
        ]
    };
    Table {
        head: vec!["memory", "size", "CPUs", "clearing", "GiB/s", "bare fault-in", "GiB/s"],
        rows: summary.limits.iter().map(row).collect(),
    }
}

fn pure(summary: &Summary) -> Table {
    let row = |pure: &Pure| {
        let between = format!("{} and {}", micros(pure.between.0), micros(pure.between.1));
        vec![pure.name.clone(), micros(pure.median), between]
    };
    Table {
        head: vec!["transaction", "median", "95 % between"],
        rows: summary.pure.iter().map(row).collect(),
    }
}

/// The table of targets and results.
pub fn promises(targets: &[Target]) -> Table {
    let row = |target: &Target| {
        let reached = if target.reached { "reached" } else { "NOT reached" };
        vec![target.what.clone(), target.promised.clone(), target.found.clone(), reached.into()]
    };
    Table { head: vec!["promise", "target", "found", ""], rows: targets.iter().map(row).collect() }
}

/// Describes how memory was faulted in.
pub fn fault_in(row: &Row) -> String {
    match row.pages_per_call {
        None if row.case == Case::InTurn => "engine, maps after it".into(),
        None if row.case == Case::MapsOnly => "by the map calls".into(),
        None if row.case == Case::ByAddress => "engine, maps by address".into(),
        None if row.case == Case::Prealloc => "as QEMU's prealloc".into(),
        None if row.case == Case::RegionByRegion => "region by region".into(),
        None => "engine".into(),
        Some(1) => "1 page".into(),
        Some(pages) => format!("{pages} pages"),
    }
}

/// Formats a ratio as "1.87× [1.80 – 1.95]".
pub fn ratio(spread: Spread) -> String {
    format!("{} [{:.2} – {:.2}]", times(spread.median), spread.min, spread.max)
}

/// The same, or nothing if there are no values.
fn if_measured(spread: Spread) -> String {
    if spread.count > 0 { ratio(spread) } else { String::new() }
}

/// Formats seconds as "3.201 s [3.100 – 3.400]".
pub fn seconds(spread: Spread) -> String {
    format!("{:.3} s [{:.3} – {:.3}]", spread.median, spread.min, spread.max)
}

/// Renders a table with each column as wide as its widest cell.
fn lines(table: &Table) -> String {
    let head: Vec<String> = table.head.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&head).chain(&table.rows);
    let width =
        |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}
