//! Guests whose memory is mapped in the background, while requests arrive in random order: reset, stop, cont, devices and memory
//! come and go, and in the end QEMU quits, is killed, or the guest runs with everything mapped.
//!
//! The guest is a firmware of a few instructions, which turns on the bus mastering of its device after each reset. The machine
//! is an i440FX, because a reset completes an unplug on its root bus: no guest has to take part.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::scenarios::background_random::Check;
use vfio_fast_protocol::witness;

use super::background;
use crate::l1::bus_master::{self, SLOT, Width};
use crate::l1::checks::{exit, exit_calls};
use crate::l1::command_line::CommandLine;
use crate::l1::devices;
use crate::l1::faults::{self, Fault};
use crate::l1::lab::Lab;
use crate::l1::numbers::Numbers;
use crate::l1::vm::Vm;
use crate::wait::{Seen, wait_for};

const ROUNDS: u64 = 16;
const MOST_REQUESTS: u64 = 12;
const LONGEST_PAUSE_MS: u64 = 400;
const DIMM_MIB: u64 = 128;
const DIMMS: u64 = 4;
/// The devices of the spec, and where they are in the guest.
const DEVICES: [(&str, &str); 2] = [("dut", SLOT), ("second", "11")];
const ALWAYS: u64 = u64::MAX;
/// Far longer than it takes.
const SOON: Duration = Duration::from_secs(120);

/// Refusals that a request at a bad time may get.
const REFUSALS: [&str; 4] =
    ["still being mapped", "Duplicate device ID", "already in the process of unplug", "not found"];

/// What is wrong, and how often what happened.
#[derive(Default)]
struct Found {
    at_bus_master: Vec<String>,
    in_the_end: Vec<String>,
    left: Vec<String>,
    happened: BTreeMap<&'static str, u32>,
}

impl Found {
    fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }
}

pub fn run(lab: &Lab) -> Result<()> {
    let mut numbers = Numbers::new(lab.job.image_seed);
    let mut found = Found::default();
    for round in 0..ROUNDS {
        lab.report.step(&format!("round {round} of the seed {:#x}", lab.job.image_seed));
        one(lab, round, &mut numbers, &mut found)?;
    }
    let happened = format!("{:?}", found.happened);
    lab.report.check(Check::MappedAtEachBusMaster, &found.at_bus_master, &happened);
    lab.report.check(Check::MappedInTheEnd, &found.in_the_end, "all memory");
    lab.report.check(Check::NothingLeft, &found.left, "nothing is mapped or pinned");
    let wanted = ["bus master on", "held", "finished with a device", "quit", "killed"];
    let never: Vec<String> = wanted
        .iter()
        .filter(|what| !found.happened.contains_key(*what))
        .map(|what| format!("never: {what}"))
        .collect();
    lab.report.check(Check::EverythingHappened, &never, &happened);
    Ok(())
}

