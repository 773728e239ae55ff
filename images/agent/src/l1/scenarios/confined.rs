//! Starts QEMU as management software does: in libvirt's AppArmor profile, without and with the rules of this repository,
//! and as a user other than root who may lock a limited amount of memory. Only the firmware of L2 runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::scenarios::confined::{Check, PROFILES};

use crate::l1::apparmor::{self, Audit, Denials};
use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{devices, limits, qemu_trace, text_pattern};

const MIB: u64 = 1 << 20;
/// Memory that is added at run time: each of these is mapped by several threads.
const DIMM: u64 = 64 * MIB;
const DIMMS: u32 = 3;
/// What the user may lock at first: far less than the guest has.
const SMALL: u64 = 64 * MIB;
/// The user and the group.
const USER: u32 = 1000;

pub fn run(lab: &Lab) -> Result<()> {
    if lab.job.container == Container::Type1 {
        in_profile(lab)?;
    }
    as_user(lab)
}

fn in_profile(lab: &Lab) -> Result<()> {
    let [without, with] = PROFILES;
    apparmor::load(&PROFILES)?;
    let mut audit = Audit::new()?;
    // Whatever QEMU itself does that the profile denies is no concern of the library's.
    let stock = confined(lab, &mut audit, without, Mode::Stock)?;
    let bare = confined(lab, &mut audit, without, Mode::Fast)?;
    let ruled = confined(lab, &mut audit, with, Mode::Fast)?;

    let check = Check::WithoutRulesSaysWhatIsLost;
    let says =
        matches!(&bare.lost[..], [line] if ["pagemap", "smaps"].iter().all(|name| line.contains(name)));
    lab.report.expect(check, says, &format!("{:?}", bare.lost));
    let denied = more(&bare.at_start, &stock.at_start);
    let once = !denied.is_empty() && denied.values().all(|times| *times == 1);
    lab.report.expect(Check::WithoutRulesDeniedOnce, once, &format!("more than stock: {denied:?}"));
    let later = more(&bare.later, &stock.later);
    let seen = format!("{} maps and unmaps after the start; more than stock: {later:?}", bare.later_calls);
    lab.report.expect(Check::WithoutRulesLaterQuiet, later.is_empty() && bare.later_calls > 0, &seen);

    let mut denied = more(&ruled.at_start, &stock.at_start);
    denied.extend(more(&ruled.later, &stock.later));
    lab.report.expect(Check::WithRulesNothingDenied, denied.is_empty(), &format!("{denied:?}"));
    let seen = format!("page sizes known of {} bytes; {:?}", ruled.known, ruled.lost);
    let whole = ruled.lost.is_empty() && ruled.known >= lab.job.l2_memory_mib * MIB / 2 && bare.known == 0;
    lab.report.expect(Check::WithRulesNothingLost, whole, &seen);
    Ok(())
}

/// What one QEMU in a profile did.
struct Confined {
    /// Denials until its machine is built, and after that.
    at_start: Denials,
    later: Denials,
    later_calls: usize,
    /// The library's lines about files that it cannot read.
    lost: Vec<String>,
    /// Bytes of which the library knows the size of their pages.
    known: u64,
}

fn confined(lab: &Lab, audit: &mut Audit, profile: &str, mode: Mode) -> Result<Confined> {
    lab.report.step(&format!("{profile}, {}", mode.name()));
    let line = CommandLine::new(lab)
        .trace(&["vfio_dma_mapper_log"])
        .debug_console()
        .q35("", ",slots=4,maxmem=8G")
        .root_port(0)
        .device_behind_in(0, "dut", 0, mode);
    apparmor::confine(profile)?;
    let vm = Vm::start(lab, &line);
    apparmor::confine(apparmor::UNCONFINED)?;
    let mut vm = vm?;
    let own = apparmor::profile_of(vm.pid)?;
    lab.report.expect(Check::ProfileEnforced, own == format!("{profile} (enforce)"), &own);
    let at_start = audit.denials()?;
    let calls = vm.witnessed()?.len();

    // Firmware opens and closes shadow memory, and memory is added: transactions of every size.
    vm.qmp.run("cont", json!({}))?;
    vm.wait_firmware(1)?;
    for n in 0..DIMMS {
        let backend = json!({ "qom-type": "memory-backend-ram", "id": format!("mem{n}"), "size": DIMM });
        vm.qmp.run("object-add", backend)?;
        let dimm = json!({ "driver": "pc-dimm", "id": format!("dimm{n}"), "memdev": format!("mem{n}") });
        vm.qmp.run("device_add", dimm)?;
    }
    mappings::mappings(lab, &mut vm, Check::ProfileMappings)?;
    let later_calls = vm.witnessed()?[calls..].iter().filter(|call| call.is_map() || call.is_unmap()).count();
    let mut known = 0;
    if mode == Mode::Fast {
        let stats = count::library_stats(&mut vm)?;
        let number = |name: &str| stats[name].as_u64().with_context(|| format!("no counter {name}"));
        known = number("populate_huge")? + number("populate_small")?;
        let threads = number("threads_peak")?;
        lab.report.expect(Check::ProfileThreads, threads == 2, &format!("{threads} threads"));
    }
    let trace = qemu_trace::text()?;
    let lost = trace.lines().filter(|line| line.contains("/proc/self/")).map(str::to_owned).collect();
    vm.quit()?;
    let later = audit.denials()?;
    Ok(Confined { at_start, later, later_calls, lost, known })
}

