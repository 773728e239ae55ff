//! AppArmor: loads profiles, confines programs, and counts what was denied.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

use crate::machine::{self, KernelLog};

const SECURITY: &str = "/sys/kernel/security";
/// The profile of a program that has none.
pub const UNCONFINED: &str = "unconfined";
/// A kernel thread prints the records, long before that.
const PRINTED_WITHIN: Duration = Duration::from_secs(1);

/// Loads these profiles, files in `/vft`, and lets the kernel print every denial.
pub fn load(profiles: &[&str]) -> Result<()> {
    mount("securityfs", SECURITY, "securityfs", MountFlags::empty(), c"")
        .context("cannot mount securityfs")?;
    for name in profiles {
        let profile = fs::read(format!("/vft/{name}")).with_context(|| format!("no profile {name}"))?;
        fs::write(format!("{SECURITY}/apparmor/.replace"), profile)
            .with_context(|| format!("cannot load the profile {name}"))?;
    }
    // By default ten records in five seconds.
    machine::set("/proc/sys/kernel/printk_ratelimit", "0")
}

/// The profile of programs that this thread starts from now on.
pub fn confine(profile: &str) -> Result<()> {
    machine::set("/proc/thread-self/attr/apparmor/exec", &format!("exec {profile}"))
}

/// The profile of a process and its mode, as the kernel prints them.
pub fn profile_of(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/attr/apparmor/current"));
    Ok(text.context("no AppArmor profile")?.trim().to_owned())
}

/// How often each access was denied: an operation and a path.
pub type Denials = BTreeMap<String, u64>;

/// The kernel's record of what it denied.
pub struct Audit(KernelLog);

impl Audit {
    /// Begins with the next denial.
    pub fn new() -> Result<Self> {
        let mut audit = Self(KernelLog::open()?);
        audit.denials()?;
        Ok(audit)
    }

    /// The denials since the last call.
    pub fn denials(&mut self) -> Result<Denials> {
        thread::sleep(PRINTED_WITHIN);
        let mut denials = Denials::new();
        for denied in self.0.new_lines()?.iter().filter_map(|line| denied(line)) {
            *denials.entry(denied).or_default() += 1;
        }
        Ok(denials)
    }
}

/// The access that this line of the kernel's log denies: `open /proc/PID/pagemap`.
fn denied(line: &str) -> Option<String> {
    let (_, record) = line.split_once("apparmor=\"DENIED\"")?;
    let field = |name: &str| record.split_once(name)?.1.split('"').next();
    let path = field(" name=\"").unwrap_or("-");
    let parts: Vec<&str> = path.split('/').map(|part| if is_number(part) { "PID" } else { part }).collect();
    Some(format!("{} {}", field("operation=\"").unwrap_or("-"), parts.join("/")))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::denied;

    #[test]
    fn a_record_names_what_was_denied() {
        let line = "<5>[   12.345678] audit: type=1400 audit(1.2:3): apparmor=\"DENIED\" operation=\"open\" class=\"file\" \
            profile=\"libvirt-vft\" name=\"/proc/77/task/78/pagemap\" pid=77 comm=\"qemu\" requested_mask=\"r\"";
        assert_eq!(denied(line).as_deref(), Some("open /proc/PID/task/PID/pagemap"));
        let line =
            "<5>[1.0] audit: apparmor=\"DENIED\" operation=\"capable\" profile=\"x\" pid=7 comm=\"qemu\"";
        assert_eq!(denied(line).as_deref(), Some("capable -"));
        assert_eq!(denied("<6>[1.0] audit: apparmor=\"STATUS\" operation=\"profile_load\""), None);
    }
}
