//! QEMU's machine protocol: one command at a time; events are kept until they are asked for.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

/// Events that an error shows.
const EVENTS_SHOWN: usize = 5;

/// QEMU's reason for refusing a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

/// A connection past its handshake.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    partial: String,
    events: VecDeque<Value>,
    wait: Duration,
}

impl Qmp {
    /// Waits for QEMU's greeting, which it sends once its machine is built.
    pub fn connect(stream: UnixStream, wait: Duration) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let reader = BufReader::new(stream);
        let mut qmp = Self { reader, partial: String::new(), events: VecDeque::new(), wait };
        let deadline = Instant::now() + wait;
        let silent = || format!("waited {} s for QEMU's greeting on its monitor", wait.as_secs());
        while !qmp.read(deadline)?.with_context(silent)?["QMP"].is_object() {}
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command that has to work.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.attempt(command, arguments)?.map_err(|Refusal(text)| anyhow!("QEMU refuses {command}: {text}"))
    }

    /// Runs a command that QEMU may refuse.
    pub fn attempt(&mut self, command: &str, arguments: Value) -> Result<Result<Value, Refusal>> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).context("QEMU does not take commands")?;
        let deadline = Instant::now() + self.wait;
        loop {
            let Some(message) = self.read(deadline)? else {
                bail!(
                    "waited {} s for QEMU's reply to {command}; {}",
                    self.wait.as_secs(),
                    self.events_seen()
                );
            };
            if let Some(value) = message.get("return") {
                return Ok(Ok(value.clone()));
            }
            if let Some(error) = message.get("error") {
                let text = error["desc"].as_str().unwrap_or("no description");
                return Ok(Err(Refusal(text.to_owned())));
            }
            self.events.push_back(message);
        }
    }

    /// Runs a command of the human monitor.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let reply = self.run("human-monitor-command", json!({ "command-line": line }))?;
        Ok(reply.as_str().context("the human monitor returned no text")?.to_owned())
    }

    /// The run state of the VM, such as `running`.
    pub fn status(&mut self) -> Result<String> {
        let status = self.run("query-status", json!({}))?;
        Ok(status["status"].as_str().context("the status is no text")?.to_owned())
    }

    /// Waits for an event for which `wanted` is true; `None` if it does not come within that time.
    pub fn event_within(
        &mut self,
        name: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>> {
        let deadline = Instant::now() + within;
        loop {
            let position =
                self.events.iter().position(|event| event["event"] == name && wanted(&event["data"]));
            if let Some(event) = position.and_then(|n| self.events.remove(n)) {
                return Ok(Some(event));
            }
            match self.read(deadline)? {
                Some(message) => self.events.push_back(message),
                None => return Ok(None),
            }
        }
    }

    /// The last events that were not waited for, as text.
    pub fn events_seen(&self) -> String {
        let last = self.events.iter().rev().take(EVENTS_SHOWN);
        let texts: Vec<String> = last.map(|event| format!("{} {}", event["event"], event["data"])).collect();
        if texts.is_empty() {
            "no other event".to_owned()
        } else {
            format!("newest first: {}", texts.join(", "))
        }
    }

    /// One message; `None` when time is up.
    fn read(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            match self.reader.read_line(&mut self.partial) {
                Ok(0) => bail!("QEMU closed its monitor"),
                Ok(_) if self.partial.ends_with('\n') => {
                    let line = std::mem::take(&mut self.partial);
                    let message = serde_json::from_str(&line);
                    return message.map(Some).with_context(|| format!("QEMU wrote `{line}`"));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() > deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context("cannot read QEMU's monitor"),
            }
        }
    }
}
