//! Probes whether KVM works on this machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use vfio_fast_assets::image::Payload;
use vfio_fast_protocol::host::Host;

use super::accel::Accel;
use super::l0;
use super::parts::Parts;

/// A kernel under working KVM reaches user space well within this time.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

/// Boots a kernel under KVM. There are hosts on which `/dev/kvm` opens but no kernel boots.
pub fn choose(parts: &Parts, run: &Path) -> Result<Accel> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| cpuinfo.split_whitespace().any(|word| word == flag);
    if !has("vmx") && !has("svm") {
        return Ok(Accel::Tcg("the processor shows neither vmx nor svm"));
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg("/dev/kvm does not open"));
    }
    let nested = ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let path = format!("/sys/module/{module}/parameters/nested");
        fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    });
    if !nested {
        return Ok(Accel::Tcg("KVM has nested virtualization switched off"));
    }
    let folder = run.join("kvm-probe");
    fs::create_dir_all(&folder)?;
    let initrd = folder.join("initrd.cpio");
    let payload = Payload {
        agent: &parts.agent,
        ovmf: false,
        debian: false,
        qemu: None,
        libraries: &[],
        sysroot: None,
        programs: &[],
        job: b"",
    };
    parts.guest.write_initrd(&payload, &initrd)?;
    let mut command =
        l0::command(&parts.emulator, &parts.guest, Accel::Kvm, Host::INTEL_DEBIAN, "", &initrd, &folder);
    command.args(["-m", "1024M", "-smp", "2"]);
    let told = l0::run(command, &folder, PROBE_LIMIT, "kvm-probe", || ());
    fs::remove_file(initrd)?;
    // The agent rejects the empty job. Its report shows that user space was reached.
    match told {
        Ok(told) if told.heard.is_some() => Ok(Accel::Kvm),
        _ => Ok(Accel::Tcg("no kernel reaches user space under KVM here")),
    }
}
