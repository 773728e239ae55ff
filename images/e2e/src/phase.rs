//! What a run is doing: typed, printed when entered with the time since the start.

use std::time::Instant;

use vfio_fast_assets::progress::elapsed;

/// One phase. A run enters them in this order; boot and run once per machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase<'a> {
    /// Fetch and build what does not change.
    Setup,
    /// Build what does.
    Build,
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
            Phase::Setup => println!("== setup ({at})"),
            Phase::Build => println!("== build ({at})"),
            Phase::Boot(name) => println!("== boot {name} ({at})"),
            Phase::Run(name) => println!("== run {name} ({at})"),
            Phase::Check => println!("== check ({at})"),
        }
    }
}
