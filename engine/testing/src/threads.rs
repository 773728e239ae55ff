//! What other threads of a test do. A test that needs another thread to wait in a call cannot know from the time that
//! has passed whether it does: on a busy machine, a thread starts late.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Nothing takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often in succession a thread has to be found asleep: one that takes a lock for a moment is not.
const TIMES: u32 = 3;

/// The number of the calling thread.
pub fn own() -> u32 {
    let link = fs::read_link("/proc/thread-self").expect("/proc is mounted");
    let number = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    number.expect("the link ends with a number")
}

/// Waits until that thread of this process waits for something, or has ended.
pub fn until_asleep(thread: u32) {
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
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_waits_is_asleep() {
        let (told, number) = channel();
        let (go_on, wait) = channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(own()).unwrap();
            wait.recv().unwrap();
        });
        let number = number.recv().unwrap();
        assert_ne!(number, own());
        until_asleep(number);
        go_on.send(()).unwrap();
        thread.join().unwrap();
        until_asleep(number);
    }
}
