//! Allocations of the kernel fail at random while a device is added, memory is plugged, and QEMU ends. L2 does not run.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use anyhow::Result;
use serde_json::{Value, json};
use vfio_fast_protocol::scenarios::failing_kernel::Check;
use vfio_fast_protocol::witness;

use crate::l1::checks::{exit, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::numbers::Numbers;
use crate::l1::vm::Vm;
use crate::l1::{devices, failing_allocations, proc};

const ROUNDS: u64 = 30;
/// An interval between failures is a power of two with an exponent below this, or between two of them.
const POWERS: u64 = 10;
/// Failures of each kind are at most so many at a time.
const TIMES: u64 = 4;
const MIB: u64 = 1 << 20;
const DIMM: u64 = 128 * MIB;
/// QEMU aborts if GLib gets no memory, and if memory cannot be mapped that the guest has already.
const ABORTS: [i32; 2] = [6, 5];

/// How QEMU took what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done,
    Refused,
    Aborted,
}

struct Rounds<'a> {
    lab: &'a Lab,
    numbers: Numbers,
    seen: BTreeMap<(&'static str, Outcome), u32>,
    failed: u64,
    ends: Vec<String>,
    mappings: Vec<String>,
    pinned: Vec<String>,
    threads: Vec<String>,
    second: Vec<String>,
}

pub fn run(lab: &Lab) -> Result<()> {
    failing_allocations::prepare()?;
    let numbers = Numbers::new(lab.job.image_seed);
    lab.report.step(&format!("rounds of the seed {:#x}", lab.job.image_seed));
    let mut rounds = Rounds {
        lab,
        numbers,
        seen: BTreeMap::new(),
        failed: 0,
        ends: Vec::new(),
        mappings: Vec::new(),
        pinned: Vec::new(),
        threads: Vec::new(),
        second: Vec::new(),
    };
    let pinned = exit::pinned_pages()?;
    for n in 0..ROUNDS {
        rounds.round(n)?;
        rounds.pinned.extend(exit::still_pinned(pinned)?);
    }
    rounds.report();
    Ok(())
}

