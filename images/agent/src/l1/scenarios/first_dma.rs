//! Starts L2 with each of several devices, and measures when it first turns on the device's bus mastering: before that, the
//! device cannot access memory. SeaBIOS does it where it has a driver. OVMF does it to every device, for a moment, to learn
//! which bits of the command register can be set.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::Firmware;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::scenarios::first_dma::Check;
use vfio_fast_protocol::witness::Call;

use crate::l1::checks::{count, exit_calls};
use crate::l1::command_line::{CommandLine, FIRMWARE};
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

const ROUNDS: u32 = 3;
/// The log file that gets the table.
const TABLE: &str = "first-dma";
/// The devices of the spec, and whether firmware has a driver for each, its own or the device's ROM.
const DEVICES: [(&str, bool); 4] = [("NVMe", true), ("e1000e", true), ("igb", false), ("edu", false)];
/// What each firmware prints when it has tried to boot from everything: SeaBIOS, OVMF, OVMF's shell.
const NOTHING_TO_BOOT: [&str; 3] = ["No bootable device", "No bootable option", "Shell>"];
const CONSOLE: &str = "/run/l2-console";
/// Longer than firmware takes to reach a driver.
const FIRMWARE_WITHIN: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Seconds since QEMU's start, or within something.
struct Start {
    /// QEMU was told to run the guest.
    runs: f64,
    /// The guest first wrote the device's command register.
    config: Option<f64>,
    /// It turned on bus mastering.
    master: Option<f64>,
    /// Firmware, or Linux, had nothing more to do, or it was waited for in vain.
    end: f64,
    /// The library faulted memory in.
    fault_in: f64,
    /// Map calls took, all together.
    maps: f64,
}

pub fn run(lab: &Lab) -> Result<()> {
    let head = ["firmware", "device", "boots", "guest runs", "first write of its command register"];
    row(lab, &head.map(str::to_owned), &["bus master on", "end", "fault-in", "map calls"].map(str::to_owned));
    row(lab, &["---"; 5].map(str::to_owned), &["---:"; 4].map(str::to_owned));
    let mut problems = Vec::new();
    for firmware in [Firmware::SeaBios, Firmware::Ovmf] {
        for (n, (device, has_driver)) in DEVICES.into_iter().enumerate() {
            let starts = measure(lab, firmware, n, false)?;
            let enabled = starts.iter().filter(|start| start.master.is_some()).count();
            let expected = if has_driver || firmware == Firmware::Ovmf { starts.len() } else { 0 };
            if enabled != expected {
                problems.push(format!("{firmware:?} enabled {device} in {enabled} of {ROUNDS} starts"));
            }
        }
        let linux = measure(lab, firmware, 0, true)?;
        if linux.iter().any(|start| start.master.is_none()) {
            problems.push(format!("Linux on {firmware:?} did not enable the disk"));
        }
    }
    lab.report.check(Check::EnabledByFirmware, &problems, "by SeaBIOS where it has a driver, by OVMF always");
    Ok(())
}

/// Starts it several times, and writes a row of the table.
fn measure(lab: &Lab, firmware: Firmware, n: usize, linux: bool) -> Result<Vec<Start>> {
    let (device, _) = DEVICES[n];
    let boots = if linux { "Linux, loaded by QEMU" } else { "nothing" };
    lab.report.step(&format!("{firmware:?}, {device}, {boots}"));
    let starts = (0..ROUNDS).map(|_| one(lab, firmware, n, linux)).collect::<Result<Vec<Start>>>()?;
    let of = |value: fn(&Start) -> Option<f64>| spread(starts.iter().filter_map(value).collect());
    row(
        lab,
        &[
            format!("{firmware:?}"),
            device.to_owned(),
            boots.to_owned(),
            of(|start| Some(start.runs)),
            of(|start| start.config),
        ],
        &[
            of(|start| start.master),
            of(|start| Some(start.end)),
            of(|start| Some(start.fault_in)),
            of(|start| Some(start.maps)),
        ],
    );
    Ok(starts)
}

fn row(lab: &Lab, first: &[String], rest: &[String]) {
    lab.report.log(TABLE, &format!("| {} |", [first, rest].concat().join(" | ")));
}

/// The median, with the least and the largest.
fn spread(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    match seconds[..] {
        [] => "never".to_owned(),
        [least, .., largest] => {
            format!("{:.2} s [{least:.2} – {largest:.2}]", seconds[seconds.len() / 2])
        }
        [one] => format!("{one:.2} s, once"),
    }
}

fn one(lab: &Lab, kind: Firmware, n: usize, linux: bool) -> Result<Start> {
    let rom = if n == 1 { "id=dut,romfile=efi-e1000e.rom" } else { "id=dut" };
    let mut line = CommandLine::new(lab).debug_console().q35("", "").device_with(n, rom, lab.job.mode);
    if kind == Firmware::Ovmf {
        line = line.firmware()?;
    }
    if linux {
        line = line.linux(&L2Job::Idle, "");
    }
    let _ = fs::remove_file(CONSOLE);
    let mut vm = Vm::start(lab, &line)?;
    let runs = vm.age();
    let begun = Instant::now();
    vm.qmp.run("cont", json!({}))?;
    let (started, runs_ns) = (vm.started_ns(), runs.as_nanos() as u64);
    let since = |call: &Call| (call.start_ns - started) as f64 / 1e9;
    let guest = |call: &&Call| call.start_ns >= started + runs_ns;
    if linux {
        vm.wait_ready(|_| ())?;
    } else {
        while begun.elapsed() < FIRMWARE_WITHIN
            && !firmware_ended()
            && !vm.witnessed()?.iter().filter(guest).any(exit_calls::starts)
        {
            thread::sleep(PAUSE);
        }
    }
    let end = vm.age();
    let calls = vm.witnessed()?;
    let stats = count::library_stats(&mut vm)?;
    let populated = stats["populate_ns"].as_u64().context("the library reports no populate_ns")?;
    let mapped: u64 = calls.iter().filter(|call| call.is_map()).map(|call| call.duration_ns).sum();
    let start = Start {
        runs: runs.as_secs_f64(),
        config: calls.iter().filter(guest).find(|call| exit_calls::writes(call)).map(since),
        master: calls.iter().filter(guest).find(|call| exit_calls::starts(call)).map(since),
        end: end.as_secs_f64(),
        fault_in: populated as f64 / 1e9,
        maps: mapped as f64 / 1e9,
    };
    vm.quit()?;
    Ok(start)
}

fn firmware_ended() -> bool {
    let texts = [FIRMWARE, CONSOLE].map(|path| fs::read(path).unwrap_or_default());
    let texts = texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    NOTHING_TO_BOOT.iter().any(|what| texts.iter().any(|text| text.contains(what)))
}
