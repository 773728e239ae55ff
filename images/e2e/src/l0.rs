//! Runs L1 under an emulator and collects its records.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vfio_fast_protocol::host::Host;
use vfio_fast_protocol::record::{HEARTBEAT_MS, L1_PORT};

use super::accel::Accel;
use super::records::{Listener, RunRecord};
use vfio_fast_assets::image::Guest;
use vfio_fast_assets::interrupt;
use vfio_fast_assets::progress::{elapsed, print};

/// The file that receives L1's records.
const RECORDS: &str = "records.jsonl";
/// The trace of IOMMU invalidations, if it is enabled.
const TRACE: &str = "l0-invalidations.log";
/// The steps that L1 reported, each with the size of the trace at that time.
pub const STEPS: &str = "steps.jsonl";
/// A machine that has finished powers off well within this time.
const POWER_OFF: Duration = Duration::from_secs(120);
/// A running machine, however slow, sends many heartbeats in this time.
const SILENCE: Duration = Duration::from_millis(30 * HEARTBEAT_MS);
/// An L1 that boots, on a machine that does much else, sends its first record well within this time.
const BOOT: Duration = Duration::from_secs(240);
/// An L1 that hangs prints the stacks of all its tasks well within this time.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What L1's kernel prints when it panics: its tasks (1), its timers (4), and what each processor does (64).
const PANIC_PRINT: u32 = 1 | 4 | 64;

/// QEMU with the devices that every L1 has, and these options for its kernel. The caller adds memory, CPUs, IOMMU and
/// devices under test.
pub fn command(
    qemu: &Path,
    guest: &Guest,
    accel: Accel,
    host: Host,
    options: &str,
    initrd: &Path,
    folder: &Path,
) -> Command {
    let mut command = Command::new(qemu);
    for path in guest.firmware() {
        command.arg("-L").arg(path);
    }
    let file = |name: &str| format!("path={}", folder.join(name).display());
    command
        .args(accel.arguments(host))
        .args(["-machine", host.machine()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(guest.kernel())
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!(
            "{} panic=-1 mitigations=off random.trust_cpu=on log_buf_len=4M panic_print={PANIC_PRINT} vft.role=l1 {} \
             {options}",
            host.console_options(),
            host.iommu_options()
        ))
        .args(["-chardev", &format!("file,id=console,{}", file("l1-console.log"))])
        .args(["-serial", "chardev:console"])
        .args(["-chardev", "stdio,id=monitor,signal=off", "-mon", "chardev=monitor,mode=readline"])
        .args(["-chardev", &format!("file,id=records,{}", file(RECORDS))])
        .args(["-device", "virtio-serial-pci,addr=1e.0"])
        .args(["-device", &format!("virtserialport,chardev=records,name={L1_PORT}")]);
    command
}

/// Arguments that trace every IOMMU invalidation to a file.
pub fn trace_invalidations(folder: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    for event in ["vtd_inv_desc_iotlb_*", "amdvi_pages_inval", "amdvi_all_inval"] {
        arguments.extend(["-trace".to_owned(), event.to_owned()]);
    }
    arguments.extend(["-D".to_owned(), trace(folder).display().to_string()]);
    arguments
}

/// The trace file, which has one line per invalidation.
pub fn trace(folder: &Path) -> PathBuf {
    folder.join(TRACE)
}

/// Runs the command until it exits or the limit expires. `begun` is called at the first record.
pub fn run(
    mut command: Command,
    folder: &Path,
    limit: Duration,
    name: &str,
    begun: impl FnOnce(),
) -> Result<RunRecord> {
    fs::write(folder.join("l0-command.txt"), format!("{command:?}\n"))?;
    let log = File::create(folder.join("l0-qemu.log"))?;
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let (mut child, _cleanup) = interrupt::spawn(&mut command)
        .with_context(|| format!("Cannot start {}", command.get_program().display()))?;
    let start = Instant::now();
    let mut steps = File::create(folder.join(STEPS))?;
    let mut listener = Listener::new(folder, RECORDS);
    let mut begun = Some(begun);
    let mut through: Option<Instant> = None;
    let ended = loop {
        // Read before the records, so that the last records are not missed.
        let ended = child.try_wait()?;
        for step in listener.listen()? {
            if let Some(begun) = begun.take() {
                begun();
            }
            print(&format!("    {name}: {step} ({})", elapsed(start.elapsed())));
            let traced = fs::metadata(trace(folder)).map_or(0, |file| file.len());
            writeln!(steps, "{}", serde_json::to_string(&(step, traced))?)?;
        }
        if listener.told.ended {
            through.get_or_insert_with(Instant::now);
        }
        let hangs = through.is_some_and(|since| since.elapsed() > POWER_OFF);
        let told = &mut listener.told;
        let silent = told.heard.map_or(start.elapsed() > BOOT, |at| at.elapsed() > SILENCE);
        told.stalled = !told.ended && silent;
        if ended.is_some() || hangs || told.stalled || start.elapsed() > limit {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut told = listener.told;
    told.took = start.elapsed();
    match ended {
        Some(status) if status.success() => {}
        Some(status) => told.trouble.push(format!("L1's emulator ended with {status}")),
        None => {
            if !told.ended {
                ask_for_stacks(&mut child, folder)?;
            }
            child.kill()?;
            child.wait()?;
            let why = match (told.ended, told.stalled) {
                (true, _) => "it had finished but did not power off",
                (false, true) => "it stopped sending heartbeats",
                (false, false) => "it had not finished",
            };
            told.trouble.push(format!("L1 was stopped after {}: {why}", elapsed(told.took)));
        }
    }
    Ok(told)
}

/// Makes an L1 that hangs show why in its logs: what QEMU's threads wait for, then from QEMU the registers of each
/// processor and what its interrupt controller waits for, twice, and an NMI makes the kernel panic, which prints the
/// stacks of all tasks. If the second time shows interrupts delivered that were pending the first time, QEMU's main loop
/// had slept, and the monitor woke it.
fn ask_for_stacks(child: &mut Child, folder: &Path) -> Result<()> {
    fs::write(folder.join("l0-threads.log"), threads(child.id()))?;
    let Some(mut monitor) = child.stdin.take() else { return Ok(()) };
    // QEMU can have ended, or not read its monitor any more.
    let _ = monitor.write_all(b"info registers -a\ninfo lapic 0\ninfo lapic 1\n");
    std::thread::sleep(LAST_WORDS / 12);
    let _ = monitor.write_all(b"info lapic 0\ninfo lapic 1\nnmi\n");
    let start = Instant::now();
    while start.elapsed() < LAST_WORDS && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What each thread of a process waits for, as far as the kernel says it.
fn threads(pid: u32) -> String {
    let mut lines = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let chosen = ["State:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        let state: Vec<&str> =
            status.lines().filter(|line| chosen.iter().any(|name| line.starts_with(name))).collect();
        let [name, wchan, syscall] = ["comm", "wchan", "syscall"].map(read);
        let of_kernel = format!("{} in {}, system call {}", name.trim(), wchan.trim(), syscall.trim());
        lines.push_str(&format!("{of_kernel}; {}\n", state.join(", ").replace('\t', " ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_thread_has_a_line() {
        let lines = super::threads(std::process::id());
        assert!(lines.lines().count() >= 2, "{lines}");
        assert!(
            lines.lines().all(|line| line.contains("State: ") && line.contains("system call ")),
            "{lines}"
        );
    }
}
