//! A QEMU under test: started with the ioctl witness preloaded, its console and L2's events read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::command_line::{CommandLine, FIRMWARE};
use crate::l1::debian;
use crate::l1::events::Events;
use crate::l1::faults;
use crate::l1::lab::Lab;
use crate::l1::preload;
use crate::l1::proc::{self, Thread};
use crate::l1::qemu_files::QemuFiles;
use crate::l1::qmp::Qmp;
use crate::l1::report::Reporter;
use crate::machine;
use crate::wait::{Seen, wait_for};

const QEMU: &str = "/vft/qemu";
/// The library's timeline of a QEMU that was started with [`CommandLine::timeline`].
pub const TIMELINE: &str = "/run/timeline.json";
const CONSOLE: &str = "/run/l2-console-file";
/// SeaBIOS's last message where it finds nothing to boot. It changes nothing after that.
const NOTHING_TO_BOOT: &str = "No bootable device";

/// In its sandbox QEMU cannot start threads with clone3 nor bind them to processors, and some other calls end it.
const SANDBOX: [&str; 2] = ["-sandbox", "on,spawn=deny,resourcecontrol=deny"];

/// Far longer than the kernel takes to end a process that has a guest's memory pinned.
const KILLED_WITHIN: Duration = Duration::from_secs(60);

/// A running QEMU.
pub struct Vm {
    pub qmp: Qmp,
    pub pid: u32,
    /// Threads of the library that existed while the machine was built, if QEMU is in its sandbox.
    pub workers: BTreeSet<Thread>,
    process: Process,
    files: QemuFiles,
    report: Reporter,
    started: Instant,
    greeting: Duration,
    first_output: Arc<OnceLock<Instant>>,
    readers: Vec<JoinHandle<()>>,
    /// What L2 reports.
    events: Events,
    wait: Duration,
}

/// QEMU as this process has it.
enum Process {
    Child(Child),
    /// Forked by what was started here; as PID 1 this process inherits it.
    Daemon(Pid),
}

impl Process {
    /// The exit status; `None` while it runs.
    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        match self {
            Process::Child(child) => Ok(child.try_wait()?),
            Process::Daemon(pid) => {
                let ended = waitpid(Some(*pid), WaitOptions::NOHANG)?;
                Ok(ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
            }
        }
    }

    fn kill(&mut self) {
        match self {
            Process::Child(child) => drop(child.kill()),
            Process::Daemon(pid) => drop(kill_process(*pid, Signal::KILL)),
        }
        // A process that has been killed may have gigabytes to unpin.
        let ended = wait_for("the end of a killed QEMU", KILLED_WITHIN, || {
            Ok(Seen::of(self.try_wait()?, || "it runs".to_owned()))
        });
        if let Err(error) = ended {
            eprintln!("vfio-fast-agent: {error:#}");
        }
    }
}

impl Vm {
    /// Starts QEMU paused (`-S`) and waits until its machine is built.
    pub fn start(lab: &Lab, line: &CommandLine) -> Result<Self> {
        let mut command = command(lab, line)?;
        command.arg("-S");
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        Self::spawn(lab, line, command, "l2-console")
    }

