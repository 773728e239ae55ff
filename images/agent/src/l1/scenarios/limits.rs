//! Starts L2 without its device, with RAM that cannot be had, and adds the device, mapped by QEMU's listener and by
//! the library. L2 does not run. Compared are how it ends and how much was used for that.

use std::ffi::CString;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result};
use rustix::fs::statvfs;
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::scenarios::limits::Check;

use crate::l1::cgroups::{self, Group};
use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::devices;
use crate::l1::lab::Lab;
use crate::l1::text_pattern;
use crate::l1::vm::Vm;

const MIB: u64 = 1 << 20;
/// What the kernel may charge at once: a huge page, and some pages ahead for each CPU.
const CHARGED_AHEAD: u64 = 4 * MIB;
const TMPFS: &str = "/run/small";
const EXT4: &str = "/run/disk";

pub fn run(lab: &Lab) -> Result<()> {
    let half = lab.job.l2_memory_mib / 2 * MIB;
    fs::create_dir_all(TMPFS)?;
    mount("small", TMPFS, "tmpfs", MountFlags::empty(), CString::new(format!("size={half}"))?.as_c_str())?;
    cgroups::enable(&["memory"])?;

    file_system(lab, TMPFS, [Check::TmpfsRefused, Check::TmpfsExplained, Check::TmpfsUse])?;
    plug_refused(lab, TMPFS, Check::TmpfsPlugRefused)?;
    if let Some(disk) = disk()? {
        fs::create_dir_all(EXT4)?;
        mount(disk, EXT4, "ext4", MountFlags::empty(), c"")?;
        file_system(lab, EXT4, [Check::Ext4Refused, Check::Ext4Explained, Check::Ext4Use])?;
        plug_refused(lab, EXT4, Check::Ext4PlugRefused)?;
    }

    for (option, [end, used]) in [
        ("", [Check::CgroupEnd, Check::CgroupUse]),
        (",share=on", [Check::CgroupSharedEnd, Check::CgroupSharedUse]),
    ] {
        lab.report.step(&format!("cgroup{option}"));
        let stock = killed(lab, Mode::Stock, option, half)?;
        let fast = killed(lab, Mode::Fast, option, half)?;
        compare(lab, &stock, &fast, end);
        // The kernel keeps the group from using more. If a thread's memory were charged elsewhere, it would use less.
        let used_up = |end: &End| end.used + CHARGED_AHEAD >= half;
        let seen = format!("{half} bytes are allowed: stock used {}, fast {}", stock.used, fast.used);
        lab.report.expect(used, used_up(&stock) && used_up(&fast), &seen);
    }
    Ok(())
}

/// RAM in a file of a file system that cannot give it.
fn file_system(lab: &Lab, folder: &str, [same, explained, used]: [Check; 3]) -> Result<()> {
    lab.report.step(folder);
    let stock = refused(lab, Mode::Stock, folder)?;
    let fast = refused(lab, Mode::Fast, folder)?;
    compare(lab, &stock, &fast, same);
    let seen = format!("stock used {} bytes, fast {}", stock.used, fast.used);
    lab.report.expect(used, fast.used <= stock.used, &seen);
    lab.report.check(explained, &unexplained(lab, folder, &fast), &fast.text);
    Ok(())
}

/// How the attempt to add the device ended.
struct End {
    /// QEMU's reply, or how it ended.
    text: String,
    /// Bytes used for it.
    used: u64,
}

impl End {
    /// The error of the map, like `-14 (Bad address)`; without one, all of the text.
    fn error(&self) -> &str {
        // The library's explanation can name an option of a program, like ` -o`.
        let is_number = |at: &usize| self.text[at + 2..].starts_with(|c: char| c.is_ascii_digit());
        let found = self.text.rmatch_indices(" -").map(|(at, _)| at).find(is_number);
        let from = found.map_or(0, |at| at + 1);
        let rest = &self.text[from..];
        rest.find(')').map_or(rest, |end| &rest[..=end])
    }
}

/// Checks that both ended alike.
fn compare(lab: &Lab, stock: &End, fast: &End, check: Check) {
    let seen = format!("stock: {}; fast: {}", stock.text, fast.text);
    lab.report.expect(check, stock.error() == fast.error(), &seen);
}

