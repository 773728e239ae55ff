//! What the other threads of a test's process are and do. A test that needs another thread to wait in a call cannot know from the time that
//! has passed whether it does: on a busy machine, a thread starts late.

use std::fs;
use std::sync::mpsc::channel;
use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

/// Nothing takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often in succession a thread has to be found asleep: one that takes a lock for a moment is not.
const TIMES: u32 = 3;

/// The number of the calling thread.
fn own() -> u32 {
    let link = fs::read_link("/proc/thread-self").expect("/proc is mounted");
    let number = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    number.expect("the link ends with a number")
}

/// The names of this process's threads that begin like this.
pub fn named(prefix: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The threads of the library that are left. One that was joined can be listed for a moment longer.
pub fn left() -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..1000 {
        left = named("vfio-fast-");
        if left.is_empty() {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    left
}

/// Starts a thread, and returns once it waits for something in `work`, or has ended.
pub fn spawn_until_asleep<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> R + Send + 'scope,
) -> ScopedJoinHandle<'scope, R> {
    let (told, number) = channel();
    let thread = scope.spawn(move || {
        told.send(own()).expect("the caller waits for it");
        work()
    });
    until_asleep(number.recv().expect("the thread says it first"));
    thread
}

/// Waits until that thread of this process waits for something, or has ended.
fn until_asleep(thread: u32) {
    let start = Instant::now();
    let mut times = 0;
    while times < TIMES {
        assert!(start.elapsed() < PATIENCE, "thread {thread} does not wait for anything");
        sleep(Duration::from_millis(1));
        let Ok(text) = fs::read_to_string(format!("/proc/self/task/{thread}/stat")) else { return };
        // The name, in parentheses, can contain anything.
        let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        times = if state == Some('S') { times + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_is_asleep() {
        let (go_on, wait) = channel::<()>();
        std::thread::scope(|scope| {
            let thread = spawn_until_asleep(scope, move || wait.recv().unwrap());
            assert!(!thread.is_finished());
            go_on.send(()).unwrap();
            thread.join().unwrap();
        });
    }
}
