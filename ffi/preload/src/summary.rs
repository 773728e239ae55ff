//! The text of what happened.

use std::fmt::Write;
use std::sync::atomic::AtomicU64;

use crate::aside::Aside;
use crate::counters::{Counters, get};
use crate::request::Kind;

/// The summary of process `id`, which is called `name`; `None` if it mapped and unmapped nothing.
pub fn text(counters: &Counters, id: u32, name: &str) -> Option<String> {
    let kinds = || Kind::ALL.into_iter().map(|kind| (kind, &counters.calls[kind as usize]));
    if kinds().all(|(_, of)| get(&of.calls) == 0) {
        return None;
    }
    let mut text = format!("vfio-fast-preload {}: process {id} ({name})\n", env!("CARGO_PKG_VERSION"));
    let mut line = |what: &str, calls: &AtomicU64, bytes: &AtomicU64, rest: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {what:<20}{:>8} calls {:>11}{rest}", get(calls), size(get(bytes)));
    };
    for (kind, of) in kinds().filter(|(_, of)| get(&of.calls) > 0) {
        let mut rest = format!("{}, the longest{}", seconds(&of.ns), seconds(&of.longest_ns));
        if get(&of.failed) > 0 {
            let _ = write!(rest, "; {} failed", get(&of.failed));
        }
        line(kind.name(), &of.calls, &of.bytes, &rest);
    }
    let of = &counters.faulted_in;
    if get(&of.calls) > 0 {
        let mut rest = format!("{}, threads: {}", seconds(&of.ns), get(&of.threads));
        let _ = write!(rest, ", in huge pages: {}", size(get(&of.huge_bytes)));
        if get(&of.not_started) > 0 {
            let _ = write!(rest, ", threads that could not be started: {}", get(&of.not_started));
        }
        line("faulted in before", &of.calls, &of.bytes, &rest);
    }
    for aside in Aside::ALL {
        let of = &counters.passed_on[aside as usize];
        if get(&of.calls) > 0 {
            let rest = format!("{}: {}", seconds(&of.ns), aside.text());
            line("not faulted in", &of.calls, &of.bytes, &rest);
        }
    }
    text += "  Times are measured in this run. What is saved shows in a run without this library.\n";
    Some(text)
}

fn seconds(ns: &AtomicU64) -> String {
    format!("{:>10.3} s", get(ns) as f64 / 1e9)
}

fn size(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> shift > 0 {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vfio_fast_engine::populate::Report;

    use super::*;

    #[test]
    fn the_summary_has_every_number() {
        let counters = Counters::new();
        assert_eq!(text(&counters, 7, "x"), None);
        counters.answered(Kind::Map, true, 3 << 30, Duration::from_millis(500));
        counters.answered(Kind::Map, false, 3 << 30, Duration::from_millis(250));
        counters.answered(Kind::Unmap, true, 4096, Duration::from_millis(1));
        let report = Report {
            bytes: 2 << 30,
            huge_bytes: 1 << 30,
            threads: 2,
            thread_start_failures: 1,
            ..Report::default()
        };
        counters.faulted_in(&report, Duration::from_millis(125));
        counters.passed_on(Aside::Present, 1 << 30, Duration::from_millis(2));
        let all = text(&counters, 7, "qemu").unwrap();
        let lines: Vec<Vec<&str>> = all.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][2..], ["process", "7", "(qemu)"]);
        let map = "type1 map 2 calls 3.0 GiB 0.750 s, the longest 0.500 s; 1 failed";
        assert_eq!(lines[1].join(" "), map);
        assert_eq!(lines[2].join(" "), "type1 unmap 1 calls 4.0 KiB 0.001 s, the longest 0.001 s");
        let faulted = "faulted in before 1 calls 2.0 GiB 0.125 s, threads: 2, in huge pages: 1.0 GiB, \
                       threads that could not be started: 1";
        assert_eq!(lines[3].join(" "), faulted);
        let present = "not faulted in 1 calls 1.0 GiB 0.002 s: the memory is present already";
        assert_eq!(lines[4].join(" "), present);
        assert_eq!(lines.len(), 6);
        counters.clear();
        assert_eq!(text(&counters, 7, "x"), None);
    }
}
