//! The page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vfio_fast_assets::progress::elapsed;
use vfio_fast_protocol::spec::ScenarioSpec;

use super::timeline::{self, Timeline};
use super::{Run, headline, plot};
use crate::judge::Verdict;
use crate::scenario;

const STYLE: &str = include_str!("style.css");

/// The page of a run in `folder`, to which its links are relative.
pub fn page(folder: &Path, run: &Run, verdicts: &[Verdict], timeline: Option<&Timeline>) -> String {
    let title = format!("vfio-fast e2e: {}", headline(verdicts));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(timeline::STYLE)) (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                (environment(run))
                h2 { "Scenarios and hosts" }
                (matrix(verdicts))
                @for plot in plot::plots(verdicts) {
                    h2 { (plot.title) }
                    p.faint { (plot.text) }
                    div.wide { (plot.picture) }
                }
                @if let Some(timeline) = timeline {
                    h2 { (timeline.title) }
                    p.faint { (timeline.text) }
                    div.wide { (timeline.picture) }
                }
                h2 { "Runs" }
                @for verdict in verdicts { (details(folder, verdict)) }
            }
        }
    };
    page.into_string()
}

fn environment(run: &Run) -> Markup {
    html! {
        dl {
            @for (name, value) in &run.environment { dt { (name) } dd { (value) } }
            dt { "took" } dd { (elapsed(run.took)) }
            dt { "retries" } dd { (run.retries.trim_start_matches("retries: ")) }
        }
    }
}

/// One row a scenario, one column a host. A cell has the modes, each with a link to its run.
fn matrix(verdicts: &[Verdict]) -> Markup {
    let specs: Vec<(ScenarioSpec, &Verdict)> =
        verdicts.iter().map(|verdict| (scenario::of(&verdict.name), verdict)).filter_map(both).collect();
    let hosts: BTreeSet<String> = specs.iter().map(|(spec, _)| scenario::place(spec)).collect();
    let scenarios: BTreeSet<&str> = specs.iter().map(|(spec, _)| spec.scenario).collect();
    html! {
        div.wide {
            table {
                tr { th { "scenario" } @for host in &hosts { th { (host) } } }
                @for name in &scenarios {
                    tr {
                        th { (name) }
                        @for host in &hosts {
                            td {
                                @for (spec, verdict) in &specs {
                                    @if spec.scenario == *name && scenario::place(spec) == *host {
                                        (link(verdict)) " "
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn both<A, B>((first, second): (Option<A>, B)) -> Option<(A, B)> {
    Some((first?, second))
}

fn id(verdict: &Verdict) -> String {
    format!("{}-{}", verdict.name, verdict.mode.name())
}

fn class(ok: bool) -> &'static str {
    if ok { "pass" } else { "fail" }
}

fn link(verdict: &Verdict) -> Markup {
    html! { a class=(class(verdict.passed())) href={ "#" (id(verdict)) } { (verdict.mode.name()) } }
}

fn details(folder: &Path, verdict: &Verdict) -> Markup {
    let passed = verdict.passed();
    html! {
        details id=(id(verdict)) open[!passed] {
            summary {
                span class=(class(passed)) { @if passed { "pass" } @else { "FAIL" } }
                " " (verdict.name) " " span.faint {
                    (verdict.mode.name()) ", " (verdict.checks.len()) " checks, " (format!("{:.0}", verdict.seconds)) " s"
                }
            }
            @if let Some(spec) = scenario::of(&verdict.name) { p { (spec.what) } }
            @for (cause, times) in &verdict.retries { p { "retry: " (cause) ": " (times) } }
            table {
                tr { th { "check" } th { "result" } th { "seen" } }
                @for check in &verdict.checks {
                    tr {
                        td { (check.name) }
                        td class=(class(check.ok)) { @if check.ok { "ok" } @else { "FAILED" } }
                        td { (check.detail) }
                    }
                }
            }
            p {
                "Logs:"
                @for file in logs(folder, &verdict.folder) { " " a href=(file.0) { (file.1) } }
            }
        }
    }
}

/// The files of a run: their paths from `folder`, and their names.
fn logs(folder: &Path, own: &Path) -> Vec<(String, String)> {
    let Ok(inside) = own.strip_prefix(folder) else { return Vec::new() };
    let entries = fs::read_dir(own).into_iter().flatten().flatten();
    let text = |name: &str| [".log", ".jsonl", ".txt"].iter().any(|end| name.ends_with(end));
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: BTreeSet<String> = names.filter(|name| text(name)).collect();
    names.into_iter().map(|name| (inside.join(&name).display().to_string(), name)).collect()
}
