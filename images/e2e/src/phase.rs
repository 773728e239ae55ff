//! The phases of a run, printed with the time since the start as they begin.

use std::time::Instant;

use vfio_fast_assets::progress::{elapsed, print};

/// One phase. A run enters the phases in this order, `Boot` and `Run` once per machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase<'a> {
    /// Fetching and building the parts of the machines.
    Setup,
    /// Starting a machine.
    Boot(&'a str),
    /// Running the machine's user space.
    Run(&'a str),
    /// Judging the records.
    Check,
}

/// Prints the phases.
#[derive(Debug)]
pub struct Phases {
    start: Instant,
}

impl Default for Phases {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Phases {
    /// Begins a phase, which ends the previous one.
    pub fn enter(&self, phase: Phase) {
        let at = elapsed(self.start.elapsed());
        match phase {
            Phase::Setup => print(&format!("== set up ({at})")),
            Phase::Boot(name) => print(&format!("== boot {name} ({at})")),
            Phase::Run(name) => print(&format!("== run {name} ({at})")),
            Phase::Check => print(&format!("== check ({at})")),
        }
    }
}
