//! What criterion measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One bench of the pure part.
#[derive(Clone, Debug, Serialize)]
pub struct Pure {
    /// What was done.
    pub name: String,
    /// Median nanoseconds of one.
    pub median: f64,
    /// Between these lies the median with 95 % confidence.
    pub between: (f64, f64),
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

#[derive(Deserialize)]
struct Bench {
    full_id: String,
}

/// Reads what a run left in criterion's folder, by name.
pub fn read(folder: &Path) -> Result<Vec<Pure>> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let new = item?.path().join("new");
        if !new.is_dir() {
            continue;
        }
        let bench: Bench = serde_json::from_slice(&fs::read(new.join("benchmark.json"))?)?;
        let estimates: Estimates = serde_json::from_slice(&fs::read(new.join("estimates.json"))?)?;
        let Estimate { point_estimate, confidence_interval } = estimates.median;
        let between = (confidence_interval.lower_bound, confidence_interval.upper_bound);
        found.push(Pure { name: bench.full_id, median: point_estimate, between });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
