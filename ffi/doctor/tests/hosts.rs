//! What the doctor says about many hosts: good ones, and ones on which something is wrong.

mod tree;

use std::process::{Command, Output};

use serde_json::Value;
use tree::Tree;

/// Topic, verdict, a part of what was found, and a part of what mends it.
type Expected = (&'static str, &'static str, &'static str, &'static str);

fn doctor(tree: &Tree, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfio-fast-doctor"));
    command.arg("--root").arg(&tree.0).args(args).output().unwrap()
}

/// The report as JSON. Checks what holds for any report, and that the text has the same findings.
fn report(tree: &Tree, args: &[&str]) -> Value {
    let output = doctor(tree, &[args, &["--json"]].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.stderr, b"");
    let findings = json["findings"].as_array().unwrap();
    let verdicts: Vec<&str> = findings.iter().map(|finding| finding["verdict"].as_str().unwrap()).collect();
    assert_eq!(json["can_work"], !verdicts.contains(&"blocks"));
    assert_eq!(output.status.code(), Some(i32::from(verdicts.contains(&"blocks"))));
    for finding in findings {
        assert_eq!(finding["fix"].is_null(), finding["verdict"] == "fine", "{finding}");
    }
    let text = doctor(tree, args);
    assert_eq!(text.status.code(), output.status.code());
    let text = String::from_utf8(text.stdout).unwrap();
    for line in text.lines() {
        // Only a path may be wider.
        let last = line.trim_start().trim_start_matches("> ");
        assert!(line.chars().count() <= 100 || !last.contains(' '), "{line}");
        assert_eq!(line, line.trim_end());
    }
    let verdict_of = |line: &str| {
        ["fine", "better", "BLOCKS"].into_iter().find(|v| line.get(12..).is_some_and(|l| l.starts_with(v)))
    };
    let shown: Vec<String> = text.lines().filter_map(verdict_of).map(str::to_lowercase).collect();
    assert_eq!(shown, verdicts, "{text}");
    json
}

/// Checks that the report has each of these findings once, and that nothing else blocks.
fn expect(tree: &Tree, args: &[&str], expected: &[Expected]) {
    let json = report(tree, args);
    let findings = json["findings"].as_array().unwrap();
    let is = |finding: &Value, (topic, verdict, what, fix): Expected| {
        finding["topic"] == topic
            && finding["verdict"] == verdict
            && finding["what"].as_str().unwrap().contains(what)
            && finding["fix"].as_str().unwrap_or_default().contains(fix)
    };
    for wanted in expected {
        let count = findings.iter().filter(|finding| is(finding, *wanted)).count();
        assert_eq!(count, 1, "{wanted:?} in {json:#}");
    }
    for finding in findings.iter().filter(|finding| finding["verdict"] == "blocks") {
        assert!(expected.iter().any(|wanted| is(finding, *wanted)), "also blocks: {finding:#}");
    }
}

/// Checks that everything is fine.
fn all_fine(tree: &Tree, args: &[&str]) {
    let json = report(tree, args);
    assert!(
        json["findings"].as_array().unwrap().iter().all(|finding| finding["verdict"] == "fine"),
        "{json:#}"
    );
}

#[test]
fn a_server_with_vtd_and_iommufd_is_ready() {
    let tree = Tree::new("vtd", "ready");
    all_fine(&tree, &[]);
    all_fine(&tree, &["--guest", "200G", "--devices", "3"]);
    expect(
        &tree,
        &["--guest", "200G"],
        &[
            ("iommu", "fine", "VT-d: 2 units, 4 groups; pages of 4 KiB, 2 MiB and 1 GiB; 48-bit", ""),
            ("interrupts", "fine", "remaps interrupts", ""),
            ("vfio", "fine", "type1: /dev/vfio/vfio can be opened", ""),
            ("vfio", "fine", "iommufd: /dev/iommu can be opened", ""),
            ("devices", "fine", "0000:41:00.0: display, driver vfio-pci, group 27, node 0", ""),
            ("devices", "fine", "0000:01:00.0: display, driver vfio-pci, group 14 (shared", ""),
            ("devices", "fine", "network, mlx5_core: 0000:61:00.0", ""),
            ("memlock", "fine", "CAP_IPC_LOCK", ""),
            ("mappings", "fine", "about 222", ""),
            ("kernel", "fine", "Linux 6.19.2-amd64: has all", ""),
            ("libvirt", "fine", "not installed", ""),
        ],
    );
    let json = report(&tree, &["--guest", "200G", "--devices", "2", "--viommu"]);
    assert_eq!((&json["version"], &json["guest_bytes"]), (&Value::from(1), &Value::from(200u64 << 30)));
    assert_eq!((&json["devices"], &json["viommu"]), (&Value::from(2), &Value::from(true)));
}

