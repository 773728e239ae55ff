//! The settings of libvirt that decide what its QEMU may do.

use std::io::ErrorKind;

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;

const TOPIC: &str = "libvirt";
const CONF: &str = "etc/libvirt/qemu.conf";
const RULES: &str = "etc/apparmor.d/abstractions/libvirt-qemu";

pub fn check(host: &Host, _: &Ask) -> Vec<Finding> {
    let mut findings = Vec::new();
    match host.try_read(CONF) {
        Ok(text) => findings.extend(settings(host, &text)),
        Err(ErrorKind::PermissionDenied) => findings.push(Finding::better(
            TOPIC,
            format!("/{CONF} cannot be read by user {}", host.user.number),
            "sudo vfio-fast-doctor",
        )),
        Err(_) if !host.has("etc/libvirt") => findings.push(Finding::fine(TOPIC, "not installed")),
        Err(_) => findings.push(Finding::fine(TOPIC, format!("no /{CONF}: its defaults hold"))),
    }
    // The folder of local rules lies next to the file of rules.
    if host.has(RULES) && !host.has(&format!("{RULES}.d/vfio-fast")) {
        findings.push(Finding::better(
            TOPIC,
            "its AppArmor profile denies QEMU a library in /usr/local and files that the library reads",
            format!("D=/{RULES}.d\ninstall -D -m 644 packaging/apparmor/vfio-fast $D/vfio-fast"),
        ));
    }
    findings
}

/// What qemu.conf says.
fn settings(host: &Host, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let user = value(text, "user").unwrap_or_else(|| "the default of the distribution".into());
    findings.push(Finding::fine(
        TOPIC,
        format!("QEMU runs as user {user}; libvirt raises its memlock limit by itself"),
    ));
    // Without a list of its own, libvirt allows the devices of VFIO to a guest that has one.
    let list = value(text, "cgroup_device_acl");
    if host.has("dev/iommu") && list.as_ref().is_none_or(|list| !list.contains("\"/dev/iommu\"")) {
        let fix = format!(
            "in /{CONF}: cgroup_device_acl = [ ..., \"/dev/iommu\" ]\nsystemctl restart virtqemud  # or libvirtd"
        );
        let what = "cgroup_device_acl does not have /dev/iommu: only a libvirt that knows iommufd itself lets QEMU open it";
        findings.push(Finding::better(TOPIC, what, fix));
    }
    // The sandbox is on unless it is turned off, and denies sched_setaffinity.
    if value(text, "seccomp_sandbox").is_none_or(|value| value != "0") {
        let what =
            "QEMU's sandbox keeps the library's threads on the CPUs of the thread that maps (emulatorpin)";
        findings.push(Finding::fine(TOPIC, what));
    }
    findings
}

/// The value of a setting that is not commented out: a word, a string, or a list over several lines.
fn value(text: &str, key: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    let at = lines
        .iter()
        .position(|line| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('=')))?;
    let first = lines[at].split_once('=')?.1.trim();
    if !first.starts_with('[') {
        return Some(first.trim_matches('"').to_owned());
    }
    let rest = lines[at..].join(" ");
    let list = rest.split_once('[')?.1.split_once(']')?.0;
    Some(list.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn only_what_is_not_commented_out_counts() {
        let text = "#user = \"root\"\nuser_x = 1\n user = \"qemu\"\ncgroup_device_acl = [\n  \"/dev/null\",\n# \"/dev/x\",\n  \"/dev/iommu\"\n]\nseccomp_sandbox = 0\n";
        assert_eq!(value(text, "user").as_deref(), Some("qemu"));
        assert_eq!(value(text, "cgroup_device_acl").as_deref(), Some("\"/dev/null\", \"/dev/iommu\""));
        assert_eq!(value(text, "seccomp_sandbox").as_deref(), Some("0"));
        assert_eq!(value(text, "group"), None);
    }
}