impl Rounds<'_> {
    /// Starts QEMU, adds a device and memory, and quits. Each step has an interval of its own between failures, long ones
    /// if those of another are short.
    fn round(&mut self, n: u64) -> Result<()> {
        let line =
            CommandLine::new(self.lab).q35("", ",slots=1,maxmem=4G").root_port(0).failing_allocations();
        let mut vm = Vm::start(self.lab, &line)?;
        let mut device = devices::to_add(self.lab, 0, self.lab.job.mode);
        device["id"] = "dut".into();
        device["bus"] = "rp0".into();
        let outcome = self.attempt(&mut vm, "device", &device, n)?;
        if outcome == Outcome::Aborted {
            return Ok(());
        }
        if outcome == Outcome::Refused {
            for mapping in witness::replay(&vm.witnessed()?)?.values().flatten() {
                self.mappings.push(format!("refused, and mapped: {mapping:x?}"));
            }
            if let Err(refusal) = vm.qmp.attempt("device_add", device)? {
                self.second.push(format!("the device: {}", refusal.0));
                return vm.quit().map(drop);
            }
        }
        self.compare(&mut vm, "with the device")?;
        let backend = json!({ "qom-type": "memory-backend-ram", "id": "mem1", "size": DIMM });
        vm.qmp.run("object-add", backend)?;
        let dimm = json!({ "driver": "pc-dimm", "id": "dimm1", "memdev": "mem1" });
        let outcome = self.attempt(&mut vm, "memory", &dimm, n + POWERS / 2)?;
        if outcome == Outcome::Aborted {
            return Ok(());
        }
        self.compare(&mut vm, "after the memory")?;
        if outcome == Outcome::Refused {
            if let Err(refusal) = vm.qmp.attempt("device_add", dimm)? {
                self.second.push(format!("the memory: {}", refusal.0));
            }
            self.compare(&mut vm, "with the memory")?;
        }
        self.quit(vm, n)
    }

    /// Adds a device, or memory, while allocations fail.
    fn attempt(&mut self, vm: &mut Vm, what: &'static str, device: &Value, n: u64) -> Result<Outcome> {
        let times = self.start(n)?;
        let reply = vm.qmp.attempt("device_add", device.clone());
        self.failed += failing_allocations::stop(times)?;
        let outcome = match reply {
            Ok(Ok(_)) => Outcome::Done,
            Ok(Err(refusal)) => {
                self.lab.report.log("l1-setup", &format!("{what}: {}", refusal.0));
                Outcome::Refused
            }
            Err(_) => {
                let status = vm.wait_exit()?;
                if !status.signal().is_some_and(|signal| ABORTS.contains(&signal)) {
                    self.ends.push(format!("{what}: QEMU ended with {status}: {}", last_line(vm)));
                }
                self.lab.report.log("l1-setup", &format!("{what}: {status}: {}", last_line(vm)));
                Outcome::Aborted
            }
        };
        *self.seen.entry((what, outcome)).or_default() += 1;
        if outcome != Outcome::Aborted {
            let threads = proc::threads(vm.pid)?;
            let left = threads.iter().filter(|thread| thread.is_of_library());
            self.threads.extend(left.map(|thread| format!("{what}, {outcome:?}: {}", thread.name)));
        }
        Ok(outcome)
    }

    /// Lets allocations fail from now on, and returns how many of each kind may. The intervals of ten numbers in a row
    /// range from 1 to 1,023.
    fn start(&mut self, n: u64) -> Result<u64> {
        let power = 1 << (n % POWERS);
        let interval = power + self.numbers.below(power);
        let times = 1 + self.numbers.below(TIMES);
        failing_allocations::start(interval, times)?;
        Ok(times)
    }

    /// What is mapped is the guest's memory.
    fn compare(&mut self, vm: &mut Vm, when: &str) -> Result<()> {
        let compared = mappings::compare(self.lab, vm, 1, Ok)?;
        self.mappings.extend(compared.problems.into_iter().map(|problem| format!("{when}: {problem}")));
        Ok(())
    }

    /// Ends QEMU while allocations fail.
    fn quit(&mut self, mut vm: Vm, n: u64) -> Result<()> {
        let times = self.start(n)?;
        // Its reply may be what fails.
        let reply = vm.qmp.attempt("quit", json!({}));
        let status = vm.wait_exit()?;
        self.failed += failing_allocations::stop(times)?;
        let aborted = status.signal().is_some_and(|signal| ABORTS.contains(&signal));
        if !status.success() && !aborted {
            self.ends.push(format!("quit: {reply:?}, QEMU ended with {status}: {}", last_line(&vm)));
        }
        let outcome = if aborted { Outcome::Aborted } else { Outcome::Done };
        *self.seen.entry(("quit", outcome)).or_default() += 1;
        Ok(())
    }

    fn report(&self) {
        let report = &self.lab.report;
        let seen = format!("{} allocations failed: {:?}", self.failed, self.seen);
        report.check(Check::EndsAsExpected, &self.ends, &seen);
        report.check(Check::MappingsThroughout, &self.mappings, "the guest's memory, or nothing");
        report.check(Check::NothingPinned, &self.pinned, "after each round");
        report.check(Check::NoThreadsLeft, &self.threads, "after each step");
        report.check(Check::SecondTrySucceeds, &self.second, "after each refusal");
        let all = [
            ("device", Outcome::Done),
            ("device", Outcome::Refused),
            ("memory", Outcome::Done),
            ("memory", Outcome::Aborted),
        ];
        let missing = all.iter().filter(|one| !self.seen.contains_key(*one));
        let missing: Vec<String> = missing.map(|one| format!("never {one:?}")).collect();
        report.check(Check::EachOutcomeSeen, &missing, &seen);
    }
}

fn last_line(vm: &Vm) -> String {
    vm.stderr().ok().and_then(|text| text.lines().last().map(str::to_owned)).unwrap_or_default()
}
