//! The CPUs that the library's threads would run on.

use crate::ask::Ask;
use crate::cgroup;
use crate::finding::Finding;
use crate::host::Host;
use crate::ranges;
use crate::user::field;

const TOPIC: &str = "cpus";
/// How QEMU gives the library's threads other CPUs than its main thread has.
const CONTEXT: &str = "-object thread-context,id=tc0,cpu-affinity=FIRST-LAST \\\n\
                       -device vfio-pci,...,x-dma-mapper-context=tc0";

pub fn check(host: &Host, _: &Ask) -> Vec<Finding> {
    let online =
        ranges::numbers(&host.read("sys/devices/system/cpu/online").unwrap_or_default()).len() as u64;
    let status = host.read("proc/self/status").unwrap_or_default();
    let list = field(&status, "Cpus_allowed_list:");
    let allowed = ranges::numbers(list).len() as u64;
    let mut findings = Vec::new();
    let quota = cgroup::cpu_quota(host).filter(|(quota, _)| *quota < allowed);
    let isolated = host.read("sys/devices/system/cpu/isolated").filter(|cpus| !cpus.is_empty());
    let aside = isolated.as_ref().map(|cpus| format!("; {cpus} are isolated")).unwrap_or_default();
    let what = format!("{allowed} of {online} CPUs may fault memory in ({list}){aside}");
    findings.push(if let Some((quota, file)) = quota {
        let what =
            format!("{quota} of {online} CPUs may fault memory in, because the cgroup has a quota (/{file})");
        Finding::better(TOPIC, what, format!("echo max > /{file}"))
    } else if allowed < online && isolated.is_none() {
        Finding::better(TOPIC, what, format!("taskset -pc 0-{} $$  # or of QEMU:\n{CONTEXT}", online - 1))
    } else if allowed < online {
        // Isolated CPUs are idle while the guest starts: they are its own.
        Finding::better(TOPIC, what, CONTEXT)
    } else {
        Finding::fine(TOPIC, what)
    });
    findings.extend(pinned(host, online));
    findings
}

/// Running QEMUs whose main thread has few CPUs, as libvirt's emulatorpin gives it: the next one will, too.
fn pinned(host: &Host, online: u64) -> Option<Finding> {
    let mut found = host.processes().filter_map(|process| {
        let name = host.read(&format!("proc/{process}/comm"))?;
        // The status of a process is that of its main thread.
        let status = name.starts_with("qemu-").then(|| host.read(&format!("proc/{process}/status")))??;
        let list = field(&status, "Cpus_allowed_list:").to_owned();
        let cpus = ranges::numbers(&list).len() as u64;
        (cpus > 0 && cpus * 4 <= online).then_some((cpus, process, list))
    });
    let (cpus, process, list) = found.next()?;
    Some(Finding::better(
        TOPIC,
        format!(
            "process {process}, a QEMU, has its main thread bound to {cpus} CPUs ({list}): so many threads it gets"
        ),
        format!("# a wider <emulatorpin> of libvirt, or of QEMU:\n{CONTEXT}"),
    ))
}
