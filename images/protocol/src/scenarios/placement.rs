//! L1 has two NUMA nodes, and a CPU on each.

use crate::checks::checks;
use crate::job::Mode;
use crate::machine::{Machine, Node};
use crate::spec::{Label, ScenarioSpec};

pub const NAME: &str = "placement";

checks! {
    #[serde(rename_all = "kebab-case")]
    Mappings,
    BothNodesWork,
    SmallPagesTogether,
    HugePagesTogether,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let node = Node { mib: 1536, cpus: 1 };
    let type1 = ScenarioSpec {
        // One boot starts QEMU in both modes.
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 512,
        machine: Some(Machine { nodes: vec![node; 2], kernel_options: "" }),
        ..ScenarioSpec::plain(
            NAME,
            "two NUMA nodes: RAM without a policy is on the node where stock puts it",
            Check::expected_names,
        )
    };
    vec![type1]
}
