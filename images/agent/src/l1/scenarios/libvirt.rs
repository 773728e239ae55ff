//! A Debian host with libvirt and the library's packages. A domain with a managed device starts, moves data, loses the
//! device and gets it again while it runs, is destroyed, starts again and moves data once more.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vfio_fast_protocol::job::DiskLayout;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, L2_PORT};
use vfio_fast_protocol::scenarios::libvirt::Check;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::apparmor::Audit;
use crate::l1::checks::{exit, preloaded};
use crate::l1::events::Events;
use crate::l1::lab::Lab;
use crate::l1::libvirt::{Libvirt, pid_of};
use crate::l1::{apparmor, command_line, debian, devices, huge_pages, proc};
use crate::wait::{Seen, wait_for};

const DOMAIN: &str = "vft";
const FOLDER: &str = "/run/vft";
const WITNESS: &str = "/run/vft/witness";
const EVENTS: &str = "/run/vft/l2-events";
const CONSOLE: &str = "/run/vft/l2-console";
const DOMAIN_FILE: &str = "/run/vft/domain.xml";
const DEVICE_FILE: &str = "/run/vft/device.xml";
/// The driver that the host has for the device.
const HOST_DRIVER: &str = "nvme";
/// A driver is unbound and another one bound within seconds.
const BOUND_WITHIN: Duration = Duration::from_secs(120);
const GIB: u64 = 1 << 30;

pub fn run(lab: &Lab) -> Result<()> {
    prepare(lab)?;
    let pinned = exit::pinned_pages()?;
    let mut audit = Audit::new()?;
    let libvirt = Libvirt::start(&lab.report)?;
    let mut moved = Vec::new();

    lab.report.step("define");
    fs::write(DEVICE_FILE, device_xml(&lab.job.devices[0])?)?;
    fs::write(DOMAIN_FILE, domain_xml(lab)?)?;
    libvirt.virsh(&["define", DOMAIN_FILE])?;
    let xml = libvirt.virsh(&["dumpxml", DOMAIN])?;
    let kept = ["managed='yes'", "LD_PRELOAD", "<source type='memfd'/>"];
    let missing: Vec<String> =
        kept.iter().filter(|text| !xml.contains(**text)).map(|text| format!("no {text}")).collect();
    lab.report.check(Check::Defined, &missing, "the definition has the device, the memory and the library");

    lab.report.step("start");
    let mut events = start(lab, &libvirt)?;
    let pid = pid_of(DOMAIN)?;
    let bound = driver(lab);
    lab.report.expect(Check::DeviceTaken, bound.as_deref() == Some("vfio-pci"), &format!("{bound:?}"));
    boot(lab, pid, &mut events, &mut moved)?;
    let state = libvirt.virsh(&["domstate", DOMAIN])?;
    let info = libvirt.virsh(&["dominfo", DOMAIN])?;
    let live = libvirt.virsh(&["dumpxml", DOMAIN])?;
    let memory = format!("{} KiB", lab.job.l2_memory_mib << 10);
    let seen = [("state", state.trim() == "running"), ("memory", info.matches(&memory).count() == 2)]
        .into_iter()
        .chain([("driver", live.contains("<driver name='vfio'/>"))]);
    let wrong: Vec<String> = seen.filter(|(_, right)| !right).map(|(what, _)| what.to_owned()).collect();
    lab.report.check(Check::Running, &wrong, "running, with that memory and a vfio device");
    let profile = apparmor::profile_of(pid)?;
    let confined = profile.starts_with("libvirt-") && profile.ends_with(" (enforce)");
    lab.report.expect(Check::Confined, confined && info.contains("apparmor"), &profile);
    limits(lab, pid)?;

    lab.report.step("detach");
    libvirt.virsh(&["detach-device", DOMAIN, DEVICE_FILE, "--live"])?;
    given_back(lab, Check::DeviceGivenBack)?;
    let held = witness::replay(&witnessed()?)?;
    let left = held.values().map(|held| held.len()).sum::<usize>();
    lab.report.expect(Check::NothingMappedAfterDetach, left == 0, &format!("{left} mappings"));
    lab.report.step("attach");
    libvirt.virsh(&["attach-device", DOMAIN, DEVICE_FILE, "--live"])?;
    let (_, written) = DiskLayout::of_mib(lab.job.disk_mib).written_by(0);
    next(lab, pid, &mut events, "the data to be read once more", |event| {
        matches!(event, Event::Moved { bytes, .. } if *bytes == written).then_some(())
    })?;
    let bound = driver(lab);
    let seen = format!("{written} bytes read and right, driver {bound:?}");
    lab.report.expect(Check::DataAfterAttach, bound.as_deref() == Some("vfio-pci"), &seen);

    lab.report.step("destroy");
    destroy(lab, &libvirt)?;
    let first = witnessed()?;

    lab.report.step("start again");
    let mut events = start(lab, &libvirt)?;
    boot(lab, pid_of(DOMAIN)?, &mut events, &mut moved)?;
    destroy(lab, &libvirt)?;
    given_back(lab, Check::DeviceGivenBackAtEnd)?;
    let left: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
    lab.report.check(Check::NothingPinned, &left, "no page more than before");
    preloaded::data(lab, Check::Data, &moved);

    let log = libvirt.log_of_domain(DOMAIN)?;
    let calls = [first, witnessed()?].concat();
    preloaded::summary_agrees(lab, Check::SummaryAgrees, &calls, &log);
    preloaded::faulted_in(lab, Check::FaultedInByThreads, &log);
    libvirt.virsh(&["undefine", DOMAIN])?;
    // Whatever QEMU itself does that the profile denies is no concern of the library's.
    let denials = audit.denials()?;
    let ours = ["pagemap", "smaps", "statm", "zoneinfo", "hugepages", "libvfio_fast", "node", "cgroup"];
    let denied: Vec<&String> =
        denials.keys().filter(|denial| ours.iter().any(|name| denial.contains(name))).collect();
    lab.report.expect(Check::NothingOfOursDenied, denied.is_empty(), &format!("{denied:?} of {denials:?}"));
    Ok(())
}