fn one(lab: &Lab, round: u64, numbers: &mut Numbers, found: &mut Found) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    let memory = format!("{}M,slots={DIMMS},maxmem=4G", lab.job.l2_memory_mib);
    let mut line = CommandLine::new(lab)
        .args(["-machine", "pc", "-m", &memory, "-smp", "2"])
        .args(bus_master::firmware(Width::Word)?)
        .fault(Fault::Slow, 0..=0, ALWAYS);
    let first = 1 + numbers.below(DEVICES.len() as u64) as usize;
    for (n, (id, slot)) in DEVICES.into_iter().enumerate().take(first) {
        line =
            line.device_with(n, &format!("id={id},addr=0x{slot},x-dma-mapper-background=on"), lab.job.mode);
    }
    let mut vm = Vm::start(lab, &line)?;
    request(&mut vm, "cont", json!({}))?;
    let mut dimms = 0;
    for _ in 0..numbers.below(MOST_REQUESTS + 1) {
        thread::sleep(Duration::from_millis(numbers.below(LONGEST_PAUSE_MS)));
        random_request(lab, &mut vm, numbers, &mut dimms)?;
        if vm.qmp.status()? == "dma-mapping" {
            found.count("held");
        }
    }

    // In turns, so that any seed has each of these ends.
    let calls = match round % 3 {
        0 => {
            found.count("quit");
            let calls = vm.quit()?;
            for (iova, left) in witness::replay(&calls)?.values().flatten() {
                found.left.push(format!("quit: still mapped: {iova:#x} + {:#x}", left.size));
            }
            calls
        }
        1 => {
            found.count("killed");
            let calls = vm.witnessed()?;
            vm.kill()?;
            calls
        }
        _ => {
            found.count("finished");
            if finish(&mut vm)? {
                found.count("finished with a device");
                let calls = vm.witnessed()?;
                found.in_the_end.extend(background::missing(lab, &calls)?);
            }
            vm.quit()?
        }
    };
    found.left.extend(exit::still_pinned(pinned)?);
    let starts: Vec<usize> =
        calls.iter().enumerate().filter(|(_, call)| exit_calls::starts(call)).map(|(n, _)| n).collect();
    for start in starts {
        found.count("bus master on");
        found.at_bus_master.extend(background::missing(lab, &calls[..start])?);
    }
    Ok(())
}

fn random_request(lab: &Lab, vm: &mut Vm, numbers: &mut Numbers, dimms: &mut u64) -> Result<()> {
    let n = numbers.below(DEVICES.len() as u64) as usize;
    let (id, slot) = DEVICES[n];
    match numbers.below(9) {
        0 | 1 => request(vm, "system_reset", json!({})),
        2 => request(vm, "stop", json!({})),
        3 => request(vm, "cont", json!({})),
        // The next reset completes it.
        4 => request(vm, "device_del", json!({ "id": id })),
        5 => {
            let mut device = devices::to_add(lab, n, lab.job.mode);
            device["id"] = id.into();
            device["addr"] = format!("0x{slot}").into();
            device["x-dma-mapper-background"] = true.into();
            request(vm, "device_add", device)
        }
        6 if *dimms < DIMMS => {
            *dimms += 1;
            let memory = format!("mem{dimms}");
            let backend = json!({ "qom-type": "memory-backend-ram", "id": memory, "size": DIMM_MIB << 20 });
            request(vm, "object-add", backend)?;
            request(
                vm,
                "device_add",
                json!({ "driver": "pc-dimm", "id": format!("dimm{dimms}"), "memdev": memory }),
            )
        }
        7 => faults::disarm(),
        _ => faults::arm(Fault::Slow, 0..=0, u64::MAX, ALWAYS),
    }
}

/// Makes a request that may come at a bad time.
fn request(vm: &mut Vm, command: &str, arguments: Value) -> Result<()> {
    if let Err(refusal) = vm.qmp.attempt(command, arguments)? {
        let expected = REFUSALS.iter().any(|text| refusal.0.contains(text));
        ensure!(expected, "QEMU refuses {command}: {}", refusal.0);
    }
    Ok(())
}

/// Waits until the guest runs, all is mapped, and the guest has come to the end of its firmware. Whether there is a
/// device.
fn finish(vm: &mut Vm) -> Result<bool> {
    faults::disarm()?;
    let has_device = wait_for("a guest that runs with all its memory mapped", SOON, || {
        let status = vm.qmp.status()?;
        if status != "running" && status != "dma-mapping" {
            request(vm, "cont", json!({}))?;
        }
        let all = vm.qmp.run("x-query-vfio-dma", json!({}))?;
        let devices = all.as_array().context("the query returns no list")?;
        let done = status == "running" && devices.iter().all(|device| device["complete"] == true);
        Ok(Seen::of(done.then_some(!devices.is_empty()), || format!("{status}; {all}")))
    })?;
    vm.wait_first_output()?;
    Ok(has_device)
}
