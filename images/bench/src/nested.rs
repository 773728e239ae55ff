//! Boots L1 for measurements, and describes where they were made.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::summary::Spread;
use super::table::about_run;
use vfio_fast_assets::cache::Cache;
use vfio_fast_e2e::{Accel, Parts, Phase, Phases, Runs, ScenarioSpec, Verdict};
use vfio_fast_protocol::bench::host::{Busy, machine};
use vfio_fast_protocol::bench::native::Machine;

/// The note on times in an emulated L1.
const TRANSLATED: &str = "Under TCG every instruction of L1, its kernel's included, is translated: seconds are many times those of hardware.";

/// Where a part of the report was measured, and how to repeat it.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The machine that L1 ran on.
    machine: Machine,
    /// The command line that repeats the run.
    pub command: String,
    /// The accelerator of L1.
    accel: String,
    /// Whether L1 ran under TCG.
    pub translated: bool,
    /// The share of all CPUs' time that other processes used on the machine that L1 ran on, over the boots of L1.
    others: Spread,
}

impl About {
    pub fn new(machine: Machine, accel: Accel, others: Spread) -> Self {
        let translated = matches!(accel, Accel::Tcg(_));
        Self { machine, command: String::new(), accel: accel.to_string(), translated, others }
    }

    /// The lines that begin a section. `l1` describes L1.
    pub fn lines(&self, rounds: usize, l1: &str) -> Vec<String> {
        let mut lines = about_run(&self.machine, &self.command, rounds, self.others);
        lines.push(format!("L1 has 2 CPUs and runs under {}: {l1}", self.accel));
        lines.extend(self.translated.then(|| TRANSLATED.to_owned()));
        lines
    }
}

/// Everything that boots of L1 need.
pub struct Lab<'a> {
    parts: Parts,
    phases: Phases,
    folder: &'a Path,
    accel: Accel,
    /// This machine, before the first boot.
    machine: Machine,
}

/// The outcome of some boots.
pub struct Booted {
    /// One verdict per boot.
    pub verdicts: Vec<Verdict>,
    /// The first failure of a boot.
    pub outcome: Result<()>,
    /// The share of all CPUs' time that other processes used.
    pub others: f64,
}

impl<'a> Lab<'a> {
    /// Prepares everything that the plans need. `pins` is the backend's name in the report.
    pub fn prepare(plans: &[ScenarioSpec], folder: &'a Path, pins: &str) -> Result<Self> {
        let phases = Phases::default();
        phases.enter(Phase::Setup);
        let parts = Parts::prepare(&Cache::open()?, folder, plans)?;
        let accel = vfio_fast_e2e::choose(&parts, folder)?;
        Ok(Self { parts, phases, folder, accel, machine: machine(pins) })
    }

    /// Boots L1 once per plan.
    pub fn boot(&self, plans: &[ScenarioSpec]) -> Booted {
        let runs = Runs { parts: &self.parts, folder: self.folder, accel: self.accel, phases: &self.phases };
        let before = Busy::now();
        let (verdicts, outcome) = runs.all(plans);
        Booted { verdicts, outcome, others: Busy::now().others_since(&before) }
    }

    pub fn about(&self, others: Spread) -> About {
        About::new(self.machine.clone(), self.accel, others)
    }
}
