//! The channel to the host.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::record::{HEARTBEAT_MS, Record};

use crate::machine;

/// Sends records to the host; may be used from any thread.
#[derive(Clone)]
pub struct Reporter {
    port: Arc<Mutex<File>>,
}

impl Reporter {
    /// Reports through this port.
    pub fn new(port: File) -> Self {
        Self { port: Arc::new(Mutex::new(port)) }
    }

    /// Sends one record.
    pub fn send(&self, record: &Record) {
        let mut line = serde_json::to_vec(record).expect("records have only string keys");
        line.push(b'\n');
        let mut port = self.port.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Without the channel only the console is left. The host fails a run without an end record.
        if let Err(error) = port.write_all(&line) {
            eprintln!("vfio-fast-agent: a record was lost: {error}");
        }
    }

    /// Sends heartbeats from now on, whatever the other threads do: the host recognises an emulated machine that has
    /// stopped by their absence.
    pub fn keep_alive(&self) {
        let report = self.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(HEARTBEAT_MS));
                report.send(&Record::Alive);
            }
        });
    }

    /// Reports that a step begins.
    pub fn step(&self, what: &str) {
        self.send(&Record::Step { what: what.into(), at_ms: machine::uptime_ms() });
    }

    /// Reports a check that holds if there are no problems; `seen` describes what was found then.
    pub fn check(&self, check: impl CheckName, problems: &[String], seen: &str) {
        let detail = if problems.is_empty() { seen.to_owned() } else { problems.join("; ") };
        self.send(&Record::Check { name: check.name(), ok: problems.is_empty(), detail });
    }

    /// Reports a check that holds if `ok`; `seen` describes what was found in both cases.
    pub fn expect(&self, check: impl CheckName, ok: bool, seen: &str) {
        self.send(&Record::Check { name: check.name(), ok, detail: seen.to_owned() });
    }

    /// A line for a log file.
    pub fn log(&self, file: &str, line: &str) {
        self.send(&Record::Log { file: file.into(), line: line.into() });
    }
}
