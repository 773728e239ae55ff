//! The scenarios, and the arguments for L0's QEMU that follow from the spec of a scenario.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::machine::Machine;
use vfio_fast_protocol::qemu::QemuSeries;
use vfio_fast_protocol::scenarios;
use vfio_fast_protocol::spec::{Device, FIRST_SLOT, PATCHED, ScenarioSpec};

/// The specs with these names: on all their hosts if a name has no host, in one mode if it ends with one, or all on
/// that QEMU (`qemu10.2`). Without names, all that need not be named.
pub fn chosen(names: &[String]) -> Result<Vec<ScenarioSpec>> {
    let specs = scenarios::all();
    let is = |spec: &ScenarioSpec, name: &String| {
        *name == spec.name() || name == spec.scenario || *name == format!("qemu{}", spec.qemu)
    };
    let is_run = |spec: &ScenarioSpec, mode: Mode, name: &String| *name == spec.run_name(mode);
    let known = |name: &String| {
        specs.iter().any(|spec| is(spec, name) || spec.modes.iter().any(|mode| is_run(spec, *mode, name)))
    };
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let known: Vec<String> = specs.iter().map(ScenarioSpec::name).collect();
        bail!("there is no scenario {unknown}, only {}", known.join(", "));
    }
    let wanted = |spec: &ScenarioSpec| -> Vec<ScenarioSpec> {
        if names.is_empty() && !spec.only_by_name || names.iter().any(|name| is(spec, name)) {
            return vec![spec.clone()];
        }
        let named = |mode: &&[Mode]| names.iter().any(|name| is_run(spec, mode[0], name));
        let modes = spec.modes.chunks(1).filter(named);
        modes.map(|modes| ScenarioSpec { modes, ..spec.clone() }).collect()
    };
    Ok(specs.iter().flat_map(wanted).collect())
}

/// The spec of that name.
pub fn of(name: &str) -> Option<ScenarioSpec> {
    scenarios::all().into_iter().find(|spec| spec.name() == name)
}

/// Where a spec runs, for people: the host, and what is not usual.
pub fn place(spec: &ScenarioSpec) -> String {
    let mut place = spec.host.to_string();
    if spec.container == Container::Iommufd {
        place += ", iommufd";
    }
    if spec.qemu != QemuSeries::USUAL {
        place += &format!(", QEMU {}", spec.qemu);
    }
    place
}

/// The default: the main scenario on one host, with the library off and on.
pub fn main() -> ScenarioSpec {
    let mut specs = scenarios::nvme::specs();
    ScenarioSpec { modes: PATCHED, ..specs.swap_remove(0) }
}

/// Arguments for L1's memory and CPUs. `prealloc` populates the memory first.
pub fn machine_arguments(l1: &Machine, prealloc: bool) -> Vec<String> {
    // The CPUs of a socket share caches, so they have to be on one node.
    let smp = format!("{},sockets={}", l1.cpus(), l1.nodes.len());
    let mut arguments: Vec<String> =
        ["-m", &format!("{}M", l1.mib()), "-smp", &smp].map(str::to_owned).into();
    let one_node = l1.nodes.len() == 1;
    if one_node && !prealloc {
        return arguments;
    }
    let prealloc = if prealloc { ",prealloc=on" } else { "" };
    let mut cpu = 0;
    for (n, node) in l1.nodes.iter().enumerate() {
        let memory = format!("memory-backend-ram,id=node{n},size={}M{prealloc}", node.mib);
        arguments.extend(["-object".to_owned(), memory]);
        let cpus = format!("{cpu}-{}", cpu + node.cpus.saturating_sub(1));
        cpu += node.cpus;
        arguments.extend(match one_node {
            true => ["-machine".to_owned(), format!("memory-backend=node{n}")],
            false => ["-numa".to_owned(), format!("node,nodeid={n},cpus={cpus},memdev=node{n}")],
        });
    }
    arguments
}

