//! The kernel's two interfaces for devices in user space: type1 containers and iommufd.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::{Access, Host};

const TOPIC: &str = "vfio";
const TYPE1: &str = "dev/vfio/vfio";
const IOMMUFD: &str = "dev/iommu";
/// What iommufd gains over type1 with the library.
const GAIN: &str = "with iommufd, threads also map and unmap concurrently";

/// Whether iommufd can be used by this user.
pub fn has_iommufd(host: &Host) -> bool {
    host.access(IOMMUFD) == Access::Open
}

/// Whether containers of type1 can be used by this user.
pub fn has_type1(host: &Host) -> bool {
    host.access(TYPE1) == Access::Open && host.has("sys/module/vfio_iommu_type1")
}

/// Permissions and owner, as the text of a finding.
pub fn denied(host: &Host, path: &str, access: Access) -> Option<String> {
    let Access::Denied { mode, owner, group } = access else { return None };
    let user = host.user.number;
    Some(format!("/{path} (mode {mode:04o}, user {owner}, group {group}) cannot be opened by user {user}"))
}

pub fn check(host: &Host, _: &Ask) -> Vec<Finding> {
    let (type1, iommufd) = (host.access(TYPE1), host.access(IOMMUFD));
    if (type1, iommufd) == (Access::Missing, Access::Missing) {
        return vec![neither(host)];
    }
    let usable = has_type1(host) || iommufd == Access::Open;
    let worse = |what: String, fix: String| {
        if usable { Finding::better(TOPIC, what, fix) } else { Finding::blocks(TOPIC, what, fix) }
    };
    let mut findings = Vec::new();
    if let Some(what) = denied(host, TYPE1, type1) {
        findings.push(worse(
            what,
            "chmod 666 /dev/vfio/vfio  # the default of the kernel: it gives access to no device".into(),
        ));
    } else if type1 == Access::Open && !has_type1(host) {
        let what = "/dev/vfio/vfio is there, but type1 is not loaded".into();
        findings.push(worse(what, "modprobe vfio_iommu_type1".into()));
    } else if type1 == Access::Open {
        findings.push(Finding::fine(TOPIC, "type1: /dev/vfio/vfio can be opened"));
    } else {
        findings.push(Finding::fine(TOPIC, "type1: not there (no /dev/vfio/vfio); use iommufd"));
    }
    if let Some(what) = denied(host, IOMMUFD, iommufd) {
        let user = host.user.number;
        let rule = format!("setfacl -m u:{user}:rw /dev/iommu");
        findings.push(worse(format!("{what}; {GAIN}"), rule));
    } else if iommufd == Access::Open {
        findings.push(Finding::fine(TOPIC, format!("iommufd: /dev/iommu can be opened; {GAIN}")));
    } else if host.is_at_least((6, 2)) {
        let fix = "modprobe iommufd  # fails if the kernel was built without CONFIG_IOMMUFD".into();
        findings.push(worse(format!("iommufd: no /dev/iommu; {GAIN}"), fix));
    } else {
        let fix = "install Linux 6.2 or newer with CONFIG_IOMMUFD".into();
        findings.push(worse(format!("iommufd: this kernel is too old for it; {GAIN}"), fix));
    }
    findings
}

fn neither(host: &Host) -> Finding {
    if host.is_container() {
        let fix = "start the container with --device /dev/vfio/vfio --device /dev/vfio/GROUP --ulimit memlock=-1, \
                   or, for iommufd, with /dev/iommu and /dev/vfio/devices";
        return Finding::blocks(
            TOPIC,
            "this is a container, and it has neither /dev/vfio nor /dev/iommu",
            fix,
        );
    }
    let what = "neither /dev/vfio/vfio nor /dev/iommu: VFIO is not loaded, or not in this kernel";
    Finding::blocks(
        TOPIC,
        what,
        "modprobe vfio-pci\necho vfio-pci > /etc/modules-load.d/vfio-pci.conf  # to keep it",
    )
}
