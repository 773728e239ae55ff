//! The channel to the host.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
        // Without the channel nothing can be told but on the console; the host fails a run whose
        // end record is missing.
        if let Err(error) = port.write_all(&line) {
            eprintln!("vfio-fast-agent: a record was lost: {error}");
        }
    }

    /// Sends a sign of life every so often from now on, whatever the rest does: an emulated machine may stand still, and then
    /// says so with its silence.
    pub fn keep_alive(&self) {
        let report = self.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(HEARTBEAT_MS));
                report.send(&Record::Alive);
            }
        });
    }

    /// Something begins.
    pub fn step(&self, what: &str) {
        self.send(&Record::Step { what: what.into(), at_ms: machine::uptime_ms() });
    }

    /// Something that has to hold was looked at; `problems` empty means that it does.
    pub fn check(&self, name: &str, problems: &[String], seen: &str) {
        let detail = if problems.is_empty() { seen.to_owned() } else { problems.join("; ") };
        self.send(&Record::Check { name: name.into(), ok: problems.is_empty(), detail });
    }

    /// A line for a log file.
    pub fn log(&self, file: &str, line: &str) {
        self.send(&Record::Log { file: file.into(), line: line.into() });
    }
}
