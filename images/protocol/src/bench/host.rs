//! What the machine says of itself. `cargo xtask bench` asks in the same way.

use std::fs;
use std::thread::available_parallelism;

use super::native::Machine;

/// Which anonymous memory gets huge pages.
pub const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Which shmem gets them.
pub const SHMEM_THP: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The machine, now; `pins` says what maps on it.
pub fn machine(pins: &str) -> Machine {
    let cpuinfo = read("/proc/cpuinfo");
    let of_cpu = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, text)| text.trim().to_owned())
    };
    Machine {
        cpus: cpus(),
        cpu: of_cpu("model name"),
        virtual_machine: of_cpu("flags").split(' ').any(|flag| flag == "hypervisor"),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        memory: meminfo("MemTotal:"),
        available: available(),
        thp: chosen(THP),
        shmem_thp: chosen(SHMEM_THP),
        load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        pins: pins.to_owned(),
    }
}

/// CPUs this process may use.
pub fn cpus() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Bytes that can be had without swapping.
pub fn available() -> u64 {
    meminfo("MemAvailable:")
}

/// What all CPUs and what this process and its ended children did up to now.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// Seconds of all CPUs together, idle or not.
    all: f64,
    /// Of those, not idle.
    busy: f64,
    /// Of those, this process and its children.
    ours: f64,
}

impl Busy {
    /// Up to now.
    pub fn now() -> Self {
        let tick = 1.0 / 100.0; // USER_HZ is 100 wherever Linux runs.
        let stat = read("/proc/stat");
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        let all = ticks.iter().sum::<f64>() * tick;
        // Fields 4 and 5 of proc_stat(5): idle and waiting for a disk.
        let idle = ticks.iter().skip(3).take(2).sum::<f64>() * tick;
        // Fields 14 to 17 of proc_pid_stat(5), own and children's; what precedes them ends with the name in parentheses, the second field.
        let own = read("/proc/self/stat");
        let fields = own.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ours =
            fields.split_whitespace().skip(11).take(4).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
        Self { all, busy: all - idle, ours: ours * tick }
    }

    /// The part of the CPUs' time since then that other processes used.
    pub fn others_since(&self, then: &Self) -> f64 {
        let others = (self.busy - then.busy) - (self.ours - then.ours);
        (others / (self.all - then.all)).clamp(0.0, 1.0)
    }
}

/// The word in brackets of a file like `always [madvise] never`.
pub fn chosen(path: &str) -> String {
    let text = read(path);
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(String::new(), |(word, _)| word.to_owned())
}

fn meminfo(name: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// The text of a file of the kernel's; empty if there is none.
pub fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
