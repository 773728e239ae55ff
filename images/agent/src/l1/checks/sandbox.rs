//! QEMU's sandbox (`-sandbox`): what the library has to work under, and the proof that every thread is in it.

use anyhow::Result;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::job::Mode;

use crate::l1::checks::count;
use crate::l1::lab::Lab;
use crate::l1::proc::{self, Thread};
use crate::l1::vm::Vm;

/// The seccomp mode of a thread with a filter.
const FILTERED: &str = "2";

/// Checks that every thread of QEMU's, the library's included, is in the sandbox, and that the library's worked there.
pub fn report(lab: &Lab, vm: &mut Vm, check: impl CheckName) -> Result<()> {
    let mut threads = proc::threads(vm.pid)?;
    threads.extend(vm.workers.iter().cloned());
    let outside = threads.iter().filter(|thread| thread.seccomp != FILTERED);
    let problem = |thread: &Thread| format!("thread {} is in seccomp mode `{}`", thread.name, thread.seccomp);
    let mut problems: Vec<String> = outside.map(problem).collect();
    let names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
    let mut seen = format!("in the sandbox: {}", names.join(" "));
    if lab.job.mode == Mode::Fast {
        let stats = count::library_stats(vm)?;
        let (peak, fallbacks) = (stats["threads_peak"].as_u64(), stats["thread_start_failures"].as_u64());
        seen += &format!("; up to {peak:?} threads faulted memory in, {fallbacks:?} did not start");
        if vm.workers.is_empty() || peak < Some(2) || fallbacks != Some(0) {
            problems.push(seen.clone());
        }
    }
    lab.report.check(check, &problems, &seen);
    Ok(())
}
