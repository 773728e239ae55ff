//! `cargo xtask setup --check`: reports the properties of this machine that matter to the other verbs.

use std::fs::{self, File};
use std::path::Path;
use std::thread;

use anyhow::Result;
use rustix::process::geteuid;

use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::packages;

/// Prints one line per property.
pub fn report() -> Result<()> {
    let say = |what: &str, value: &str| println!("{what:<26}{value}");
    let cache = Cache::open()?;
    say("root", yes(geteuid().is_root()));
    say("CPUs this process may use", &thread::available_parallelism()?.to_string());
    say("memory", &field("/proc/meminfo", "MemTotal:"));
    say("may lock (memlock)", &field("/proc/self/limits", "Max locked memory"));
    for (what, file) in [
        ("THP, anonymous", "/sys/kernel/mm/transparent_hugepage/enabled"),
        ("THP, shmem", "/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    ] {
        say(what, fs::read_to_string(file).unwrap_or_else(|_| "not available".into()).trim());
    }
    say("/dev/kvm opens", yes(File::options().read(true).write(true).open("/dev/kvm").is_ok()));
    say(
        "CPU has vmx or svm",
        yes(has_virtualization(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())),
    );
    say("e2e accelerator", accelerator());
    say("cache", &format!("{}, {} MiB", cache.root().display(), size(cache.root()) >> 20));
    match packages::missing(&[]) {
        Ok(missing) if missing.is_empty() => say("missing packages", "none"),
        Ok(missing) => say("missing packages", &missing.join(" ")),
        Err(error) => say("missing packages", &format!("unknown: {error:#}")),
    }
    Ok(())
}

/// The accelerator for L1, as far as it is known without booting one.
fn accelerator() -> &'static str {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if kvm && has_virtualization(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
        "KVM if a probe boots, else TCG"
    } else {
        "TCG"
    }
}

/// Whether the CPU supports virtualization. A `/dev/kvm` that opens does not prove it.
fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// The rest of the line that begins with `name`, or "unknown".
fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Bytes below a directory.
fn size(dir: &Path) -> u64 {
    let Ok(items) = fs::read_dir(dir) else { return 0 };
    let below = items.flatten().map(|item| match item.metadata() {
        Ok(meta) if meta.is_dir() => size(&item.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    below.sum()
}

#[cfg(test)]
mod tests {
    use super::has_virtualization;

    #[test]
    fn only_the_whole_flag_counts() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock sse\nbugs : vmx\n"));
    }
}
