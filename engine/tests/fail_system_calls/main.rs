//! Every system call of the library fails, one after the other, in each of a few scenarios; and every call of one kind
//! in all of a scenario. Each run must leave nothing behind.
//!
//! It has a `main` of C, as the programs have that the library is made for: std, started by C, has no signal stack for
//! each thread, and so does not panic where that cannot be mapped.
#![no_main]
#![allow(unsafe_code, reason = "maps memory, and answers system calls")]

mod bench;
mod calls;
mod memory;
mod scenarios;

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use calls::{FILES, IS_MEMORY, Mode, REMEMBERS, TOLD, Told, decide, errnos_of, failed, members, told};
use common::child::{self, Ended};
use common::supervise::supervise;
use memory::Memory;
use scenarios::{NAME, SCENARIOS, Scenario};
use vfio_fast_testing as common;

/// A run takes milliseconds. This only ends one that hangs.
const HANGS_AFTER_S: u32 = 60;
/// The kernel takes milliseconds, or longer on a busy host.
const RELEASED_WITHIN: Duration = Duration::from_secs(30);

/// The descriptors and the mappings with a name that this process has.
fn held() -> BTreeSet<String> {
    let fds = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
    let fds = fds.map(|fd| format!("{} {:?}", fd.display(), fs::read_link(&fd).ok()));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    // Those without a name are stacks and arenas, which the C library keeps for the next threads.
    let named = maps.lines().filter(|line| line.split_whitespace().count() > 5 && !line.contains("[heap]"));
    let held = fds.chain(named.map(str::to_owned));
    // The record belongs to the process, and its file is open until the end.
    held.filter(|held| !held.contains(NAME)).collect()
}

/// One run.
fn run((_, scenario, only): Scenario, mode: Mode) {
    let told = told();
    told.calls.store(0, Ordering::Relaxed);
    told.failed.store(0, Ordering::Relaxed);
    told.lost.store(0, Ordering::Relaxed);
    let memory = Memory::new();
    let before = held();
    let mut opened = [false; FILES.len()];
    supervise(|| scenario(&memory), |call| decide(mode, only, &mut opened, call));
    let after = held();
    assert_eq!(after.symmetric_difference(&before).collect::<Vec<_>>(), [""; 0], "left by {:?}", failed());
    // The kernel drops the pins of an io_uring after the descriptor was closed.
    let is_clean = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        ["VmLck:\t       0 kB", "VmPin:\t       0 kB", "Threads:\t1\n"]
            .iter()
            .all(|line| status.contains(line))
    };
    let start = Instant::now();
    while !is_clean() {
        assert!(start.elapsed() < RELEASED_WITHIN, "left by {:?}", failed());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a scenario in each of the modes, until the runs make no further call. Returns the number of runs.
///
/// Many runs share a process, which would show what is left by each. It ends after a run that the process remembers.
fn sweep(scenario: Scenario, modes: impl Iterator<Item = Mode> + Clone) -> u64 {
    let told = told();
    let mut runs = 0;
    while !told.is_over.load(Ordering::Relaxed) {
        told.runs.store(0, Ordering::Relaxed);
        let ended = child::run(|| {
            for mode in modes.clone().skip(runs as usize) {
                child::limit(HANGS_AFTER_S);
                run(scenario, mode);
                told.runs.fetch_add(1, Ordering::Relaxed);
                // Threads share the work in another way each time, so the number of calls differs.
                let quiet = if failed().is_none() { told.quiet.load(Ordering::Relaxed) + 1 } else { 0 };
                told.quiet.store(quiet, Ordering::Relaxed);
                if matches!(mode, Mode::Once(_)) && quiet == 3 {
                    break;
                }
                if REMEMBERS.load(Ordering::Relaxed) {
                    return 0;
                }
            }
            told.is_over.store(true, Ordering::Relaxed);
            0
        });
        let mode = modes.clone().nth((runs + told.runs.load(Ordering::Relaxed)) as usize);
        assert_eq!(ended, Ended::Exited(0), "{}: {mode:?}, which was {:?}", scenario.0, failed());
        runs += told.runs.load(Ordering::Relaxed);
    }
    told.is_over.store(false, Ordering::Relaxed);
    runs
}

/// All runs of a scenario: each of its calls fails, and each kind of call always. Returns the number of runs.
fn sweep_all(scenario: Scenario) -> u64 {
    let once = sweep(scenario, (0..).map(Mode::Once));
    let numbers = members(&told().seen).into_iter().filter(|number| !IS_MEMORY.contains(number));
    let always: Vec<Mode> = numbers
        .flat_map(|number| {
            // After EINTR a call is made again, as often as that takes.
            let errnos = errnos_of(number).iter().filter(|errno| **errno != libc::EINTR).take(2);
            errnos.map(move |errno| Mode::Always(number, *errno))
        })
        .collect();
    once + sweep(scenario, always.into_iter())
}

/// Calls that have to be among those that fail, or the test means less than it says.
const COVERED: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_eventfd2,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_get_mempolicy,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_capget,
    libc::SYS_prlimit64,
];

/// Runs all scenarios, two at a time.
#[unsafe(no_mangle)]
pub extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    // SAFETY: all fields are atomics, of which all bytes may be zero.
    let (next, all): (&AtomicU64, &[Told; SCENARIOS.len()]) =
        (unsafe { child::shared() }, unsafe { child::shared() });
    let sweepers = [(); 2].map(|()| {
        child::start(|| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(scenario) = SCENARIOS.get(number) else { return 0 };
                let swept = child::run(|| {
                    TOLD.get_or_init(|| &all[number]);
                    eprintln!("{}: {} runs", scenario.0, sweep_all(*scenario));
                    0
                });
                assert_eq!(swept, Ended::Exited(0), "{}", scenario.0);
            }
        })
    });
    for sweeper in sweepers {
        assert_eq!(sweeper.wait(), Ended::Exited(0));
    }
    let covered: BTreeSet<_> = all.iter().flat_map(|told| members(&told.covered)).collect();
    println!("system calls that failed: {covered:?}");
    let missing: Vec<_> = COVERED.iter().filter(|number| !covered.contains(number)).collect();
    assert!(missing.is_empty(), "never failed: {missing:?}");
    assert!(covered.contains(&libc::SYS_clone) || covered.contains(&libc::SYS_clone3));
    0
}
