//! The summary, for a merge request or a mail.

use std::fmt::Write as _;

use vfio_fast_assets::progress::elapsed;

use super::{Run, headline};
use crate::judge::Verdict;
use crate::scenario;

/// The summary: what failed is at the top, with the reasons.
pub fn summary(run: &Run, verdicts: &[Verdict]) -> String {
    let mut text = format!("# vfio-fast e2e: {}\n\n", headline(verdicts));
    for (name, value) in &run.environment {
        line(&mut text, &format!("- {name}: {value}"));
    }
    line(&mut text, &format!("- took {}; {}", elapsed(run.took), run.retries));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed());
    for verdict in failed.clone() {
        line(&mut text, &format!("\n## {} {}\n", verdict.name, verdict.mode.name()));
        for check in verdict.checks.iter().filter(|check| !check.ok) {
            line(&mut text, &format!("- {}: {}", check.name, cell(&check.detail)));
        }
    }
    line(&mut text, "\n| scenario | host | mode | verdict | checks | seconds |\n|---|---|---|---|---:|---:|");
    let passed = verdicts.iter().filter(|verdict| verdict.passed());
    for verdict in failed.chain(passed) {
        let spec = scenario::of(&verdict.name);
        let (name, host) = spec.map_or_else(
            || (verdict.name.clone(), String::new()),
            |spec| (spec.scenario.to_owned(), scenario::place(&spec)),
        );
        let word = if verdict.passed() { "pass" } else { "**FAIL**" };
        let (mode, checks) = (verdict.mode.name(), verdict.checks.len());
        line(
            &mut text,
            &format!("| {name} | {host} | {mode} | {word} | {checks} | {:.0} |", verdict.seconds),
        );
    }
    text
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Text without what would end a cell of a table or a line.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