/// The denials that are more than those.
fn more(denials: &Denials, than: &Denials) -> Denials {
    let of = |(what, times): (&String, &u64)| {
        let more = times.saturating_sub(than.get(what).copied().unwrap_or(0));
        (more > 0).then(|| (what.clone(), more))
    };
    denials.iter().filter_map(of).collect()
}

/// A user that owns the device's files and may lock some memory.
fn as_user(lab: &Lab) -> Result<()> {
    lab.report.step("user");
    give_files(lab)?;
    limits::set_memlock(None, SMALL)?;
    let line = CommandLine::new(lab).user(USER).debug_console().q35_with_ram().root_port(0);
    let mut vm = Vm::start(lab, &line)?;
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid))?;
    let ids: Vec<&str> =
        status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("CapEff:")).collect();
    let powerless = ids.len() == 2 && ids[0].split_whitespace().skip(1).all(|id| id == USER.to_string());
    let powerless = powerless && ids[1].ends_with("0000000000000000");
    lab.report.expect(Check::UserNotRoot, powerless, &format!("{ids:?}"));

    let refusal =
        vm.qmp.attempt("device_add", device(lab))?.err().map(|refusal| refusal.0).unwrap_or_default();
    let names = refusal.contains("-12 (Cannot allocate memory)")
        && refusal.contains("RLIMIT_MEMLOCK")
        && text_pattern::numbers(&refusal).contains(&SMALL);
    lab.report.expect(Check::UserRefused, names, &refusal);
    mappings::nothing_mapped(lab, &vm, Check::UserNothingMapped)?;

    limits::set_memlock(Some(vm.pid), lab.job.l2_memory_mib * MIB + SMALL)?;
    vm.qmp.run("device_add", device(lab))?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_firmware(1)?;
    mappings::mappings(lab, &mut vm, Check::UserMappings)?;
    let status = vm.qmp.status()?;
    lab.report.expect(Check::UserRunsOn, status == "running", &format!("the VM is {status}"));
    mappings::no_threads(lab, &vm, Check::NoThreads)?;
    vm.quit().map(drop)
}

fn device(lab: &Lab) -> Value {
    let mut device = devices::to_add(lab, 0, Mode::Fast);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    device
}

/// Gives the user what QEMU needs: KVM, the device, and a folder for its files. Nothing else changes.
fn give_files(lab: &Lab) -> Result<()> {
    let mut files = vec!["/dev/kvm".to_owned()];
    match lab.job.container {
        // Everybody may open /dev/vfio/vfio.
        Container::Type1 => {
            let group = fs::read_link(format!("/sys/bus/pci/devices/{}/iommu_group", lab.job.devices[0]))?;
            let number = group.file_name().context("a group has a number")?.to_string_lossy();
            files.push(format!("/dev/vfio/{number}"));
        }
        Container::Iommufd => {
            files.push("/dev/iommu".to_owned());
            for device in fs::read_dir("/dev/vfio/devices")? {
                files.push(device?.path().display().to_string());
            }
        }
    }
    for file in files.iter().filter(|file| Path::new(file).exists()) {
        chown(file, Some(USER), Some(USER)).with_context(|| format!("cannot give {file} away"))?;
    }
    fs::set_permissions("/run", Permissions::from_mode(0o777)).context("cannot open /run to everyone")
}