    /// Starts QEMU and lets the guest run as soon as it can. What counts as first output is the
    /// firmware's: SeaBIOS writes its name to this port before it does anything else.
    pub fn start_running(lab: &Lab, line: &CommandLine) -> Result<Self> {
        let mut command = command(lab, line)?;
        command.args(["-chardev", "stdio,id=firmware,signal=off"]);
        command.args(["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]);
        command.args(["-serial", &format!("file:{CONSOLE}")]);
        Self::spawn(lab, line, command, "l2-firmware")
    }

    fn spawn(lab: &Lab, line: &CommandLine, mut command: Command, output: &str) -> Result<Self> {
        let files = line.files();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        lab.report.log("l1-setup", &format!("{command:?}"));
        let started = Instant::now();
        let mut child = command.spawn().context("cannot start QEMU")?;
        let first_output = Arc::new(OnceLock::new());
        let console = child.stdout.take().context("QEMU has no standard output")?;
        let errors = child.stderr.take().context("QEMU has no standard error")?;
        let first = first_output.clone();
        let readers = vec![
            copy_lines(console, files.log(output), lab.report.clone(), move || {
                let _ = first.set(Instant::now());
            }),
            copy_lines(errors, files.log("qemu-stderr"), lab.report.clone(), || ()),
        ];
        let pid = child.id();
        Self::connect(lab, files, Process::Child(child), pid, started, first_output, readers)
    }

    /// Starts QEMU as a daemon, paused.
    pub fn start_daemon(lab: &Lab, line: &CommandLine) -> Result<Self> {
        const PID_FILE: &str = "/run/qemu-pid";
        let mut command = command(lab, line)?;
        command.args(["-S", "-daemonize", "-pidfile", PID_FILE]).stdout(Stdio::null());
        lab.report.log("l1-setup", &format!("{command:?}"));
        let started = Instant::now();
        // What is started ends once the daemon's machine is built.
        let output = command.output().context("cannot start QEMU")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "QEMU did not become a daemon: {}", errors.trim());
        let text = fs::read_to_string(PID_FILE).context("the daemon left no pid")?;
        let raw = text.trim().parse().with_context(|| format!("the daemon's pid is `{text}`"))?;
        let pid = Pid::from_raw(raw).context("the daemon's pid is 0")?;
        let process = Process::Daemon(pid);
        let files = line.files();
        Self::connect(lab, files, process, raw.cast_unsigned(), started, Arc::default(), Vec::new())
    }

    fn connect(
        lab: &Lab,
        files: QemuFiles,
        mut process: Process,
        pid: u32,
        started: Instant,
        first_output: Arc<OnceLock<Instant>>,
        readers: Vec<JoinHandle<()>>,
    ) -> Result<Self> {
        let wait = lab.wait();
        let stream = wait_for("QEMU's monitor", wait, || {
            if let Some(status) = process.try_wait()? {
                bail!("QEMU ended before it had a monitor: {status}");
            }
            let monitor = files.monitor();
            Ok(match UnixStream::connect(&monitor) {
                Ok(stream) => Seen::Done(stream),
                Err(error) => Seen::NotYet(format!("{monitor}: {error}")),
            })
        })?;
        // QEMU sends its greeting once the machine is built.
        let (qmp, workers) = match lab.job.sandboxed {
            true => proc::watch_library_threads(pid, || Qmp::connect(stream, wait)),
            false => (Qmp::connect(stream, wait), BTreeSet::new()),
        };
        Ok(Self {
            qmp: qmp?,
            pid,
            workers,
            process,
            files,
            report: lab.report.clone(),
            greeting: started.elapsed(),
            started,
            first_output,
            readers,
            events: Events::new(files.events(), lab.report.clone()),
            wait,
        })
    }

    /// From QEMU's start to its greeting on the monitor, capabilities negotiated.
    pub fn greeting(&self) -> Duration {
        self.greeting
    }

    /// Time since QEMU was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// When QEMU was started, on the clock of the ioctl witness.
    pub fn started_ns(&self) -> u64 {
        machine::monotonic_ns() - self.age().as_nanos() as u64
    }

    /// From QEMU's start to the first byte on its standard output, which is L2's console or, after [`Self::start_running`],
    /// the firmware's debug output.
    pub fn first_output(&self) -> Option<Duration> {
        self.first_output.get().map(|at| *at - self.started)
    }

    /// Waits for that first byte.
    pub fn wait_first_output(&mut self) -> Result<Duration> {
        self.wait_while_running("the firmware's first byte", |vm| {
            Seen::of(vm.first_output(), || "no output".to_owned())
        })
    }

    /// Waits for the first byte on L2's console, after [`Self::start_running`]; returns the time since QEMU's start.
    pub fn wait_console(&mut self) -> Result<Duration> {
        self.wait_while_running("the first byte on L2's console", |vm| {
            let written = fs::metadata(CONSOLE).is_ok_and(|file| file.len() > 0);
            Seen::of(written.then(|| vm.age()), || "nothing on the console".to_owned())
        })
    }

    /// Waits until the firmware has found, for the `times`th time, that there is nothing to boot.
    pub fn wait_firmware(&mut self, times: usize) -> Result<()> {
        self.wait_while_running("the end of the firmware", |_| {
            let text = fs::read_to_string(FIRMWARE).unwrap_or_default();
            let found = text.matches(NOTHING_TO_BOOT).count();
            Seen::of((found >= times).then_some(()), || {
                let last = text.lines().next_back().unwrap_or_default();
                format!("{found} of {times} times `{NOTHING_TO_BOOT}`, and last `{last}`")
            })
        })
    }

    fn wait_while_running<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Seen<T>) -> Result<T> {
        wait_for(what, self.wait, || {
            // Asked first, so that what was there when QEMU ended is seen.
            let ended = self.process.try_wait()?;
            let seen = look(self);
            match (&seen, ended) {
                (Seen::NotYet(state), Some(status)) => bail!("{what}: QEMU ended before: {status}; {state}"),
                _ => Ok(seen),
            }
        })
    }

