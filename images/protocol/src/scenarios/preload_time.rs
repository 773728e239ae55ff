//! Starts unpatched QEMU without and with libvfio_fast_preload in turns, and times it: a measurement.

use std::time::Duration;

use crate::checks::CheckName;
use crate::job::Mode;
use crate::memory::MemoryKind;
use crate::spec::{Label, Run, ScenarioSpec};

pub const NAME: &str = "preload-time";

/// Rounds with each memory.
const ROUNDS: u32 = 2;
const MEMORIES: [MemoryKind; 2] = [MemoryKind::AnonThp, MemoryKind::Anon4k];

/// A check of one round: both starts made the same calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SameCalls(pub MemoryKind, pub u32);

impl CheckName for SameCalls {
    fn name(&self) -> String {
        format!("same-calls-{}-{}", self.0.name(), self.1)
    }
}

pub fn specs() -> Vec<ScenarioSpec> {
    let rounds = |memory| (0..ROUNDS).map(move |round| (memory, round));
    vec![ScenarioSpec {
        modes: &[Mode::Reference],
        label: Label::Host,
        preload: true,
        l2_memory_mib: 4096,
        timed: true,
        only_by_name: true,
        prealloc_l1: true,
        starts: MEMORIES.into_iter().flat_map(rounds).collect(),
        limit: Duration::from_secs(1800),
        ..ScenarioSpec::plain(
            NAME,
            "starts of unpatched QEMU without and with the library preloaded, timed",
            expected,
        )
    }]
}

fn expected(run: &Run) -> Vec<String> {
    run.spec.starts.iter().map(|&(memory, round)| SameCalls(memory, round).name()).collect()
}
