//! What both machines need of their kernel: file systems, modules, command line, ports, an end.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::time::{ClockId, clock_gettime};

use crate::wait::{Seen, wait_for};

/// The order in which modules have to be loaded; written when the image is built.
const MODULE_LIST: &str = "/vft/modules.list";

/// The port appears right after its driver was loaded, within a second even on a busy host.
const PORT_WITHIN: Duration = Duration::from_secs(60);

/// Mounts what a Linux program expects to find.
pub fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, MountFlags::empty(), c"")
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    Ok(())
}

/// The kernel's command line as options; a word without `=` has an empty value.
pub fn kernel_options() -> Result<BTreeMap<String, String>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let words = line.split_whitespace();
    Ok(words
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Loads every module of the list, KVM's only for this processor. One that its hardware refuses is
/// in the result and is no error.
pub fn load_modules() -> Result<Vec<String>> {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| processor.split_whitespace().any(|word| word == flag);
    let skipped = |path: &str| {
        (path.ends_with("kvm_intel.ko") && !has("vmx")) || (path.ends_with("kvm_amd.ko") && !has("svm"))
    };
    let list = fs::read_to_string(MODULE_LIST).with_context(|| format!("cannot read {MODULE_LIST}"))?;
    let mut refused = Vec::new();
    for path in list.lines().filter(|path| !skipped(path)) {
        let file = File::open(path).with_context(|| format!("cannot open module {path}"))?;
        match finit_module(&file, c"", 0) {
            Ok(()) => {}
            Err(errno @ (rustix::io::Errno::NODEV | rustix::io::Errno::OPNOTSUPP)) => {
                refused.push(format!("{path}: {errno}"));
            }
            Err(errno) => return Err(anyhow!(errno).context(format!("cannot load module {path}"))),
        }
    }
    Ok(refused)
}

/// Opens the virtio-serial port of that name for writing. It appears shortly after its driver.
pub fn open_port(name: &str) -> Result<File> {
    open_port_with(name, OpenOptions::new().write(true))
}

/// Opens it for reading.
pub fn open_port_to_read(name: &str) -> Result<File> {
    open_port_with(name, OpenOptions::new().read(true))
}

fn open_port_with(name: &str, options: &OpenOptions) -> Result<File> {
    let what = format!("the virtio-serial port {name}");
    let path = wait_for(&what, PORT_WITHIN, || Ok(Seen::of(find_port(name), || "no such port".to_owned())))?;
    options.open(&path).with_context(|| format!("cannot open {}", path.display()))
}

fn find_port(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    for port in ports.flatten() {
        let found = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            let device = Path::new("/dev").join(port.file_name());
            return device.exists().then_some(device);
        }
    }
    None
}

/// The kernel's messages, read as they come.
pub struct KernelLog(File);

impl KernelLog {
    /// Starts at the oldest message the kernel still holds.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/kmsg")
            .context("cannot open /dev/kmsg")?;
        Ok(Self(file))
    }

    /// Every message since the last call, as `<level>[seconds] text`.
    pub fn new_lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut buffer = [0u8; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => lines.push(kernel_line(&String::from_utf8_lossy(&buffer[..n]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    // Messages were overwritten before they were read. Say so and go on.
                    lines.push("<4> messages were lost".to_owned());
                }
                Err(error) => bail!("cannot read /dev/kmsg: {error}"),
            }
        }
        Ok(lines)
    }
}

/// One read of /dev/kmsg is one message: `priority,sequence,time,flags;text\n KEY=value\n`.
fn kernel_line(message: &str) -> String {
    let (header, text) = message.split_once(';').unwrap_or(("6", message));
    let mut fields = header.split(',').map(|field| field.parse::<u64>().unwrap_or(0));
    let level = fields.next().unwrap_or(6) & 7;
    let time = fields.nth(1).unwrap_or(0);
    let text = text.lines().next().unwrap_or_default();
    format!("<{level}>[{:5}.{:06}] {text}", time / 1_000_000, time % 1_000_000)
}

/// Version and patch level of this kernel.
pub fn kernel_release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    parse_release(&release).with_context(|| format!("a kernel of the release `{}`", release.trim()))
}

/// `6.12.107+deb13-amd64` is 6.12.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Milliseconds since this kernel started.
pub fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().unwrap_or("0").parse().unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

/// The clock that does not jump, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Memory this kernel uses, in MiB.
pub fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

/// Writes a setting of the kernel's.
pub fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// Ends the machine.
pub fn power_off() -> ! {
    let error = reboot(RebootCommand::PowerOff);
    eprintln!("vfio-fast-agent: cannot power off: {error:?}");
    // PID 1 that returns is a kernel panic, which with panic=-1 ends the machine as well.
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn releases_compare() {
        assert_eq!(parse_release("6.12.107+deb13-amd64\n"), Some((6, 12)));
        assert_eq!(parse_release("7.2-rc1"), Some((7, 2)));
        assert_eq!(parse_release("none"), None);
    }
}
