//! What the doctor says about one thing.

use serde::Serialize;

/// Whether it stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Fine,
    /// It works, but slower or with less.
    Better,
    /// A guest with a passed-through device does not start.
    Blocks,
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What it is about: the name of a topic.
    pub topic: &'static str,
    /// Whether it stands in the way.
    pub verdict: Verdict,
    /// What was found, and what it means.
    pub what: String,
    /// What mends it: commands, or what to change. Each line stands for itself.
    pub fix: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn fine(topic: &'static str, what: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Fine, what: what.into(), fix: None }
    }

    /// It works, but slower or with less.
    pub fn better(topic: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Better, what: what.into(), fix: Some(fix.into()) }
    }

    /// A guest with a passed-through device does not start.
    pub fn blocks(topic: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Blocks, what: what.into(), fix: Some(fix.into()) }
    }
}