#[test]
fn addresses_that_a_group_reserves_block() {
    const FILE: &str = "file sys/kernel/iommu_groups/27/reserved_regions\n";
    const MSI: &str = "  0x00000000fee00000 0x00000000feefffff msi\n";
    let with = |test: &str, line: &str| Tree::new("vtd", test).with(&format!("{FILE}{MSI}{line}"));
    all_fine(&with("msi", ""), &["--guest", "200G"]);
    all_fine(
        &with("relaxable", "  0x0000000000000000 0x0000000000ffffff direct-relaxable\n"),
        &["--guest", "200G"],
    );
    let above = "  0x0000001000000000 0x00000010ffffffff reserved\n";
    all_fine(&with("above", above), &["--guest", "60G"]);
    all_fine(&with("unknown", above), &[]);
    expect(
        &with("amid", above),
        &["--guest", "63G"],
        &[("devices", "blocks", "0000:41:00.0: group 27 cannot map 0x1000000000", "at most 62 GiB")],
    );
    expect(
        &with("firmware", "  0x000000007b000000 0x000000007fffffff direct\n"),
        &[],
        &[(
            "devices",
            "blocks",
            "keeps 0x7b000000 to 0x7fffffff of group 27 for itself (RMRR",
            "another slot",
        )],
    );
}

#[test]
fn an_arm64_server_can_work() {
    let tree = Tree::new("smmu", "ready");
    let better = ("vfio", "better", "iommufd: no /dev/iommu", "modprobe iommufd");
    expect(
        &tree,
        &["--guest", "200G"],
        &[
            ("iommu", "fine", "SMMUv3: 2 units, 4 groups", ""),
            ("interrupts", "fine", "has an ITS, which remaps interrupts", ""),
            better,
        ],
    );
    let without = tree.with("file proc/interrupts\n   11:  1210  GICv2  27 Level  arch_timer\n");
    let blocks = ("interrupts", "blocks", "interrupts are not remapped", "has an ITS");
    expect(&without, &[], &[blocks, better]);
}

#[test]
fn an_arm64_server_without_its_smmu_cannot_work() {
    let tree = Tree::new("smmu", "no-groups").with("remove sys/kernel/iommu_groups\n");
    let blocks = |fix| ("iommu", "blocks", "no IOMMU groups", fix);
    expect(&tree, &[], &[blocks("smmu")]);
    expect(&tree.with("remove sys/firmware/acpi/tables/IORT\n"), &[], &[blocks("enable the SMMU")]);
}