/// Loads AppArmor's profiles as Debian's units do, and gives the device to its driver.
fn prepare(lab: &Lab) -> Result<()> {
    huge_pages::allow(true)?;
    fs::create_dir(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
    fs::set_permissions(FOLDER, Permissions::from_mode(0o777))?;
    // libvirt looks for a driver of its own for the device among the kernel's modules, which are elsewhere here.
    let modules = format!("/lib/modules/{}", rustix::system::uname().release().to_string_lossy());
    fs::create_dir_all(&modules)?;
    fs::write(format!("{modules}/modules.alias"), "").context("cannot write modules.alias")?;
    // As udev's rules do, for the user that libvirt runs QEMU as.
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)).context("cannot open /dev/kvm to all")?;
    // The witness is no part of what is tested.
    fs::write(
        "/etc/apparmor.d/abstractions/libvirt-qemu.d/witness",
        format!("/vft/lib/libwitness.so mr,\n{WITNESS} rw,\n"),
    )
    .context("cannot write AppArmor rules")?;
    apparmor::load(&[])?;
    for profile in ["usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper"] {
        load_profile(profile)?;
    }
    devices::give_back(&lab.job.devices[0])?;
    given_back(lab, Check::DeviceGivenBack)
}

/// Loads one of Debian's profiles.
fn load_profile(name: &str) -> Result<()> {
    let mut parser = Command::new("/usr/sbin/apparmor_parser");
    parser.arg("--replace").arg(format!("/etc/apparmor.d/{name}"));
    let parsed = parser.output().context("cannot start apparmor_parser")?;
    ensure!(parsed.status.success(), "{name}: {}", String::from_utf8_lossy(&parsed.stderr));
    Ok(())
}

/// Waits until the host's driver has the device.
fn given_back(lab: &Lab, check: Check) -> Result<()> {
    let what = "the host's driver to have the device";
    wait_for(what, BOUND_WITHIN, || {
        let driver = driver(lab);
        let has = driver.as_deref() == Some(HOST_DRIVER);
        Ok(Seen::of(has.then_some(()), || format!("{driver:?}")))
    })?;
    lab.report.check(check, &[], HOST_DRIVER);
    Ok(())
}

