//! All findings, as text for people and as JSON for programs.

use std::fmt::Write;

use serde::Serialize;

use crate::ask::Ask;
use crate::finding::{Finding, Verdict};
use crate::host::Host;
use crate::size::Size;
use crate::{cgroup, cpus, devices, huge_pages, iommu, kernel, libvirt, limits, memory, numa, vfio};

/// What a topic looks at.
type Check = fn(&Host, &Ask) -> Vec<Finding>;

/// The topics, in the order of the report: what blocks most often comes first.
const CHECKS: [Check; 11] = [
    iommu::check,
    vfio::check,
    devices::check,
    limits::check,
    memory::check,
    huge_pages::check,
    numa::check,
    cgroup::check,
    cpus::check,
    kernel::check,
    libvirt::check,
];

/// Columns of the text.
const COLUMNS: usize = 100;
const TOPIC_COLUMNS: usize = 12;
const VERDICT_COLUMNS: usize = 8;

/// The report; as JSON, its fields are promised.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Incremented when a field changes its meaning or goes.
    version: u32,
    /// Whether nothing blocks.
    can_work: bool,
    /// Bytes of RAM that were asked about.
    guest_bytes: Option<u64>,
    devices: u64,
    viommu: bool,
    findings: Vec<Finding>,
}

impl Report {
    /// Looks at everything.
    pub fn new(host: &Host, ask: &Ask) -> Self {
        let findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(host, ask)).collect();
        let can_work = findings.iter().all(|finding| finding.verdict != Verdict::Blocks);
        Self {
            version: 1,
            can_work,
            guest_bytes: ask.guest,
            devices: ask.devices,
            viommu: ask.viommu,
            findings,
        }
    }

    /// Whether nothing blocks.
    pub fn can_work(&self) -> bool {
        self.can_work
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut topic = "";
        let indent = " ".repeat(TOPIC_COLUMNS + VERDICT_COLUMNS);
        // Commands begin further left, so that they fit into a line and can be copied.
        let fix_indent = " ".repeat(TOPIC_COLUMNS);
        if let Some(guest) = self.guest_bytes {
            let viommu = if self.viommu { " and a vIOMMU" } else { "" };
            let _ = writeln!(
                text,
                "For a guest of {} with {} device{}{viommu}:\n",
                Size(guest),
                self.devices,
                if self.devices == 1 { "" } else { "s" }
            );
        }
        for finding in &self.findings {
            let name = if finding.topic == topic { "" } else { finding.topic };
            topic = finding.topic;
            let verdict = match finding.verdict {
                Verdict::Fine => "fine",
                Verdict::Better => "better",
                Verdict::Blocks => "BLOCKS",
            };
            let head = format!("{name:<TOPIC_COLUMNS$}{verdict:<VERDICT_COLUMNS$}");
            wrap(&mut text, &head, &indent, &finding.what);
            for line in finding.fix.iter().flat_map(|fix| fix.lines()) {
                wrap(&mut text, &format!("{fix_indent}> "), &format!("{fix_indent}    "), line);
            }
        }
        let _ = write!(text, "\n{}", self.summary());
        text
    }

    fn summary(&self) -> String {
        let count = |verdict| self.findings.iter().filter(|finding| finding.verdict == verdict).count();
        let (better, blocks) = (count(Verdict::Better), count(Verdict::Blocks));
        let end = match (blocks, better) {
            (0, 0) => "This host is ready.".to_owned(),
            (0, _) => format!("This host can work. Could be better: {better}."),
            _ => format!("This host cannot work yet. Blocking: {blocks}; could be better: {better}."),
        };
        let legend = if blocks + better > 0 { " Lines with > say what mends it." } else { "" };
        format!("{end}{legend}\n")
    }
}

/// Appends `words` after `head`, with lines of at most [`COLUMNS`]; `indent` begins the others. A word that is longer
/// than a line stays whole: it is a path.
fn wrap(text: &mut String, head: &str, indent: &str, words: &str) {
    let mut line = head.to_owned();
    let mut first = true;
    // Two spaces inside a command stay.
    for word in words.split(' ') {
        if !first && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            text.push_str(line.trim_end());
            text.push('\n');
            line = format!("{indent}{word}");
            continue;
        }
        if !first {
            line.push(' ');
        }
        line.push_str(word);
        first = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}
