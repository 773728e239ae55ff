//! What L2 reports: lines of JSON in a file.

use std::collections::VecDeque;
use std::fs;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vfio_fast_protocol::record::Event;

use crate::l1::report::Reporter;
use crate::wait::{Seen, wait_for};

/// The events in a file that grows.
pub struct Events {
    file: String,
    report: Reporter,
    /// How much of the file was read.
    read: usize,
    /// What of that was not yet waited for.
    queue: VecDeque<Event>,
}

impl Events {
    pub fn new(file: String, report: Reporter) -> Self {
        Self { file, report, read: 0, queue: VecDeque::new() }
    }

    /// Reads what is new. Messages of L2's kernel go to their log at once.
    pub fn read(&mut self) -> Result<()> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        while let Some(length) = text[self.read..].find('\n') {
            let line = &text[self.read..self.read + length];
            self.read += length + 1;
            match serde_json::from_str(line).with_context(|| format!("L2 wrote `{line}`"))? {
                Event::Dmesg { line } => self.report.log("l2-dmesg", &line),
                event => self.queue.push_back(event),
            }
        }
        Ok(())
    }

    /// Waits for the first event for which `wanted` has a value; those before it are dropped. `ended` is how QEMU ended.
    pub fn next<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ended: impl FnMut() -> Result<Option<ExitStatus>>,
        mut wanted: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T> {
        let mut last = "no event".to_owned();
        wait_for(what, limit, || {
            // Asked first, so that what was there when QEMU ended is seen.
            let ended = ended()?;
            self.read()?;
            while let Some(event) = self.queue.pop_front() {
                if let Event::Failed { error } = &event {
                    bail!("{what}: L2: {error}");
                }
                if let Some(value) = wanted(&event) {
                    return Ok(Seen::Done(value));
                }
                last = format!("{event:?}");
            }
            if let Some(status) = ended {
                bail!("{what}: QEMU ended before: {status}; L2's last event: {last}");
            }
            Ok(Seen::NotYet(last.clone()))
        })
    }
}
