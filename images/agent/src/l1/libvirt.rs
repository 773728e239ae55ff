//! libvirt's daemons without systemd, and virsh.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::l1::report::Reporter;
use crate::wait::{Seen, wait_for};

/// Where libvirt keeps the log of each domain.
const LOGS: &str = "/var/log/libvirt/qemu";
/// The folders of Debian's programs; PID 1 has none.
const PATH: &str = "/usr/sbin:/usr/bin";
/// The daemons start within seconds, also on a busy host.
const STARTED_WITHIN: Duration = Duration::from_secs(120);

/// The daemons.
pub struct Libvirt {
    children: Vec<Child>,
    report: Reporter,
}

impl Libvirt {
    /// Starts them, and waits until virsh can connect.
    pub fn start(report: &Reporter) -> Result<Self> {
        reap_qemus();
        let mut libvirt = Self { children: Vec::new(), report: report.clone() };
        for (daemon, socket) in
            [("virtlogd", "/run/libvirt/virtlogd-sock"), ("libvirtd", "/run/libvirt/libvirt-sock")]
        {
            let log = File::create(log_of(daemon)).context("cannot create a log")?;
            let mut command = Command::new(format!("/usr/sbin/{daemon}"));
            command.env("PATH", PATH).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            libvirt.children.push(command.spawn().with_context(|| format!("cannot start {daemon}"))?);
            wait_for(daemon, STARTED_WITHIN, || {
                if let Some(status) = libvirt.children.last_mut().map(Child::try_wait).transpose()?.flatten()
                {
                    bail!("{daemon} ended with {status}: {}", fs::read_to_string(log_of(daemon))?);
                }
                Ok(Seen::of(Path::new(socket).exists().then_some(()), || format!("no {socket}")))
            })?;
        }
        Ok(libvirt)
    }

    /// Runs virsh; returns what it prints.
    pub fn virsh(&self, args: &[&str]) -> Result<String> {
        let output =
            Command::new("virsh").args(args).stdin(Stdio::null()).output().context("cannot start virsh")?;
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.report.log("virsh", &format!("$ virsh {}", args.join(" ")));
        text.lines().chain(errors.lines()).for_each(|line| self.report.log("virsh", line));
        let errors = errors.trim();
        ensure!(output.status.success(), "virsh {}: {}: {errors}", args.join(" "), output.status);
        ensure!(errors.is_empty(), "virsh {} complains: {errors}", args.join(" "));
        Ok(text.into_owned())
    }

    /// What the domain's programs wrote on their standard error.
    pub fn log_of_domain(&self, domain: &str) -> Result<String> {
        let path = format!("{LOGS}/{domain}.log");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for daemon in ["virtlogd", "libvirtd"] {
            let text = fs::read_to_string(log_of(daemon)).unwrap_or_default();
            text.lines().for_each(|line| self.report.log(daemon, line));
        }
        for log in fs::read_dir(LOGS).into_iter().flatten().flatten() {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            text.lines().for_each(|line| self.report.log("domain", line));
        }
    }
}

fn log_of(daemon: &str) -> String {
    format!("/run/{daemon}.log")
}

/// Does for the QEMUs that libvirt starts what PID 1 has to do: their parents end at once, and libvirt waits until they
/// are gone.
fn reap_qemus() {
    const EVERY: Duration = Duration::from_millis(50);
    thread::spawn(|| {
        loop {
            let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
            for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
                // `77 (qemu-system-x86) Z 1 ...`
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                if stat.contains(" (qemu") && stat.contains(") Z 1 ") {
                    let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
                }
            }
            thread::sleep(EVERY);
        }
    });
}

/// The id of the domain's QEMU.
pub fn pid_of(domain: &str) -> Result<u32> {
    let path = format!("/run/libvirt/qemu/{domain}.pid");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} has `{text}`"))
}
