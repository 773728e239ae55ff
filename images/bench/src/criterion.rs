//! Reads criterion's results.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One benchmark of code that makes no system calls.
#[derive(Clone, Debug, Serialize)]
pub struct Pure {
    pub name: String,
    /// The median of one iteration in nanoseconds.
    pub median: f64,
    /// The 95 % confidence interval of the median.
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

/// Reads the results in criterion's folder, sorted by name.
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
