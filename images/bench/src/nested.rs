//! Boots L1 for measurements.

use std::path::Path;

use anyhow::Result;

use super::summary::Spread;
use vfio_fast_assets::cache::Cache;
use vfio_fast_e2e::{Accel, Parts, Phase, Phases, Runs, ScenarioSpec, Verdict};
use vfio_fast_protocol::bench::host::{Busy, machine};
use vfio_fast_protocol::bench::native::Machine;

/// The outcome of the boots.
pub struct Nested {
    pub machine: Machine,
    pub accel: Accel,
    /// One verdict per boot.
    pub verdicts: Vec<Verdict>,
    /// The share of all CPUs' time that other processes used.
    pub others: Spread,
}

/// Boots L1 once per plan. `pins` is the backend's name in the report.
pub fn run(plans: &[ScenarioSpec], folder: &Path, pins: &str) -> Result<Nested> {
    let phases = Phases::default();
    phases.enter(Phase::Setup);
    let cache = Cache::open()?;
    let parts = Parts::prepare(&cache, folder, plans)?;
    let accel = vfio_fast_e2e::choose(&parts, folder)?;
    let machine = machine(pins);
    let runs = Runs { parts: &parts, folder, accel, phases: &phases };
    let before = Busy::now();
    let (verdicts, outcome) = runs.all(plans);
    let others = Spread::of([Busy::now().others_since(&before)]);
    outcome?;
    Ok(Nested { machine, accel, verdicts, others })
}
