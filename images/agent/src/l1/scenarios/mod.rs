//! One scenario a file: what L1 does with QEMU and L2, and what it checks on the way. The file of the
//! same name in the protocol has the rest. `build.rs` lists the files.

use anyhow::{Context, Result};

use crate::l1::lab::Lab;

type Story = fn(&Lab) -> Result<()>;

include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// Runs the scenario of the lab's job.
pub fn run(lab: &Lab) -> Result<()> {
    let story = STORIES.iter().find(|(name, _)| *name == lab.job.scenario);
    let (_, story) = story.with_context(|| format!("there is no scenario {}", lab.job.scenario))?;
    story(lab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_story() {
        let stories: Vec<&str> = STORIES.iter().map(|(name, _)| *name).collect();
        assert_eq!(stories, vfio_fast_protocol::scenarios::names().collect::<Vec<_>>());
    }
}
