//! Boots of L1 in which something is measured.

use std::path::Path;

use anyhow::Result;

use super::summary::Spread;
use vfio_fast_assets::cache::Cache;
use vfio_fast_e2e::{Accel, Parts, Phase, Phases, Runs, ScenarioSpec, Verdict};
use vfio_fast_protocol::bench::host::{Busy, machine};
use vfio_fast_protocol::bench::native::Machine;

/// What came of them.
pub struct Nested {
    /// Where L1 ran.
    pub machine: Machine,
    /// How it ran.
    pub accel: Accel,
    /// One for each boot.
    pub verdicts: Vec<Verdict>,
    /// The part of all CPUs' time that other processes used.
    pub others: Spread,
}

/// Boots L1 for each of these plans. `pins` is what maps there.
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