/// Arguments for L1's IOMMU and the devices under test. `disk` is the disk under test, `bar` the file that backs a
/// BAR.
pub fn device_arguments(spec: &ScenarioSpec, disk: &Path, bar: &Path) -> Vec<String> {
    let iommu = spec.host.iommu_device(spec.iommu_bits);
    let mut arguments: Vec<String> =
        iommu.into_iter().flat_map(|device| ["-device".to_owned(), device]).collect();
    for (n, device) in spec.devices.iter().enumerate() {
        let slot = usize::from(FIRST_SLOT) + n;
        let pairs = match device {
            Device::Nvme | Device::Ext4 { .. } => {
                let path = disk_path(disk, n);
                let drive = format!("if=none,id=disk{n},format=raw,cache=unsafe,file={}", path.display());
                vec![
                    ("-drive", drive),
                    ("-device", format!("nvme,serial=vft{n},drive=disk{n},addr={slot:x}.0")),
                ]
            }
            Device::Edu => vec![("-device", format!("edu,addr={slot:x}.0,dma_mask={:#x}", u64::MAX))],
            // Their ROM is for the firmware of L2, not for that of L1.
            Device::E1000e => vec![("-device", format!("e1000e,romfile=,addr={slot:x}.0"))],
            Device::Igb => vec![("-device", format!("igb,romfile=,addr={slot:x}.0"))],
            Device::Connected => vec![
                ("-netdev", format!("hubport,id=net{n},hubid=0")),
                ("-device", format!("e1000e,romfile=,netdev=net{n},addr={slot:x}.0")),
            ],
            Device::Memory { mib } => vec![
                ("-object", format!("memory-backend-ram,id=bar{n},size={mib}M,share=on")),
                ("-device", format!("ivshmem-plain,memdev=bar{n},addr={slot:x}.0")),
            ],
            Device::File { mib } => vec![
                (
                    "-object",
                    format!("memory-backend-file,id=bar{n},size={mib}M,share=on,mem-path={}", bar.display()),
                ),
                ("-device", format!("ivshmem-plain,memdev=bar{n},addr={slot:x}.0")),
            ],
            Device::Empty { mib } => vec![("-device", format!("pci-testdev,membar={mib}M,addr={slot:x}.0"))],
        };
        arguments.extend(pairs.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
    }
    arguments
}

/// Arguments for the disk with a Debian system, which several machines may read.
pub fn debian_arguments(image: &Path) -> [String; 4] {
    let drive = format!("if=none,id=debian,format=raw,readonly=on,file={}", image.display());
    ["-drive", &drive, "-device", "virtio-blk-pci,drive=debian,addr=1d.0"].map(str::to_owned)
}

/// The image of the disk of device `n`. Each disk has its own, because QEMU locks an image that it writes to.
pub fn disk_path(disk: &Path, n: usize) -> PathBuf {
    if n == 0 { disk.to_owned() } else { disk.with_extension(format!("{n}.img")) }
}

/// All disks except the disk under test: the number of the device, its MiB, and whether it has a file system.
pub fn further_disks(spec: &ScenarioSpec) -> impl Iterator<Item = (usize, u64, bool)> {
    spec.devices.iter().enumerate().skip(1).filter_map(|(n, device)| match device {
        Device::Nvme => Some((n, 1, false)),
        Device::Ext4 { mib } => Some((n, *mib, true)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_fast_protocol::host::Host;
    use vfio_fast_protocol::machine::Node;

    #[test]
    fn names_choose() {
        let to_be_named = scenarios::all().iter().filter(|spec| spec.only_by_name).count();
        assert_eq!(chosen(&[]).unwrap().len() + to_be_named, scenarios::all().len());
        let names = |name: &str| -> Vec<String> {
            chosen(&[name.to_owned()]).unwrap().iter().map(ScenarioSpec::name).collect()
        };
        assert_eq!(names("p2p-range"), ["p2p-range-intel-debian"]);
        let on_10_2 = ["errors-intel-debian-qemu10.2", "errors-intel-newest-iommufd-qemu10.2"];
        let errors = ["errors-intel-debian", "errors-intel-newest-iommufd"];
        assert_eq!(names("errors"), [errors, on_10_2].concat());
        let newer = names("qemu10.2");
        assert!(newer.contains(&"nvme-virtio-newest-iommufd-qemu10.2".into()), "{newer:?}");
        assert!(newer.iter().all(|name| name.ends_with("-qemu10.2")), "{newer:?}");
        assert_eq!(names("conformance").len(), Host::all().count());
        assert_eq!(names("nvme-amd-newest"), ["nvme-amd-newest"]);
        let stock = chosen(&["nvme-amd-newest-stock".to_owned()]).unwrap();
        assert_eq!(
            (stock.len(), stock[0].name().as_str(), stock[0].modes),
            (1, "nvme-amd-newest", &[Mode::Stock][..])
        );
        assert_eq!(names("nvme")[0], "nvme-intel-debian");
        assert!(chosen(&["nvmee".into()]).unwrap_err().to_string().contains("nvme"));
    }

    #[test]
    fn devices_become_arguments() {
        let arguments = |name: &str| {
            let spec = chosen(&[name.to_owned()]).unwrap().remove(0);
            device_arguments(&spec, Path::new("/d/disk.img"), Path::new("/d/bar.img")).join(" ")
        };
        let two = arguments("two-devices-intel-debian");
        assert!(two.contains("serial=vft0,drive=disk0,addr=4.0"), "{two}");
        assert!(
            two.contains("file=/d/disk.1.img") && two.contains("serial=vft1,drive=disk1,addr=5.0"),
            "{two}"
        );
        let data = arguments("p2p-data-intel-newest");
        assert!(data.contains("edu,addr=4.0,dma_mask=0xffffffffffffffff"), "{data}");
        assert!(data.contains("mem-path=/d/bar.img") && data.contains("membar=65536M,addr=6.0"), "{data}");
        assert!(arguments("p2p-range-intel-debian").contains("aw-bits=39"));
    }
    #[test]
    fn the_machine_becomes_arguments() {
        let mut l1 = Machine::of_mib(3072);
        assert_eq!(machine_arguments(&l1, false).join(" "), "-m 3072M -smp 2,sockets=1");
        let prealloc = machine_arguments(&l1, true).join(" ");
        assert!(prealloc.contains("size=3072M,prealloc=on") && prealloc.ends_with("memory-backend=node0"));
        l1.nodes = vec![Node { mib: 1024, cpus: 2 }, Node { mib: 2048, cpus: 2 }];
        let two = machine_arguments(&l1, false).join(" ");
        assert!(two.starts_with("-m 3072M -smp 4,sockets=2 ") && !two.contains("-machine"), "{two}");
        assert!(two.contains("node,nodeid=0,cpus=0-1,memdev=node0"), "{two}");
        assert!(two.contains("node,nodeid=1,cpus=2-3,memdev=node1"), "{two}");
    }
}
