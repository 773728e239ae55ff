//! Waits with errors that name what was waited for, for how long, and what was seen last.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// What one look at the thing that is waited for found.
pub enum Seen<T> {
    Done(T),
    /// Not done; the text describes the state that was found.
    NotYet(String),
}

impl<T> Seen<T> {
    /// Done if there is a value; else `state` describes what there is instead.
    pub fn of(value: Option<T>, state: impl FnOnce() -> String) -> Self {
        value.map_or_else(|| Seen::NotYet(state()), Seen::Done)
    }
}

/// Looks again and again until it is done, the limit has passed, or a look fails.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look()? {
            Seen::Done(value) => return Ok(value),
            Seen::NotYet(state) if start.elapsed() > limit => {
                bail!("waited {} s for {what}; seen last: {state}", limit.as_secs());
            }
            Seen::NotYet(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_what_was_seen_last() {
        let mut looks = 0;
        let never: Result<()> = wait_for("a miracle", Duration::ZERO, || {
            looks += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(Seen::NotYet(format!("{looks} frogs")))
        });
        assert_eq!(never.unwrap_err().to_string(), "waited 0 s for a miracle; seen last: 1 frogs");
    }

    #[test]
    fn it_ends_when_it_is_done_or_fails() {
        let mut looks = 0;
        let third = wait_for("three looks", Duration::from_secs(60), || {
            looks += 1;
            Ok(Seen::of((looks == 3).then_some(looks), || format!("{looks} looks")))
        });
        assert_eq!(third.unwrap(), 3);
        let failed: Result<()> = wait_for("nothing", Duration::from_secs(60), || bail!("no"));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }
}