#[test]
fn a_server_with_pools_on_two_nodes_can_work() {
    let tree = Tree::new("amd-pools", "ready");
    expect(
        &tree,
        &["--guest", "256G"],
        &[
            ("iommu", "fine", "AMD-Vi: 1 unit, 2 groups; pages of every power of two from 4 KiB", ""),
            ("vfio", "better", "iommufd: no /dev/iommu", "modprobe iommufd"),
            ("devices", "fine", "0000:c1:00.0: display, driver vfio-pci, group 40, node 1", ""),
            ("memlock", "fine", "user 64055: no limit", ""),
            ("memory", "fine", "which a pool of huge pages has free", ""),
            ("huge pages", "fine", "pool of 1 GiB: 384 of 512 pages free (node 0: 128, node 1: 256)", ""),
            (
                "numa",
                "better",
                "2 nodes; free: node 0: 60 GiB, node 1: 60 GiB; the bound devices are on node 1",
                "host-nodes",
            ),
            (
                "cpus",
                "better",
                "8 of 32 CPUs may fault memory in (0-7); 8-31 are isolated",
                "x-dma-mapper-context",
            ),
            (
                "cpus",
                "better",
                "process 900, a QEMU, has its main thread bound to 2 CPUs (2-3)",
                "emulatorpin",
            ),
            ("kernel", "fine", "only with a newer kernel", ""),
            ("libvirt", "fine", "as user libvirt-qemu", ""),
            ("libvirt", "better", "AppArmor", "$D/vfio-fast"),
        ],
    );
    // The pool is too small, and what is left is not enough.
    expect(
        &tree,
        &["--guest", "500G"],
        &[
            (
                "huge pages",
                "better",
                "384 GiB of 500 GiB",
                "echo 628 > /sys/kernel/mm/hugepages/hugepages-1048576kB",
            ),
            ("memory", "blocks", "120 GiB of 768 GiB available", "free memory"),
        ],
    );
}

#[test]
fn without_an_iommu_the_reason_is_named() {
    expect(
        &Tree::new("no-iommu", "none"),
        &[],
        &[("iommu", "blocks", "the firmware offers none", "enable VT-d")],
    );
    let off = Tree::new("switched-off", "none");
    expect(
        &off,
        &[],
        &[("iommu", "blocks", "intel_iommu=off is on the kernel's command line", "remove intel_iommu=off")],
    );
    let off = off.with("file proc/cmdline\n  ro quiet\n");
    expect(&off, &[], &[("iommu", "blocks", "the kernel does not use it", "add intel_iommu=on")]);
    let off = off.with("file proc/cmdline\n  ro intel_iommu=on,sm_on\n");
    expect(&off, &[], &[("iommu", "blocks", "is set, but the kernel does not use it", "dmesg")]);
    let amd = Tree::new("no-iommu", "ivrs").with("dir sys/firmware/acpi/tables/IVRS\n");
    expect(&amd, &[], &[("iommu", "blocks", "the firmware has AMD-Vi", "dmesg")]);
}