/// The name of the device's driver.
fn driver(lab: &Lab) -> Option<String> {
    let link = format!("/sys/bus/pci/devices/{}/driver", lab.job.devices[0]);
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// Starts the domain, and returns what its L2 reports.
fn start(lab: &Lab, libvirt: &Libvirt) -> Result<Events> {
    for file in [WITNESS, EVENTS] {
        if Path::new(file).exists() {
            fs::remove_file(file)?;
        }
    }
    libvirt.virsh(&["start", DOMAIN])?;
    Ok(Events::new(EVENTS.to_owned(), lab.report.clone()))
}

/// Waits until L2 has moved the data of one boot.
fn boot(lab: &Lab, pid: u32, events: &mut Events, moved: &mut Vec<Event>) -> Result<()> {
    next(lab, pid, events, "L2 to be ready", |event| {
        moved.push(event.clone());
        matches!(event, Event::Ready { .. }).then_some(())
    })
}

fn next<T>(
    lab: &Lab,
    pid: u32,
    events: &mut Events,
    what: &str,
    wanted: impl FnMut(&Event) -> Option<T>,
) -> Result<T> {
    let runs = || {
        ensure!(Path::new(&format!("/proc/{pid}")).exists(), "{what}: QEMU has ended");
        Ok(None)
    };
    events.next(what, lab.wait(), runs, wanted)
}

/// Ends the domain, and sends what its QEMU did to the host.
fn destroy(lab: &Lab, libvirt: &Libvirt) -> Result<()> {
    libvirt.virsh(&["destroy", DOMAIN])?;
    for (log, file) in [("witness", WITNESS), ("l2-console", CONSOLE)] {
        let bytes = fs::read(file).with_context(|| format!("cannot read {file}"))?;
        String::from_utf8_lossy(&bytes).lines().for_each(|line| lab.report.log(log, line));
    }
    Ok(())
}

fn witnessed() -> Result<Vec<Call>> {
    witness::parse(&fs::read_to_string(WITNESS).context("cannot read the witness")?)
}

/// Checks that libvirt limits QEMU's locked memory as it says, and that this suffices for what is mapped.
fn limits(lab: &Lab, pid: u32) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next()).context("no limit of locked memory")?;
    let memory = lab.job.l2_memory_mib << 20;
    let seen = format!("{soft} bytes with {memory} bytes of memory");
    lab.report.expect(Check::Memlock, *soft == (memory + GIB).to_string(), &seen);

    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).context("no locked memory")?;
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().context("no number")?;
    let bars = proc::device_memory(pid)?;
    let held = witness::replay(&witnessed()?)?;
    let memory = held.values().flat_map(|held| held.values());
    let mapped: u64 = memory.filter(|entry| !proc::is_in(&bars, entry.vaddr)).map(|entry| entry.size).sum();
    let seen = format!("{} bytes are locked, {mapped} are mapped", locked << 10);
    lab.report.expect(Check::LockedAsMapped, locked << 10 == mapped && mapped > 0, &seen);
    Ok(())
}

/// The device as libvirt describes it.
fn device_xml(address: &str) -> Result<String> {
    let parts: Vec<&str> = address.split([':', '.']).collect();
    let [domain, bus, slot, function] = parts[..] else { bail!("{address} is no PCI address") };
    Ok(format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>\
         <address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>\
         </source></hostdev>\n"
    ))
}

/// The domain: L2 with a file for what it reports, and the library preloaded as docs/QEMU.md says.
fn domain_xml(lab: &Lab) -> Result<String> {
    let data = lab.disk_job(lab.job.l2_memory_mib * 3 / 4);
    let append = command_line::kernel_options(&L2Job::Disk(data), "");
    let (mib, device) = (lab.job.l2_memory_mib, device_xml(&lab.job.devices[0])?);
    let (qemu, preloaded) = (debian::QEMU, debian::PRELOADED);
    Ok(format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{DOMAIN}</name>
  <memory unit='MiB'>{mib}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/vft/vmlinuz</kernel>
    <initrd>/vft/l2.cpio</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{qemu}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='{CONSOLE}'/></serial>
    <channel type='file'><source path='{EVENTS}'/><target type='virtio' name='{L2_PORT}'/></channel>
    {device}
  </devices>
  <qemu:commandline>
    <qemu:env name='LD_PRELOAD' value='/vft/lib/libwitness.so:{preloaded}'/>
    <qemu:env name='VFIO_FAST_PRELOAD_STATS' value='-'/>
    <qemu:env name='VFT_WITNESS' value='{WITNESS}'/>
  </qemu:commandline>
</domain>
"
    ))
}
