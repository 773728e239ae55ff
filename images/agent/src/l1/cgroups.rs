//! Groups of processes (version 2) with limits.

use std::fs;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

use crate::machine;

const ROOT: &str = "/sys/fs/cgroup";

/// A group.
pub struct Group(String);

impl Group {
    /// The group that has everything that is in no other.
    pub fn root() -> Self {
        Self(ROOT.to_owned())
    }

    /// Makes a group below the root.
    pub fn new(name: &str) -> Result<Self> {
        let path = format!("{ROOT}/{name}");
        fs::create_dir_all(&path).with_context(|| format!("cannot make the group {path}"))?;
        Ok(Self(path))
    }

    /// Writes one of its settings.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        machine::set(&format!("{}/{setting}", self.0), value)
    }

    /// A number that the kernel keeps of it.
    pub fn number(&self, name: &str) -> Result<u64> {
        let path = format!("{}/{name}", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
        text.trim().parse().with_context(|| format!("{path} is no number"))
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }
}

/// Allows groups to limit this: `memory`, `cpu`, `cpuset`.
pub fn enable(controllers: &[&str]) -> Result<()> {
    mount("cgroup2", ROOT, "cgroup2", MountFlags::empty(), c"").context("cannot mount cgroups")?;
    controllers.iter().try_for_each(|name| Group::root().set("cgroup.subtree_control", &format!("+{name}")))
}

/// Runs `work` in that group: processes that it starts stay there, this one returns to the root.
pub fn within<T>(group: &Group, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = std::process::id();
    group.add(own)?;
    let result = work();
    Group::root().add(own)?;
    result
}
