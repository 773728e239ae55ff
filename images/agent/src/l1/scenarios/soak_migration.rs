//! Memory devices are plugged and unplugged in random order, and in between L2 is migrated to another QEMU, which gets the
//! memory devices of the old one. A device writes to L2's memory all the time, as in migration.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::soak_migration::Check;

use super::hotplug;
use super::migration::{MIGRATABLE, QUICK, SOCKET, limit, migrated};
use crate::l1::checks::{exit, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::numbers::Numbers;
use crate::l1::qemu_files::QemuFiles;
use crate::l1::vm::Vm;
use crate::l1::{devices, requests};

const MIGRATIONS: u32 = 3;
/// Memory devices that are plugged or unplugged before each migration.
const STEPS: u32 = 2;
const DIMM_MIB: u64 = 128;
const DIMMS: usize = 2;

struct Soak<'a> {
    lab: &'a Lab,
    vm: Vm,
    /// How many QEMUs there were.
    machines: u32,
    numbers: Numbers,
    dimms: Vec<u64>,
    dimms_made: u64,
    plugs: u32,
    unplugs: u32,
    wrong: Vec<String>,
    lost: Vec<String>,
}

pub fn run(lab: &Lab) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    let mut vm = Vm::start(lab, &line(lab, 0, &json!([]))?)?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_event("the device to write", |event| matches!(event, Event::Writing { .. }))?;
    lab.report.step(&format!("steps of the seed {:#x}", lab.job.image_seed));
    let mut soak = Soak {
        lab,
        vm,
        machines: 1,
        numbers: Numbers::new(lab.job.image_seed),
        dimms: Vec::new(),
        dimms_made: 0,
        plugs: 0,
        unplugs: 0,
        wrong: Vec::new(),
        lost: Vec::new(),
    };
    soak.look("start")?;
    for _ in 0..MIGRATIONS {
        for _ in 0..STEPS {
            soak.change()?;
        }
        soak.migrate()?;
    }
    // Its kernel's messages come in the end.
    soak.vm.wait_ready(|_| ())?;
    while soak.unplugs == 0 {
        soak.change()?;
    }
    let happened = format!("{} plugs, {} unplugs, {MIGRATIONS} migrations", soak.plugs, soak.unplugs);
    lab.report.check(Check::MappingsThroughout, &soak.wrong, &happened);
    lab.report.check(Check::DataThroughout, &soak.lost, &happened);
    lab.report.expect(Check::EverythingHappened, soak.plugs > 0 && soak.unplugs > 0, &happened);
    soak.vm.quit()?;
    let left: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
    lab.report.check(Check::NothingLeft, &left, "no page is pinned");
    Ok(())
}

impl Soak<'_> {
    /// Plugs or unplugs a memory device.
    fn change(&mut self) -> Result<()> {
        let plugs = self.dimms.is_empty() || self.dimms.len() < DIMMS && self.numbers.below(2) == 0;
        if plugs {
            self.dimms_made += 1;
            self.plugs += 1;
            self.dimms.push(self.dimms_made);
            hotplug::plug(self.lab, &mut self.vm, self.dimms_made, DIMM_MIB, None)?;
            let id = format!("dimm{}", self.dimms_made);
            let is_taken = |data: &Value| data["info"]["device"] == id.as_str();
            let taken = self.vm.qmp.event_within("ACPI_DEVICE_OST", self.lab.wait(), is_taken)?;
            ensure!(taken.is_some(), "L2 has not taken {id}: {}", self.vm.qmp.events_seen());
        } else {
            let n = self.numbers.below(self.dimms.len() as u64) as usize;
            let dimm = self.dimms.swap_remove(n);
            self.unplugs += 1;
            requests::unplug(self.lab, &mut self.vm, &format!("dimm{dimm}"))?;
            self.vm.qmp.run("object-del", json!({ "id": format!("mem{dimm}") }))?;
        }
        self.look(if plugs { "plug" } else { "unplug" })
    }

    fn migrate(&mut self) -> Result<()> {
        self.lab.report.step(&format!("migration {}", self.machines));
        let memory = self.vm.qmp.run("query-memory-devices", json!({}))?;
        let incoming = line(self.lab, self.machines, &memory)?.args(["-incoming", SOCKET]);
        self.machines += 1;
        let mut next = Vm::start(self.lab, &incoming)?;
        limit(&mut self.vm, QUICK)?;
        self.vm.qmp.run("migrate", json!({ "uri": SOCKET }))?;
        migrated(self.lab, &mut self.vm, None)?;
        migrated(self.lab, &mut next, None)?;
        let old = std::mem::replace(&mut self.vm, next);
        self.look("migration")?;
        self.vm.qmp.run("cont", json!({}))?;
        old.quit()?;
        let (written, lost, changed) = self.vm.next_event("L2 to compare", |event| match event {
            Event::Migrated { written, lost, changed, .. } => Some((*written, *lost, *changed)),
            _ => None,
        })?;
        if (lost, changed) != (0, 0) {
            let which = self.machines - 1;
            self.lost.push(format!(
                "migration {which}: {lost} of {written} writes are lost, {changed} words changed"
            ));
        }
        self.look("comparison")
    }

    /// Notes what is wrong with what is mapped.
    fn look(&mut self, after: &str) -> Result<()> {
        let compared = mappings::compare(self.lab, &mut self.vm, 1, Ok)?;
        let which = self.machines;
        self.wrong.extend(
            compared.problems.into_iter().map(|problem| format!("machine {which}, {after}: {problem}")),
        );
        Ok(())
    }
}

/// The QEMU of that number, with memory devices as another one has them.
fn line<'a>(lab: &'a Lab, number: u32, memory: &Value) -> Result<CommandLine<'a>> {
    let files = if number.is_multiple_of(2) { QemuFiles::USUAL } else { QemuFiles::DESTINATION };
    let folder = devices::make_mediated(&format!("5c0e3a52-0000-4000-8000-{number:012x}"))?;
    let properties = lab.job.device_properties();
    let mut line = CommandLine::with_files(lab, files)
        .q35("", &format!(",slots={DIMMS},maxmem=8G"))
        .args(["-device", &format!("vfio-pci,id=dut,sysfsdev={folder},{MIGRATABLE}{properties}")]);
    for device in memory.as_array().context("the memory devices are no list")? {
        let data = &device["data"];
        let id = data["id"].as_str().context("a memory device without an id")?;
        let backend = id.replace("dimm", "mem");
        let (size, address, slot) = (&data["size"], &data["addr"], &data["slot"]);
        line = line
            .args(["-object", &format!("memory-backend-ram,id={backend},size={size},share=off")])
            .args(["-device", &format!("pc-dimm,id={id},memdev={backend},addr={address},slot={slot}")]);
    }
    let job = L2Job::Migration { seed: lab.job.write_seed, times: MIGRATIONS };
    Ok(line.linux(&job, "memhp_default_state=online_movable"))
}
