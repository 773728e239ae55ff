//! The scenarios, and the arguments for L0's QEMU that follow from the spec of a scenario.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use vfio_fast_protocol::scenarios;
use vfio_fast_protocol::spec::{Device, FIRST_SLOT, PATCHED, ScenarioSpec};

/// The specs with these names, on all their hosts if a name has no host; all specs if there are no names.
pub fn chosen(names: &[String]) -> Result<Vec<ScenarioSpec>> {
    let specs = scenarios::all();
    let is = |spec: &ScenarioSpec, name: &String| *name == spec.name() || name == spec.scenario;
    if let Some(unknown) = names.iter().find(|name| !specs.iter().any(|spec| is(spec, name))) {
        let known: Vec<String> = specs.iter().map(ScenarioSpec::name).collect();
        bail!("there is no scenario {unknown}, only {}", known.join(", "));
    }
    let wanted = |spec: &ScenarioSpec| names.is_empty() || names.iter().any(|name| is(spec, name));
    Ok(specs.into_iter().filter(wanted).collect())
}

/// The default: the main scenario on one host, with the library off and on.
pub fn main() -> ScenarioSpec {
    let mut specs = scenarios::nvme::specs();
    ScenarioSpec { modes: PATCHED, ..specs.swap_remove(0) }
}

/// Arguments for L1's memory.
pub fn memory_arguments(spec: &ScenarioSpec) -> Vec<String> {
    let mib = spec.l1_memory_mib();
    let mut arguments = vec!["-m".to_owned(), format!("{mib}M")];
    if spec.prealloc_l1 {
        let memory = format!("memory-backend-ram,id=l1,size={mib}M,prealloc=on");
        arguments.extend(["-object", &memory, "-machine", "memory-backend=l1"].map(str::to_owned));
    }
    arguments
}

/// Arguments for L1's IOMMU and the devices under test. `disk` is the disk under test, `bar` the file that backs a
/// BAR.
pub fn device_arguments(spec: &ScenarioSpec, disk: &Path, bar: &Path) -> Vec<String> {
    let mut arguments = vec!["-device".to_owned(), spec.host.iommu_device(spec.iommu_bits)];
    for (n, device) in spec.devices.iter().enumerate() {
        let slot = usize::from(FIRST_SLOT) + n;
        let pairs = match device {
            Device::Nvme => {
                let path = disk_path(disk, n);
                let drive = format!("if=none,id=disk{n},format=raw,cache=unsafe,file={}", path.display());
                vec![
                    ("-drive", drive),
                    ("-device", format!("nvme,serial=vft{n},drive=disk{n},addr={slot:x}.0")),
                ]
            }
            Device::Edu => vec![("-device", format!("edu,addr={slot:x}.0,dma_mask={:#x}", u64::MAX))],
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

/// The image of the disk of device `n`. Each disk has its own, because QEMU locks an image that it writes to.
pub fn disk_path(disk: &Path, n: usize) -> PathBuf {
    if n == 0 { disk.to_owned() } else { disk.with_extension(format!("{n}.img")) }
}

/// The numbers of all disks except the disk under test.
pub fn further_disks(spec: &ScenarioSpec) -> impl Iterator<Item = usize> {
    let devices = spec.devices.iter().enumerate();
    devices.filter(|(n, device)| *n > 0 && **device == Device::Nvme).map(|(n, _)| n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_fast_protocol::host::Host;

    #[test]
    fn names_choose() {
        assert_eq!(chosen(&[]).unwrap().len(), scenarios::all().len());
        let names = |name: &str| -> Vec<String> {
            chosen(&[name.to_owned()]).unwrap().iter().map(ScenarioSpec::name).collect()
        };
        assert_eq!(names("p2p-range"), ["p2p-range-intel-debian"]);
        assert_eq!(names("errors"), ["errors-intel-debian", "errors-intel-newest-iommufd"]);
        assert_eq!(names("conformance").len(), Host::ALL.len());
        assert_eq!(names("nvme-amd-newest"), ["nvme-amd-newest"]);
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
}
