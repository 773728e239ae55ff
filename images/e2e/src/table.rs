//! Results as tables and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::record::{BarCosts, Facts};

use super::judge::Verdict;

/// The witnesses that counted what the table shows.
const WITNESS: &str = "L1 kernel tracepoints (calls, bytes), ioctl preload (times)";

/// Writes one JSON object per run.
pub fn write_json(path: &Path, verdicts: &[Verdict]) -> Result<()> {
    let runs: Vec<Value> = verdicts.iter().map(object).collect();
    fs::write(path, serde_json::to_string_pretty(&runs)? + "\n")?;
    Ok(())
}

fn object(verdict: &Verdict) -> Value {
    let checks: Vec<Value> =
        verdict.checks.iter().map(|c| json!({ "name": c.name, "ok": c.ok, "detail": c.detail })).collect();
    let mut object = json!({
        "scenario": verdict.name,
        "mode": verdict.mode.name(),
        "verdict": if verdict.passed() { "pass" } else { "fail" },
        "seconds": verdict.seconds,
        "retries": verdict.retries,
        "witness": WITNESS,
        "checks": checks,
    });
    if let Some(facts) = &verdict.facts {
        let facts = serde_json::to_value(facts).expect("numbers with names");
        if let (Value::Object(object), Value::Object(facts)) = (&mut object, facts) {
            object.extend(facts);
        }
    }
    object
}

/// BARs that total less than this get no line.
const LARGE: u64 = 1 << 30;

type Cell = fn(&Facts) -> String;

const ROWS: [(&str, Cell); 10] = [
    ("map calls", |f| f.map_calls.to_string()),
    ("unmap calls", |f| f.unmap_calls.to_string()),
    ("mapped", |f| gib(f.map_bytes)),
    ("unmapped", |f| gib(f.unmap_bytes)),
    ("wanted at the end", |f| gib(f.wanted_bytes)),
    ("amplification", |f| format!("{:.2}", ratio(f.map_bytes, f.wanted_bytes))),
    ("amplification, RAM", |f| format!("{:.2}", ratio(f.ram_map_bytes, f.wanted_ram_bytes))),
    ("time in map", |f| format!("{:.2} s", (f.map_ns + f.populate_ns) as f64 / 1e9)),
    ("time in unmap", |f| format!("{:.2} s", f.unmap_ns as f64 / 1e9)),
    ("first guest output", |f| seconds(f.first_output_ms)),
];

/// Prints the result of each run and, for every timed scenario, a table with one column per mode.
pub fn print(verdicts: &[Verdict]) {
    println!();
    for verdict in verdicts {
        let word = if verdict.passed() { "pass" } else { "FAIL" };
        let checks = verdict.checks.len();
        println!(
            "{word}  {:26} {:10} {checks} checks, {:.0} s",
            verdict.name,
            verdict.mode.name(),
            verdict.seconds
        );
        for (cause, times) in &verdict.retries {
            println!("      retry: {cause}: {times}");
        }
        let bars = verdict.facts.as_ref().map(|facts| facts.bars).unwrap_or_default();
        if bars.map_bytes >= LARGE {
            println!("      BARs: {}", bar_costs(bars));
        }
    }
    let timed = verdicts.iter().filter(|v| v.timed && v.facts.is_some());
    let mut names: Vec<&str> = timed.map(|v| v.name.as_str()).collect();
    names.dedup();
    for name in &names {
        let runs = verdicts.iter().filter(|v| v.name == **name);
        let columns: Vec<(Mode, &Facts)> =
            runs.filter_map(|v| v.facts.as_ref().map(|facts| (v.mode, facts))).collect();
        print!("\n{name:<20}");
        columns.iter().for_each(|(mode, _)| print!("{:>14}", mode.name()));
        println!();
        for (label, cell) in ROWS {
            print!("{label:<20}");
            columns.iter().for_each(|(_, facts)| print!("{:>14}", cell(facts)));
            println!();
        }
    }
    if !names.is_empty() {
        println!("\ncounted by: {WITNESS}");
    }
}

/// The retries of all runs, by cause.
pub fn retries(verdicts: &[Verdict]) -> String {
    let mut causes = BTreeMap::<&str, u32>::new();
    for (cause, times) in verdicts.iter().flat_map(|verdict| &verdict.retries) {
        *causes.entry(cause).or_default() += times;
    }
    if causes.is_empty() {
        return "retries: none".into();
    }
    let causes: Vec<String> = causes.iter().map(|(cause, times)| format!("{cause}: {times}")).collect();
    format!("retries: {}", causes.join("; "))
}

/// The cost of mapping and unmapping BARs, per GiB.
fn bar_costs(bars: BarCosts) -> String {
    let each = |ns: u64, bytes: u64| ns as f64 / 1e6 / (bytes as f64 / f64::from(1 << 30));
    format!(
        "{} mapped in {} calls, {:.2} ms/GiB; {} unmapped, {:.2} ms/GiB",
        gib(bars.map_bytes),
        bars.map_calls,
        each(bars.map_ns, bars.map_bytes),
        gib(bars.unmap_bytes),
        each(bars.unmap_ns, bars.unmap_bytes)
    )
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or("-".into(), |ms| format!("{:.2} s", ms as f64 / 1e3))
}

fn gib(bytes: u64) -> String {
    format!("{:.3} GiB", bytes as f64 / f64::from(1 << 30))
}

fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}
