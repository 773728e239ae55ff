//! The state of a process, from /proc.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::l1::real_time;
use crate::pci::Device;

/// A range of host addresses: the first one, and the one after the last.
pub type Span = (u64, u64);

/// In the file of a VFIO device, the number of a BAR shifted by this many bits is its offset.
const BAR_SHIFT: u32 = 40;

/// How the names of the library's threads begin.
const LIBRARY_THREAD: &str = "vfio-fast";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thread {
    pub name: String,
    /// The seccomp mode; empty on a kernel without seccomp.
    pub seccomp: String,
    /// The scheduling policy, a number: 0 is the usual one, 1 is SCHED_FIFO.
    pub policy: String,
}

impl Thread {
    pub fn is_of_library(&self) -> bool {
        self.name.starts_with(LIBRARY_THREAD)
    }
}

/// The threads of a process.
pub fn threads(pid: u32) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while its folder is being read.
        let task = task?.path();
        let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
        let Ok(stat) = fs::read_to_string(task.join("stat")) else { continue };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.map(|value| value.trim().to_owned()).with_context(|| format!("a thread has no {name}"))
        };
        // Field 41 of proc_pid_stat(5); before the third is the name in parentheses.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let policy = fields.split(' ').nth(41 - 3).context("a thread has no policy")?.to_owned();
        threads.push(Thread {
            name: field("Name:")?,
            seccomp: field("Seccomp:").unwrap_or_default(),
            policy,
        });
    }
    Ok(threads)
}

/// Runs `wait`, and returns besides which threads of the library the process had while it ran:
/// after a commit there are none.
pub fn watch_library_threads<R>(pid: u32, wait: impl FnOnce() -> R) -> (R, BTreeSet<Thread>) {
    const EVERY: Duration = Duration::from_millis(5);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            // Otherwise it may not run while QEMU and the library keep all CPUs busy. Outside the machines, where that is
            // refused, it only may run late.
            let _ = real_time::begin();
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                // If the process has ended, `wait` reports that.
                let threads = threads(pid).unwrap_or_default();
                seen.extend(threads.into_iter().filter(Thread::is_of_library));
                thread::sleep(EVERY);
            }
            seen
        });
        let result = wait();
        done.store(true, Ordering::Relaxed);
        (result, watcher.join().unwrap_or_default())
    })
}

/// Whether the address is in one of the ranges.
pub fn is_in(spans: &[Span], address: u64) -> bool {
    spans.iter().any(|(start, end)| (*start..*end).contains(&address))
}

/// Where a VFIO device is mapped: its BARs.
pub fn device_memory(pid: u32) -> Result<Vec<Span>> {
    // The device's descriptor comes from its group, or is a device file.
    let is_bar = |line: &str| line.contains("vfio-device") || line.contains("/dev/vfio/devices/");
    Ok(spans(pid, is_bar)?.collect())
}

/// BARs that are smaller than `bytes`, of devices that were opened by their own files.
pub fn device_memory_below(pid: u32, bytes: u64) -> Result<Vec<Span>> {
    let mut small = Vec::new();
    for (span, line) in address_space(pid)? {
        let Some((before, file)) = line.split_once("/dev/vfio/devices/") else { continue };
        let offset = before.split_whitespace().nth(2).context("a line of maps without an offset")?;
        let bar = (u64::from_str_radix(offset, 16)? >> BAR_SHIFT) as usize;
        if Device::of_file(file).bar(bar)?.bytes < bytes {
            small.push(span);
        }
    }
    Ok(small)
}

/// Shared mappings of memfds.
pub fn memory_files(pid: u32) -> Result<Vec<Span>> {
    let is_memfd = |line: &str| line.split(' ').nth(1) == Some("rw-s") && line.contains(" /memfd:");
    Ok(spans(pid, is_memfd)?.collect())
}

/// Whether the process has anything mapped at that address.
pub fn has_mapped(pid: u32, address: u64) -> Result<bool> {
    Ok(address_space(pid)?.iter().any(|(span, _)| is_in(&[*span], address)))
}

/// Whether a process runs whose name begins so. One that has ended and was not waited for does not run.
pub fn is_running(name: &str) -> Result<bool> {
    for entry in fs::read_dir("/proc")? {
        // A process may end while the folder is being read.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((before, state)) = stat.split_once(") ") else { continue };
        if before.split_once('(').is_some_and(|(_, found)| found.starts_with(name)) && !state.starts_with('Z')
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the process has a file open with `name` in its path.
pub fn has_open(pid: u32, name: &str) -> Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed while its folder is being read.
        if fs::read_link(entry?.path()).is_ok_and(|path| path.to_string_lossy().contains(name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes that the process has locked, as the kernel accounts them.
pub fn locked_bytes(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), "VmLck:")
}

/// Bytes of the process's memory that are pinned, as iommufd counts them.
pub fn pinned_bytes(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), "VmPin:")
}

/// Bytes of shmem, memfds included, that the process has.
pub fn shmem_bytes(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), "RssShmem:")
}

/// Bytes of the process's memory that are mapped by huge pages.
pub fn huge_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    Ok(kib(&path, "AnonHugePages:")? + kib(&path, "ShmemPmdMapped:")?)
}

/// The number in a line like `VmLck:  4 kB`, in bytes.
fn kib(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {name}"))? << 10)
}

fn spans(pid: u32, wanted: impl Fn(&str) -> bool) -> Result<impl Iterator<Item = Span>> {
    let lines = address_space(pid)?.into_iter();
    Ok(lines.filter(move |(_, line)| wanted(line)).map(|(span, _)| span))
}

/// The lines of `/proc/<pid>/maps`.
fn address_space(pid: u32) -> Result<Vec<(Span, String)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut lines = Vec::new();
    for line in maps.lines() {
        let span = line.split(' ').next().unwrap_or_default();
        let (start, end) = span.split_once('-').context("a line of maps without a span")?;
        let span = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        lines.push((span, line.to_owned()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        let local = 0u8;
        assert!(has_mapped(pid, std::ptr::from_ref(&local).addr() as u64).unwrap());
        assert!(!has_mapped(pid, 0).unwrap());
        assert!(threads(pid).unwrap().iter().any(|thread| thread.policy == "0"));
        assert!(locked_bytes(pid).is_ok() && shmem_bytes(pid).is_ok() && huge_bytes(pid).is_ok());
        assert!(kib("/proc/self/status", "NoSuchField:").is_err());
        assert!(is_in(&[(1, 2), (5, 9)], 8) && !is_in(&[(1, 2), (5, 9)], 9));
    }

    #[test]
    fn threads_of_the_library_are_seen() {
        let start = || {
            let worker = thread::Builder::new().name("vfio-fast-test".into());
            worker.spawn(|| thread::sleep(Duration::from_millis(200))).unwrap().join().unwrap();
        };
        let ((), seen) = watch_library_threads(std::process::id(), start);
        assert!(seen.iter().any(|thread| thread.name == "vfio-fast-test"), "{seen:?}");
    }
}
