//! What is done before and after a call of the program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use vfio_fast_engine::addr::{Bytes, HostVa};
use vfio_fast_engine::log::Log;
use vfio_fast_engine::populate::{Ahead, HostRange, Locked, MIN_PARALLEL_BYTES, Report};
use vfio_fast_engine::timeline;

use crate::aside::Aside;
use crate::c::process;
use crate::counters::Counters;
use crate::request::{Kind, LONGEST, Memory};
use crate::summary;

/// Where the summary goes: a file, or `-` for standard error. Without it there is none.
const STATS: &str = "VFIO_FAST_PRELOAD_STATS";
/// The process that vfio-fast-run became, which says so if it made no calls.
const RUN: &str = "VFIO_FAST_RUN_PID";

static COUNTERS: Counters = Counters::new();
static AHEAD: Ahead = Ahead::new();
/// Set by the first panic: nothing is faulted in any more.
static BROKEN: AtomicBool = AtomicBool::new(false);
static STATS_TO: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Memory for the work is reserved once before it begins: Rust ends the process if there is none.
const WORK: usize = 1 << 20;

/// The library was loaded.
pub fn loaded() {
    let _ = STATS_TO.set(std::env::var_os(STATS).map(PathBuf::from));
    process::keep_standard_error();
    process::at_fork(|| COUNTERS.clear());
}

/// Starts the record of what is done when, if the environment names a file for it. Not when the library is loaded: a
/// shell that starts the program would write the file as well.
fn record_timeline() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        if let Some(path) = std::env::var_os(timeline::VARIABLE).filter(|path| !path.is_empty()) {
            let log =
                Log::to(|_, text| process::write_standard_error(&format!("vfio-fast-preload: {text}\n")));
            timeline::start(Path::new(&path), &log);
        }
    });
}

/// The program ends.
pub fn unloaded() {
    timeline::flush();
    let Some(Some(to)) = STATS_TO.get() else { return };
    let id = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let name = name.trim_end();
    let is_first = || std::env::var(RUN).is_ok_and(|run| run == id.to_string());
    let text = match summary::text(&COUNTERS, id, name) {
        Some(text) => text,
        None if is_first() => {
            format!("vfio-fast-preload: process {id} ({name}) made no call that maps or unmaps\n")
        }
        None => return,
    };
    if to.as_os_str() == "-" {
        process::write_standard_error(&text);
    } else if let Err(error) = append(to, &text) {
        process::write_standard_error(&format!("vfio-fast-preload: {}: {error}\n{text}", to.display()));
    }
}

fn append(to: &PathBuf, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).create(true).open(to)?;
    file.write_all(text.as_bytes())
}

/// A panic was caught.
pub fn panicked() {
    BROKEN.store(true, Ordering::Relaxed);
}

/// Faults in what the call is about to map, if that helps. Returns how much that is.
pub fn before(fd: i32, kind: Kind, argument: u64) -> u64 {
    if !kind.is_map() {
        return 0;
    }
    record_timeline();
    let start = Instant::now();
    let (bytes, done) = attempt(fd, kind, argument);
    match done {
        Ok(report) => COUNTERS.faulted_in(&report, start.elapsed()),
        Err(aside) => COUNTERS.passed_on(aside, bytes, start.elapsed()),
    }
    bytes
}

/// The bytes that the call maps, as far as they are known, and what was done.
fn attempt(fd: i32, kind: Kind, argument: u64) -> (u64, Result<Report, Aside>) {
    let mut buffer = [0; LONGEST];
    let Some(argument) = process::read(argument, &mut buffer[..kind.length()]) else {
        return (0, Err(Aside::Unreadable));
    };
    let bytes = kind.bytes(argument);
    let memory = match Memory::of(kind, argument) {
        Ok(memory) => memory,
        Err(aside) => return (bytes, Err(aside)),
    };
    // First, and before any other system call: a vIOMMU's maps are many and small.
    let done = if bytes < MIN_PARALLEL_BYTES {
        Err(Aside::Small)
    } else if BROKEN.load(Ordering::Relaxed) {
        Err(Aside::Broken)
    } else if !process::is_device(fd) {
        Err(Aside::OtherFile)
    } else if !process::has_memory(WORK) {
        Err(Aside::NoMemory)
    } else {
        fault_in(kind, process::memory(memory.address), bytes)
    };
    (bytes, done)
}

fn fault_in(kind: Kind, hva: HostVa, bytes: u64) -> Result<Report, Aside> {
    let report = AHEAD.fault_in(HostRange { hva, bytes, writable: true }, kind.scope())?;
    match report {
        report if !report.device_pieces.is_empty() => Err(Aside::Device),
        report if report.bytes > 0 => Ok(report),
        report if report.skipped_bytes > 0 => Err(Aside::Refused),
        _ => Err(Aside::Present),
    }
}

/// Counts a call that the kernel has answered, with `errno` if it failed; `mapped` are the bytes that it was to map.
pub fn after(kind: Kind, argument: u64, mapped: u64, errno: Option<i32>, took: Duration) {
    let mut buffer = [0; LONGEST];
    let bytes = if kind.is_map() || errno.is_some() {
        mapped
    } else {
        // The kernel has written there how much it unmapped.
        kind.bytes(process::read_answer(argument, &mut buffer[..kind.length()]))
    };
    COUNTERS.answered(kind, errno.is_none(), bytes, took);
    timeline::call_has_ended(kind.name(), bytes, errno, took);
    if kind.is_map() && errno == Some(libc::ENOMEM) {
        explain(kind, bytes);
    }
}

/// Says once by which limit a map call was refused, if it was.
fn explain(kind: Kind, bytes: u64) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let locked = Locked::now(kind.scope());
    if locked.is_exceeded_by(bytes) && !SAID.swap(true, Ordering::Relaxed) {
        process::write_standard_error(&format!(
            "vfio-fast-preload: the kernel refused to map {}: {locked}. Raise it with ulimit -l, LimitMEMLOCK= of a \
             systemd unit, or libvirt's <hard_limit>.\n",
            Bytes(bytes)
        ));
    }
}