/// With RAM in a file of that file system, which cannot be mapped: QEMU refuses the device and goes on.
fn refused(lab: &Lab, mode: Mode, folder: &str) -> Result<End> {
    let before = used(folder)?;
    let file = format!("{folder}/ram");
    let backend = format!("memory-backend-file,share=on,mem-path={file}");
    let mut vm = Vm::start(lab, &CommandLine::new(lab).q35_on(&backend, lab.job.l2_memory_mib).root_port(0))?;
    let reply = vm.qmp.attempt("device_add", device(lab, mode))?;
    let used = used(folder)?.saturating_sub(before);
    let text = reply.err().map_or_else(|| "the device was added".to_owned(), |refusal| refusal.0);
    mappings::nothing_mapped(lab, &vm, Check::NothingMapped)?;
    mappings::no_threads(lab, &vm, Check::NoThreads)?;
    vm.quit()?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {file}"))?;
    Ok(End { text, used })
}

/// A DIMM of such a file is refused while the device is there: with the explanation, before the file is filled, and the
/// VM goes on.
fn plug_refused(lab: &Lab, folder: &str, check: Check) -> Result<()> {
    let before = used(folder)?;
    let file = format!("{folder}/dimm");
    let line = CommandLine::new(lab).q35("", ",slots=1,maxmem=4G").device(0, "dut");
    let mut vm = Vm::start(lab, &line)?;
    let backend = json!({
        "qom-type": "memory-backend-file", "id": "mem1", "share": true, "mem-path": file,
        "size": lab.job.l2_memory_mib * MIB,
    });
    vm.qmp.run("object-add", backend)?;
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm1", "memdev": "mem1" });
    let reply = vm.qmp.attempt("device_add", dimm)?;
    let text = reply.err().map_or_else(|| "the DIMM was added".to_owned(), |refusal| refusal.0);
    let used = used(folder)?.saturating_sub(before);
    let fast = End { text, used };
    let mut problems = unexplained(lab, folder, &fast);
    // A file that is not filled has its inode.
    if used >= MIB {
        problems.push(format!("{used} bytes are used"));
    }
    let status = vm.qmp.status()?;
    if status != "prelaunch" {
        problems.push(format!("the VM is {status}"));
    }
    lab.report.check(check, &problems, &fast.text);
    vm.quit()?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {file}"))
}

/// What is wrong with the library's explanation: it names the remedy, and for a file system that is too small what is
/// needed and what is free.
fn unexplained(lab: &Lab, folder: &str, fast: &End) -> Vec<String> {
    let explanation = fast.text.split_once(fast.error()).map_or("", |(_, rest)| rest);
    let ram = lab.job.l2_memory_mib * MIB;
    let is_explained = match folder {
        TMPFS => {
            let numbers = text_pattern::numbers(explanation);
            let (needed, free) = (ram - ram / 64..=ram, ram / 4..=ram / 2);
            explanation.contains("file system")
                && numbers.iter().any(|n| needed.contains(n))
                && numbers.iter().any(|n| free.contains(n))
        }
        _ => explanation.contains("tmpfs") && explanation.contains("share=off"),
    };
    if is_explained { Vec::new() } else { vec![format!("`{}` does not explain itself", fast.text)] }
}

/// In a group that may use less than RAM: the kernel kills QEMU while the memory is faulted in.
fn killed(lab: &Lab, mode: Mode, option: &str, allowed: u64) -> Result<End> {
    let group = Group::new(&format!("{}{option}", mode.name()))?;
    let backend = format!("memory-backend-ram{option}");
    let line = CommandLine::new(lab).q35_on(&backend, lab.job.l2_memory_mib).root_port(0);
    let mut vm = Vm::start(lab, &line)?;
    group.set("memory.max", &allowed.to_string())?;
    group.add(vm.pid)?;
    let text = match vm.qmp.attempt("device_add", device(lab, mode)) {
        Ok(Ok(_)) => "the device was added".to_owned(),
        Ok(Err(refusal)) => refusal.0,
        // QEMU ended before it could reply.
        Err(_) => match vm.wait_exit()?.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => "ended by itself".to_owned(),
        },
    };
    Ok(End { text, used: group.number("memory.peak")? })
}

fn device(lab: &Lab, mode: Mode) -> Value {
    let mut device = devices::to_add(lab, 0, mode);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    device
}

/// Bytes that are used on a file system.
fn used(folder: &str) -> Result<u64> {
    let status = statvfs(folder).with_context(|| format!("cannot ask {folder} for its size"))?;
    Ok((status.f_blocks - status.f_bfree) * status.f_frsize)
}

/// The disk that L1 keeps, if it has one: vfio-pci has the other.
fn disk() -> Result<Option<String>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("nvme") {
            return Ok(Some(format!("/dev/{name}")));
        }
    }
    Ok(None)
}