    /// Every VFIO ioctl so far.
    pub fn witnessed(&self) -> Result<Vec<Call>> {
        let text = match fs::read_to_string(self.files.witness()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).context("cannot read the witness"),
        };
        witness::parse(&text)
    }

    /// What QEMU wrote on its standard error so far.
    pub fn stderr(&self) -> Result<String> {
        fs::read_to_string(self.files.path("qemu-stderr")).context("cannot read QEMU's standard error")
    }

    /// Waits until L2 reports an event for which `wanted` is true; those before it are dropped.
    pub fn wait_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<()> {
        self.next_event(what, |event| wanted(event).then_some(()))
    }

    /// Waits for L2 to be ready, giving each event before that to `each`; returns which boot it was.
    pub fn wait_ready(&mut self, mut each: impl FnMut(&Event)) -> Result<u64> {
        self.next_event("L2 to be ready", |event| match event {
            Event::Ready { boot } => Some(*boot),
            event => {
                each(event);
                None
            }
        })
    }

    /// Waits for the first event for which `wanted` has a value; those before it are dropped.
    pub fn next_event<T>(&mut self, what: &str, wanted: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let process = &mut self.process;
        self.events.next(what, self.wait, || process.try_wait(), wanted)
    }

    /// Waits for QEMU to end by itself.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let status = wait_for("QEMU's end", self.wait, || {
            Ok(Seen::of(self.process.try_wait()?, || "it runs".to_owned()))
        })?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        self.events.read()?;
        Ok(status)
    }

    /// Ends QEMU through its monitor, and sends every ioctl that it made to the host; returns them.
    pub fn quit(mut self) -> Result<Vec<Call>> {
        self.qmp.run("quit", serde_json::json!({}))?;
        let status = self.wait_exit()?;
        self.log_witness()?;
        ensure!(status.success(), "QEMU ended with {status}");
        self.witnessed()
    }

    /// Ends QEMU through its monitor; returns the time until its process was gone.
    pub fn quit_timed(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.qmp.run("quit", serde_json::json!({}))?;
        let status = self.wait_exit()?;
        let took = start.elapsed();
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(took)
    }

    /// Kills QEMU; its memory is free afterwards.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill();
        self.wait_exit().map(drop)
    }

    /// Sends the ioctl record to the host.
    pub fn log_witness(&self) -> Result<()> {
        let text = fs::read_to_string(self.files.witness()).context("cannot read the witness")?;
        let log = self.files.log("witness");
        text.lines().for_each(|line| self.report.log(&log, line));
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            // A scenario failed. What QEMU and L2 did so far is the evidence.
            let _ = self.events.read();
            let _ = self.log_witness();
            self.process.kill();
        }
    }
}

/// The command that every start begins with.
fn command(lab: &Lab, line: &CommandLine) -> Result<Command> {
    let files = line.files();
    let own = [files.witness(), files.monitor(), files.events()];
    for stale in own.iter().map(String::as_str).chain([CONSOLE, FIRMWARE, preload::SUMMARY]) {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {stale}"));
            }
            _ => {}
        }
    }
    let (qemu, run) = if lab.job.debian { (debian::QEMU, debian::RUN) } else { (QEMU, preload::RUN) };
    let mut command = match line.is_preloaded() {
        true => preload::start(run, preload::SUMMARY),
        false => Command::new(qemu),
    };
    if line.is_preloaded() {
        command.arg(qemu);
    }
    if !lab.job.debian {
        command.env("LD_LIBRARY_PATH", "/vft/lib");
    }
    command
        .args(line.arguments())
        .env("LD_PRELOAD", "/vft/lib/libwitness.so")
        .env("VFT_WITNESS", files.witness())
        // If it is compiled with sanitizers: QEMU leaves much memory to the end of the process.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .stdin(Stdio::null());
    if lab.job.sandboxed {
        command.args(SANDBOX);
    }
    if line.is_real_time() {
        command.env("VFT_REAL_TIME", "");
    }
    if line.has_timeline() {
        command.env("VFIO_FAST_TIMELINE", TIMELINE);
    }
    if line.has_failing_allocations() {
        command.env("VFT_FAILING_ALLOCATIONS", "");
    }
    if line.has_faults() {
        faults::disarm()?;
        if let Some((fault, range, count)) = line.first_fault() {
            faults::arm(fault, range, u64::MAX, count)?;
        }
        command.env("VFT_FAULTS", faults::FILE);
    }
    if let Some(user) = line.run_by() {
        command.uid(user).gid(user);
    }
    Ok(command)
}

/// Sends every line of `from` to the host; `first` is called at the first byte.
fn copy_lines(
    mut from: impl Read + Send + 'static,
    file: String,
    report: Reporter,
    first: impl Fn() + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pending = Vec::new();
        let mut buffer = [0u8; 4096];
        let mut keep = File::create(format!("/run/{file}")).ok();
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            first();
            if let Some(keep) = &mut keep {
                let _ = keep.write_all(&buffer[..n]);
            }
            pending.extend_from_slice(&buffer[..n]);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                report.log(&file, String::from_utf8_lossy(&line).trim_end());
            }
        }
        if !pending.is_empty() {
            report.log(&file, String::from_utf8_lossy(&pending).trim_end());
        }
    })
}
