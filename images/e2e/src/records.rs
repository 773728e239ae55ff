//! Collects L1's records while L1 runs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::record::{Facts, Record, Start, Traffic};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// The observation, or the problems found.
    pub detail: String,
}

/// Everything L1 reported in one run.
#[derive(Clone, Debug, Default)]
pub struct RunRecord {
    /// Results of the checks made in L1.
    pub checks: Vec<Check>,
    /// Counters.
    pub facts: Option<Facts>,
    /// Measured starts of L2.
    pub starts: Vec<Start>,
    /// Measured traffic of L2 through its own IOMMU.
    pub traffic: Vec<Traffic>,
    /// Errors that stopped the run or kept it from ending properly.
    pub trouble: Vec<String>,
    /// Number of requests to L2 that were sent again, by request.
    pub retries: BTreeMap<String, u32>,
    /// Time of the last record; `None` if L1 did not reach user space.
    pub heard: Option<Instant>,
    /// Whether L1 stopped sending heartbeats, which are independent of what is under test.
    pub stalled: bool,
    /// Whether L1 reported that it has finished.
    pub ended: bool,
    /// Run time of L1.
    pub took: Duration,
}

/// Reads the file of records as it grows.
#[derive(Debug)]
pub struct Listener {
    /// The records so far.
    pub told: RunRecord,
    folder: PathBuf,
    records: PathBuf,
    position: u64,
    pending: Vec<u8>,
    logs: BTreeMap<String, File>,
}

impl Listener {
    /// Reads the file `records` in `folder`, and writes logs to the same folder.
    pub fn new(folder: &Path, records: &str) -> Self {
        Self {
            told: RunRecord::default(),
            folder: folder.into(),
            records: folder.join(records),
            position: 0,
            pending: Vec::new(),
            logs: BTreeMap::new(),
        }
    }

    /// Reads the new records. Returns the steps that L1 began.
    pub fn listen(&mut self) -> Result<Vec<String>> {
        let Ok(mut file) = File::open(&self.records) else { return Ok(Vec::new()) };
        file.seek(SeekFrom::Start(self.position))?;
        self.position += file.read_to_end(&mut self.pending)? as u64;
        let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        let mut steps = Vec::new();
        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let record = serde_json::from_slice(line)
                .with_context(|| format!("L1 sent an invalid record: `{}`", String::from_utf8_lossy(line)))?;
            steps.extend(self.take(record)?);
        }
        Ok(steps)
    }

    fn take(&mut self, record: Record) -> Result<Option<String>> {
        self.told.heard = Some(Instant::now());
        match record {
            Record::Step { what, .. } => return Ok(Some(what)),
            Record::Check { name, ok, detail } => self.told.checks.push(Check { name, ok, detail }),
            Record::Facts(facts) => self.told.facts = Some(facts),
            Record::Start(start) => self.told.starts.push(start),
            Record::Traffic(traffic) => self.told.traffic.push(traffic),
            Record::Fatal { error } => self.told.trouble.push(format!("L1: {error}")),
            Record::Retry { cause } => *self.told.retries.entry(cause).or_default() += 1,
            Record::End => self.told.ended = true,
            Record::Alive => {}
            Record::Log { file, line } => self.log(&file, &line)?,
        }
        Ok(None)
    }

    fn log(&mut self, name: &str, line: &str) -> Result<()> {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        ensure!(plain && !name.is_empty(), "L1 wants to write a log named `{name}`");
        if !self.logs.contains_key(name) {
            let path = self.folder.join(format!("{name}.log"));
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.with_context(|| format!("Cannot write {}", path.display()))?;
            self.logs.insert(name.to_owned(), file);
        }
        let file = &mut self.logs.get_mut(name).context("was just put there")?;
        writeln!(file, "{line}")?;
        Ok(())
    }
}

/// The text of a log of this run; empty if L1 did not write it.
pub fn log_text(folder: &Path, name: &str) -> String {
    let bytes = fs::read(folder.join(format!("{name}.log"))).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_lines_wait_for_their_end() {
        let scratch = vfio_fast_assets::paths::target().join("test-scratch");
        let folder = scratch.join(format!("records-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut listener = Listener::new(&folder, "r");
        assert!(listener.listen().unwrap().is_empty());
        assert!(listener.told.heard.is_none());
        fs::write(folder.join("r"), "{\"kind\":\"step\",\"what\":\"boot\",\"at_ms\":1}\n{\"kin").unwrap();
        assert_eq!(listener.listen().unwrap(), ["boot"]);
        let mut file = OpenOptions::new().append(true).open(folder.join("r")).unwrap();
        file.write_all(b"d\":\"log\",\"file\":\"l1-dmesg\",\"line\":\"x\"}\n{\"kind\":\"end\"}\n").unwrap();
        assert!(listener.listen().unwrap().is_empty());
        assert!(listener.told.ended && listener.told.heard.is_some());
        assert_eq!(log_text(&folder, "l1-dmesg"), "x\n");
        let retry = || Record::Retry { cause: "device_del dut".into() };
        listener.take(retry()).unwrap();
        listener.take(retry()).unwrap();
        assert_eq!(listener.told.retries["device_del dut"], 2);
        let outside = Record::Log { file: "../x".into(), line: String::new() };
        assert!(listener.take(outside).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
