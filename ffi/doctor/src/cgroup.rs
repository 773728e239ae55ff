//! The limits of the cgroup that the doctor runs in, and of those above it.

use std::path::Path;

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;
use crate::huge_pages;
use crate::size::Size;

const TOPIC: &str = "cgroup";

/// The files of a controller in this cgroup and in those above it, with their texts.
fn files(host: &Host, file: &str, old: (&str, &str)) -> Vec<(String, String)> {
    let membership = host.read("proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("sys/fs/cgroup".to_owned(), file),
            _ if controllers.split(',').any(|name| name == old.0) => {
                (format!("sys/fs/cgroup/{controllers}"), old.1)
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let name = Path::new(&root).join(group).join(file);
            let name = name.to_string_lossy().into_owned();
            // A container sees its own cgroup as the root.
            found.extend(host.read(&name).map(|text| (name, text)));
        }
    }
    found
}

/// The whole CPUs that the quotas allow, at least one; `None` without a quota. As the library rounds it
/// (`sys/cgroup.rs`).
pub fn cpu_quota(host: &Host) -> Option<(u64, String)> {
    let files = files(host, "cpu.max", ("cpu", "cpu.cfs_quota_us"));
    let quotas = files.into_iter().filter_map(|(name, text)| {
        let (time, period) = text.split_once(' ')?;
        Some((time.parse::<u64>().ok()?.checked_div(period.parse().ok()?)?.max(1), name))
    });
    quotas.min()
}

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let limits = files(host, "memory.max", ("memory", "memory.limit_in_bytes"));
    let total = host.meminfo("MemTotal:").unwrap_or(u64::MAX);
    let limits = limits.into_iter().filter_map(|(name, text)| Some((text.parse::<u64>().ok()?, name)));
    // Version 1 writes "no limit" as a number larger than any memory.
    let Some((limit, file)) = limits.filter(|(limit, _)| *limit < total).min() else {
        return vec![Finding::fine(TOPIC, "no limit of memory in this cgroup")];
    };
    let what = format!("this cgroup may use {}", Size(limit));
    let Some(guest) = ask.guest else { return vec![Finding::fine(TOPIC, what)] };
    let what = format!("{what} (/{file}); the guest needs {}", Size(guest));
    if guest < limit {
        return vec![Finding::fine(TOPIC, what)];
    }
    let fix = format!(
        "start QEMU in another cgroup: systemd-run --scope -p MemoryMax=infinity ...\nor: echo {} > /{file}",
        if file.ends_with("memory.max") { "max" } else { "-1" }
    );
    let pool = huge_pages::largest_free(host);
    if guest <= pool {
        return vec![Finding::better(
            TOPIC,
            format!("{what}: only a pool of huge pages does not count"),
            fix,
        )];
    }
    vec![Finding::blocks(TOPIC, what, fix)]
}
