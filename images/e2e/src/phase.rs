//! What a run is doing: typed, printed when entered with the time since the start.

use std::time::Instant;

use vfio_fast_assets::progress::{elapsed, print};

/// One phase. A run enters them in this order; boot and run once per machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase<'a> {
    /// Fetch and build what the machines are made of.
    Setup,
    /// Start a machine.
    Boot(&'a str),
    /// The machine's user space is at work.
    Run(&'a str),
    /// Judge what was told.
    Check,
}

/// Prints phases.
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
    /// A phase begins; the one before has ended.
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
