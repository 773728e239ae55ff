//! Starts L2 again and again and times it: a measurement, for `cargo xtask bench --vm`.

use std::time::Duration;

use crate::checks::CheckName;
use crate::host::Host;
use crate::job::{Container, Mode};
use crate::memory::MemoryKind;
use crate::record::{Order, Start};
use crate::spec::{Label, Run, ScenarioSpec};

pub const NAME: &str = "boot-time";

/// A check of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Mappings(String),
    /// The library and the ioctl witness counted the same.
    Stats(String),
}

impl CheckName for Check {
    fn name(&self) -> String {
        match self {
            Check::Mappings(start) => format!("mappings-{start}"),
            Check::Stats(start) => format!("stats-{start}"),
        }
    }
}

/// None in the matrix: a bench asks for [`spec`].
pub fn specs() -> Vec<ScenarioSpec> {
    Vec::new()
}

/// Starts of guests of one size. The newest kernel is the one that has iommufd.
pub fn spec(container: Container, l2_memory_mib: u64, starts: Vec<(MemoryKind, u32)>) -> ScenarioSpec {
    let pairs = starts.len() as u64;
    ScenarioSpec {
        host: match container {
            Container::Type1 => Host::INTEL_DEBIAN,
            Container::Iommufd => Host::INTEL_NEWEST,
        },
        container,
        // A run alternates between all orders itself.
        modes: &[Mode::Fast],
        label: Label::Memory,
        l2_memory_mib,
        timed: true,
        prealloc_l1: true,
        starts,
        // Many times what they need.
        limit: Duration::from_secs(240 + pairs * (180 + l2_memory_mib / 5)),
        ..ScenarioSpec::plain(NAME, "starts of L2, timed", expected)
    }
}

fn expected(run: &Run) -> Vec<String> {
    let mut checks = Vec::new();
    for &(memory, round) in &run.spec.starts {
        for order in Order::ALL {
            let start = Start::name_of(memory, order, round);
            if order != Order::NoDevice {
                checks.push(Check::Mappings(start.clone()));
            }
            if order.mode() == Mode::Fast {
                checks.push(Check::Stats(start));
            }
        }
    }
    checks.iter().map(CheckName::name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_is_checked() {
        let spec = spec(Container::Type1, 1024, vec![(MemoryKind::Anon4k, 0), (MemoryKind::MemfdThp, 1)]);
        let names = spec.expected_checks(Mode::Fast);
        // The mappings of each order, and the library's own counters.
        assert_eq!(names.len(), 2 * 7);
        assert!(names.contains(&"stats-memfd-thp-fast-1".to_owned()), "{names:?}");
    }
}