/// Captured from real kernels on the emulated IOMMUs of the test machines.
#[test]
fn captured_machines_can_work() {
    let intel = ("iommu", "fine", "VT-d: 1 unit, 3 groups; pages of 4 KiB, 2 MiB and 1 GiB; 48-bit", "");
    let amd =
        ("iommu", "fine", "AMD-Vi: 1 unit, 3 groups; pages of every power of two from 4 KiB; 64-bit", "");
    for (name, iommu) in [("captured-vtd", intel), ("captured-amd", amd)] {
        let tree = Tree::new(name, "captured");
        let common = [
            iommu,
            ("interrupts", "fine", "remaps interrupts", ""),
            ("devices", "fine", "0000:00:04.0: NVMe, driver vfio-pci, group 1", ""),
            ("mappings", "fine", "65535", ""),
            ("huge pages", "better", "shmem_enabled is never", "echo advise >"),
            ("kernel", "fine", "Linux 7.2.13: has all", ""),
        ];
        expect(&tree, &["--guest", "200M"], &common);
        let json = report(&tree, &["--guest", "200M"]);
        let better =
            json["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] == "better");
        assert_eq!(better.count(), 1, "{json:#}");
    }
}

#[test]
fn a_captured_virtual_machine_cannot_work() {
    let blocks = [
        ("iommu", "blocks", "this is a virtual machine without one", "intel-iommu,intremap=on"),
        ("vfio", "blocks", "VFIO is not loaded", "modprobe vfio-pci"),
    ];
    let tree = Tree::new("firecracker", "captured");
    let more = [
        ("devices", "better", "0 of 1 devices", "driver_override"),
        ("devices", "fine", "network, virtio-pci", ""),
        ("huge pages", "better", "shmem_enabled is never", "echo advise >"),
        ("cgroup", "fine", "no limit", ""),
        ("cpus", "fine", "2 of 2 CPUs", ""),
    ];
    expect(&tree, &[], &[&blocks[..], &more].concat());
    let memory = ("memory", "blocks", "the guest needs 512 GiB", "give the guest less memory");
    expect(&tree, &["--guest", "512G"], &[&blocks[..], &[memory]].concat());
    // The cgroup of version 1 has a limit of its own.
    let tree = tree.with("file sys/fs/cgroup/memory/service/memory.limit_in_bytes\n  1073741824\n");
    let cgroup =
        ("cgroup", "blocks", "this cgroup may use 1 GiB", "echo -1 > /sys/fs/cgroup/memory/service/");
    expect(&tree, &["--guest", "4G"], &[&blocks[..], &[cgroup]].concat());
}

#[test]
fn a_container_needs_the_devices() {
    let tree = Tree::new("container", "devices");
    // Root in a user namespace of its own: the limit holds.
    let limit = ("memlock", "blocks", "user 0 may lock 8 MiB; a guest needs its RAM", "ulimit -l");
    let devices = ("devices", "blocks", "/dev/vfio/27 is not there", "--device /dev/vfio/27");
    let json = report(&tree, &[]);
    let blocks = json["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] == "blocks");
    assert_eq!(blocks.count(), 4, "{json:#}");
    let given = tree.with("node dev/vfio/vfio 666\nnode dev/vfio/14 666\n");
    expect(&given, &[], &[limit, devices]);
    let none = Tree::new("container", "none");
    let text = String::from_utf8(doctor(&none, &[]).stdout).unwrap();
    assert!(text.contains("this is a container, and it has neither /dev/vfio nor /dev/iommu"), "{text}");
}

#[test]
fn a_user_needs_the_group_and_the_limit() {
    let tree = Tree::new("user", "permission");
    let memlock = ("memlock", "blocks", "may lock 8 MiB; the guest needs 64 GiB", "ulimit -l 68157440");
    let denied = [
        ("devices", "blocks", "0000:41:00.0: /dev/vfio/27 (mode 0600", "chown 4242 /dev/vfio/27"),
        ("devices", "blocks", "0000:01:00.0: /dev/vfio/14 (mode 0600", "chown 4242 /dev/vfio/14"),
    ];
    let iommufd = ("vfio", "better", "/dev/iommu (mode 0660", "setfacl -m u:4242:rw /dev/iommu");
    expect(&tree, &["--guest", "64G"], &[&denied[..], &[memlock, iommufd]].concat());
    let tree = tree.with("node dev/vfio/27 666\nnode dev/vfio/14 666\n");
    expect(&tree, &["--guest", "64G"], &[memlock]);
}

#[test]
fn the_limit_of_locked_memory_covers_each_container() {
    let limit = |bytes: &str| format!("file proc/self/limits\n  Max locked memory {bytes} {bytes} bytes\n");
    let tree = Tree::new("user", "memlock").with("node dev/vfio/27 666\nnode dev/vfio/14 666\n");
    let exact = tree.with(&limit(&(64u64 << 30).to_string()));
    let tight = (
        "memlock",
        "better",
        "the guest needs 64 GiB, and up to 1 GiB for video memory",
        "ulimit -l 68157440",
    );
    expect(&exact, &["--guest", "64G"], &[tight]);
    // Without a vIOMMU, all devices share a container.
    expect(&exact, &["--guest", "64G", "--devices", "2"], &[tight]);
    let twice =
        ("memlock", "blocks", "the guest needs 128 GiB: 64 GiB for each of 2 devices", "LimitMEMLOCK=129G");
    expect(&exact, &["--guest", "64G", "--devices", "2", "--viommu"], &[twice]);
    expect(&exact, &["--guest", "65G"], &[("memlock", "blocks", "the guest needs 65 GiB", "ulimit -l")]);
    expect(&exact, &[], &[("memlock", "fine", "guests of up to 63 GiB", "")]);

    // iommufd counts all processes of the user; type1 each alone.
    let other = "file proc/900/status\n  Uid:\t4242\t4242\t4242\t4242\n  VmPin:\t 33554432 kB\n";
    let foreign = "file proc/901/status\n  Uid:\t1\t1\t1\t1\n  VmPin:\t 33554432 kB\n";
    let shared = exact.with(&limit(&(70u64 << 30).to_string())).with(other).with(foreign);
    let counted = ("memlock", "better", "may lock 70 GiB; with iommufd 38 GiB", "ulimit -l");
    expect(&shared, &["--guest", "64G"], &[counted]);
    let only_iommufd =
        "node dev/iommu 666\nnode dev/vfio/devices/vfio0 666\nremove sys/module/vfio_iommu_type1\n";
    let shared = shared.with(only_iommufd);
    expect(&shared, &["--guest", "64G"], &[("memlock", "blocks", "with iommufd 38 GiB", "ulimit -l")]);
}

#[test]
fn the_mappings_of_a_container_suffice_for_the_guest() {
    let limit =
        |number: u64| format!("file sys/module/vfio_iommu_type1/parameters/dma_entry_limit\n  {number}\n");
    let tree = Tree::new("vtd", "mappings").with(&limit(200));
    let few = ("mappings", "better", "the guest needs about 238 of 1 GiB", "echo 65535 > /sys/module");
    expect(&tree, &["--guest", "216G"], &[few]);
    expect(&tree, &["--guest", "64G"], &[("mappings", "fine", "the guest needs about 86", "")]);
    let tree = tree.with(&limit(15));
    expect(&tree, &[], &[("mappings", "blocks", "fewer than any guest needs", "dma_entry_limit=65535")]);
    let tree = tree.with(&limit(65535));
    expect(&tree, &["--viommu"], &[("mappings", "better", "each mapping of the guest is one", "1048560")]);
}

#[test]
fn an_old_kernel_works_with_less() {
    let tree = Tree::new("old", "kernel");
    expect(
        &tree,
        &[],
        &[
            ("kernel", "better", "MADV_POPULATE_WRITE): 5.14; finding", "install Linux 6.19"),
            ("vfio", "better", "too old", "Linux 6.2"),
        ],
    );
    let none = Tree::new("vtd", "kernel").with("remove proc/sys/kernel/osrelease\n");
    expect(&none, &[], &[("kernel", "better", "not known", "mount")]);
}

#[test]
fn movable_memory_is_avoided_or_slow() {
    let tree = Tree::new("movable", "movable");
    let forbidden = ("memory", "better", "ZONE_MOVABLE 128 GiB, CMA 0 bytes", "kernel.io_uring_disabled=0");
    expect(&tree, &[], &[forbidden]);
    let blocks =
        ("memory", "blocks", "128 GiB are movable memory, where nothing can be pinned", "movablecore=");
    expect(&tree, &["--guest", "200G"], &[forbidden, blocks]);
    // Only for root, who asks.
    let tree = tree.with("file proc/sys/kernel/io_uring_disabled\n  1\n");
    all_fine(&tree, &[]);
    let tree = tree.with("file proc/sys/kernel/osrelease\n  6.11.0\n");
    expect(&tree, &[], &[("memory", "better", "the map calls fault memory in", "Linux 6.12")]);
    let tree = Tree::new("vtd", "zoneinfo").with("remove proc/zoneinfo\n");
    expect(&tree, &[], &[("memory", "better", "/proc/zoneinfo cannot be read", "allow")]);
}

#[test]
fn the_cgroup_bounds_memory_and_threads() {
    let limits = "file sys/fs/cgroup/user.slice/memory.max\n  34359738368\n\
                  file sys/fs/cgroup/user.slice/cpu.max\n  450000 100000\n";
    let tree = Tree::new("vtd", "cgroup").with(limits);
    let memory =
        ("cgroup", "blocks", "may use 32 GiB (/sys/fs/cgroup/user.slice/memory.max)", "MemoryMax=infinity");
    let quota = (
        "cpus",
        "better",
        "4 of 32 CPUs may fault memory in",
        "echo max > /sys/fs/cgroup/user.slice/cpu.max",
    );
    expect(&tree, &["--guest", "64G"], &[memory, quota]);
    expect(&tree, &["--guest", "16G"], &[("cgroup", "fine", "the guest needs 16 GiB", ""), quota]);
}

#[test]
fn huge_pages_can_be_refused() {
    let never = "file sys/kernel/mm/transparent_hugepage/enabled\n  always madvise [never]\n\
                 file sys/kernel/mm/transparent_hugepage/shmem_enabled\n  always advise [never] deny force\n";
    let tree = Tree::new("vtd", "huge").with(never);
    expect(
        &tree,
        &[],
        &[
            (
                "huge pages",
                "better",
                "enabled is never, and mapping base pages",
                "echo madvise > /sys/kernel/mm",
            ),
            ("huge pages", "better", "shmem_enabled is never", "echo advise > /sys/kernel/mm"),
        ],
    );
}

#[test]
fn a_group_that_the_host_uses_is_refused() {
    let used = "link sys/bus/pci/devices/0000:01:00.1/driver ../../../../bus/pci/drivers/snd_hda_intel\n";
    let tree = Tree::new("vtd", "group").with(used);
    let group =
        ("devices", "blocks", "0000:01:00.0 shares group 14 with 0000:01:00.1", "0000:01:00.1/driver/unbind");
    expect(&tree, &[], &[group]);
    let tree = Tree::new("vtd", "unloaded").with("remove sys/module/vfio_iommu_type1\nremove dev/iommu\n");
    expect(
        &tree,
        &[],
        &[
            ("vfio", "blocks", "type1 is not loaded", "modprobe vfio_iommu_type1"),
            ("vfio", "blocks", "iommufd", "modprobe"),
        ],
    );
}

#[test]
fn interrupts_and_addresses_can_be_too_few() {
    let table = "file proc/interrupts\n  24: 0 PCI-MSI-0000:01:00.0 0-edge vfio-msi\n";
    let tree = Tree::new("vtd", "interrupts").with(table);
    expect(&tree, &[], &[("interrupts", "blocks", "VFIO refuses devices", "allow_unsafe_interrupts")]);
    let tree = tree.with("file sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts\n  Y\n");
    expect(&tree, &[], &[("interrupts", "better", "can raise any interrupt", "intremap=off")]);
    // 39 bits and pages of 4 KiB, as the smallest units have.
    let small = "file sys/class/iommu/dmar1/intel-iommu/cap\n  c0000020260206\n\
                 file proc/meminfo\n  MemTotal: 1073741824 kB\n  MemAvailable: 1073741824 kB\n";
    let tree = Tree::new("vtd", "width").with(small);
    let pages = ("iommu", "better", "pages of 4 KiB; 39-bit addresses", "sp_off");
    let width = ("iommu", "blocks", "39-bit addresses, too few for a guest of 512 GiB", "at most 510 GiB");
    expect(&tree, &["--guest", "512G"], &[pages, width]);
}

#[test]
fn settings_of_libvirt_are_read() {
    let conf =
        "file etc/libvirt/qemu.conf\n  user = \"qemu\"\n  cgroup_device_acl = [\n      \"/dev/null\",\n  ]\n";
    let tree = Tree::new("vtd", "libvirt").with(conf);
    expect(
        &tree,
        &[],
        &[
            ("libvirt", "fine", "as user qemu", ""),
            ("libvirt", "better", "does not have /dev/iommu", "cgroup_device_acl = ["),
            ("libvirt", "fine", "sandbox", ""),
        ],
    );
}

#[test]
fn wrong_arguments_are_another_exit_code() {
    let tree = Tree::new("vtd", "usage");
    for args in [["--guest", "512"], ["--guest", "many"], ["--devices", "0"], ["--what", "1"]] {
        let output = doctor(&tree, &args);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}");
    }
    let nothing = Tree::new("vtd", "nothing").with("remove proc\n");
    let output = doctor(&nothing, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no /proc to read"));
}

#[test]
fn this_machine_gets_a_report() {
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-fast-doctor")).arg("--json").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(if json["can_work"] == true { 0 } else { 1 }));
    assert!(json["findings"].as_array().unwrap().len() >= 10, "{json:#}");
}
