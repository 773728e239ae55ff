//! QEMU's sandbox (`-sandbox`): what the library has to work under, and the proof that every thread is in it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::l1::checks::count;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use anyhow::{Context, Result};
use vfio_fast_protocol::job::Mode;

/// QEMU cannot start threads by clone3, nor bind them to processors, and ends at some other calls.
pub const ARGUMENTS: [&str; 2] = ["-sandbox", "on,spawn=deny,resourcecontrol=deny"];

/// What /proc says of a thread that has a seccomp filter.
const FILTERED: &str = "2";

/// A thread's name and its seccomp mode.
pub type Thread = (String, String);

/// Runs `wait`, and answers besides which threads of the library QEMU had meanwhile: there are none after a commit.
pub fn watch<R>(pid: u32, wait: impl FnOnce() -> R) -> (R, BTreeSet<Thread>) {
    const EVERY: Duration = Duration::from_millis(5);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut workers = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                // QEMU may have ended, which whoever waits for it tells better.
                let threads = threads(pid).unwrap_or_default();
                workers.extend(threads.into_iter().filter(|(name, _)| name.starts_with("vfio-fast")));
                thread::sleep(EVERY);
            }
            workers
        });
        let answer = wait();
        done.store(true, Ordering::Relaxed);
        (answer, watcher.join().unwrap_or_default())
    })
}

/// The check `threads-in-sandbox`: every thread of QEMU's is in the sandbox, the library's among them, and these work all
/// the same.
pub fn report(lab: &Lab, vm: &mut Vm) -> Result<()> {
    let mut threads = threads(vm.pid)?;
    threads.extend(vm.workers.iter().cloned());
    let outside = threads.iter().filter(|(_, mode)| mode != FILTERED);
    let mut problems: Vec<String> =
        outside.map(|(name, mode)| format!("thread {name} is in seccomp mode `{mode}`")).collect();
    let names: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
    let mut seen = format!("in the sandbox: {}", names.join(" "));
    if lab.job.mode == Mode::Fast {
        let stats = count::library_stats(vm)?;
        let (peak, fallbacks) = (stats["threads_peak"].as_u64(), stats["thread_fallbacks"].as_u64());
        seen += &format!("; up to {peak:?} threads faulted memory in, {fallbacks:?} did not start");
        if vm.workers.is_empty() || peak < Some(2) || fallbacks != Some(0) {
            problems.push(seen.clone());
        }
    }
    lab.report.check("threads-in-sandbox", &problems, &seen);
    Ok(())
}

/// The threads of a process.
fn threads(pid: u32) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while its folder is being read.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.map(|value| value.trim().to_owned()).with_context(|| format!("a thread has no {name}"))
        };
        // A kernel without seccomp does not say.
        threads.push((field("Name:")?, field("Seccomp:").unwrap_or_default()));
    }
    Ok(threads)
}
