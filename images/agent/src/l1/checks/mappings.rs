//! Checks of a paused VM: does the kernel hold exactly the mappings that the flat view requires?
//!
//! The flat view is known from two sides. KVM's memory slots are always at hand and name host
//! addresses, but RAM that the chipset makes read-only (PAM) is an ordinary slot. `info mtree -f`
//! knows permissions, but every use of it in QEMU 10.0 keeps a reference to the view it printed,
//! and with it every device whose BAR is in that view: such a device is never freed after an
//! unplug. So it is only used where no such device is in the view, or none is unplugged later.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::flatview::{self, Row};
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::witness::{self, Call, MappingSet};

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{firmware, proc};
use crate::pci::Device;

/// iommufd cannot map a smaller BAR: there is no dma-buf of a part of a page. A container maps the page around it.
const PAGE: u64 = 4096;

/// Compares the kernel's mappings with the guest's memory while the VM is paused. A VM that was
/// running runs again. Returns what of the guest's memory has to be mapped.
pub fn mappings(lab: &Lab, vm: &mut Vm, check: impl CheckName) -> Result<MappingSet> {
    mappings_of(lab, vm, check, 1, Ok)
}

/// The same for a device in the background, which is alone in its container: its BARs are not mapped.
pub fn mappings_without_bars(lab: &Lab, vm: &mut Vm, check: impl CheckName) -> Result<()> {
    let bars = proc::device_memory(vm.pid)?;
    mappings_of(lab, vm, check, 1, |memory| Ok(without(&bars, memory))).map(drop)
}

/// The same with that many containers, each of which has to have all of it. Where KVM has more memory than a device may
/// reach, `there` reduces it to what it may.
pub fn mappings_of(
    lab: &Lab,
    vm: &mut Vm,
    check: impl CheckName,
    containers: usize,
    there: impl FnOnce(MappingSet) -> Result<MappingSet>,
) -> Result<MappingSet> {
    let compared = compare(lab, vm, containers, there)?;
    let held = format!("held-{}", moment(&check));
    compared.held.iter().for_each(|reach| lab.report.log(&held, &reach.to_string()));
    let seen = format!("{} mappings, {} bytes, are the guest's memory", compared.count, compared.bytes);
    lab.report.check(check, &compared.problems, &seen);
    Ok(compared.wanted)
}

/// What is mapped at one moment, compared with the guest's memory.
pub struct Compared {
    /// What of the guest's memory has to be mapped.
    pub wanted: MappingSet,
    pub problems: Vec<String>,
    /// What is mapped in each mode.
    held: Vec<Reach>,
    count: usize,
    bytes: u64,
}

/// The comparison of [`mappings_of`] without a check.
pub fn compare(
    lab: &Lab,
    vm: &mut Vm,
    containers: usize,
    there: impl FnOnce(MappingSet) -> Result<MappingSet>,
) -> Result<Compared> {
    let calls = quietly(vm, |vm| vm.witnessed())?;
    let all = witness::replay(&calls)?;
    ensure!(all.len() <= containers, "more containers than expected: {:?}", all.keys());
    let wanted = without(&out_of_reach(lab, vm.pid, &calls)?, there(witness::guest_memory(&calls))?);
    ensure!(!wanted.is_empty(), "KVM was given no memory: nothing to compare with");

    let (mut problems, mut held) = (Vec::new(), Vec::new());
    let (mut count, mut bytes) = (0, 0);
    let mut all = all.into_values();
    for mapped in (0..containers).map(|_| all.next().unwrap_or_default()) {
        // The host compares these between runs of different modes, of which with iommufd only one maps BARs.
        let everywhere = match lab.job.container {
            Container::Type1 => mapped.clone(),
            Container::Iommufd => without(&proc::device_memory(vm.pid)?, mapped.clone()),
        };
        held.extend(ranges::normalise(witness::reach(&everywhere)?));
        let wanted_reach = ignore_permission(witness::reach(&wanted)?);
        let mapped_reach = ignore_permission(witness::reach(&mapped)?);
        problems.extend(ranges::differences("wanted", wanted_reach, "mapped", mapped_reach));
        problems.extend(wrong_memory(&wanted, &mapped));
        count += mapped.len();
        bytes += mapped.values().map(|m| m.size).sum::<u64>();
    }
    Ok(Compared { wanted, problems, held, count, bytes })
}

/// Compares the kernel's mappings, permissions included, with what `info mtree -f` prints for the
/// address space `space`. See above for its price.
pub fn flat_view(lab: &Lab, vm: &mut Vm, space: &str, check: impl CheckName) -> Result<()> {
    let (rows, mapped) = flat_view_rows(lab, vm, space, &check)?;
    let printed = reachable(lab, &rows);
    let seen = format!("{} rows, {} mappings, the same memory", rows.len(), mapped.len());
    let problems = ranges::differences("printed", printed, "mapped", mapped);
    lab.report.check(check, &problems, &seen);
    Ok(())
}

/// What devices may reach of the rows of a flat view.
pub fn reachable<'a>(lab: &Lab, rows: impl IntoIterator<Item = &'a Row>) -> Vec<Reach> {
    let small = |row: &Row| {
        row.bar().is_some_and(|(device, n)| Device::at(device).bar(n).is_ok_and(|bar| bar.bytes < PAGE))
    };
    let mappable = |row: &&Row| match (lab.job.container, lab.job.maps_bars()) {
        (Container::Type1, _) => true,
        (Container::Iommufd, true) => !small(row),
        (Container::Iommufd, false) => !row.is_device(),
    };
    rows.into_iter().filter(mappable).filter_map(Row::reach).collect()
}

/// The moment that a check is about: the end of its name.
fn moment(check: &impl CheckName) -> String {
    let name = check.name();
    let moment = ["mappings-", "flat-view-"].iter().find_map(|kind| name.strip_prefix(kind));
    moment.unwrap_or(&name).to_owned()
}

/// The rows of a flat view, and what is mapped at the same moment.
pub fn flat_view_rows(
    lab: &Lab,
    vm: &mut Vm,
    space: &str,
    check: &impl CheckName,
) -> Result<(Vec<Row>, Vec<Reach>)> {
    let (text, calls) = quietly(vm, |vm| Ok((vm.qmp.human("info mtree -f")?, vm.witnessed()?)))?;
    let mtree = format!("mtree-{}", moment(check));
    text.lines().for_each(|line| lab.report.log(&mtree, line));
    let rows = flatview::rows_of(&text, space)
        .with_context(|| format!("no flat view renders address space `{space}`"))?;
    let mut mapped = Vec::new();
    for held in witness::replay(&calls)?.values() {
        mapped.extend(witness::reach(held)?);
    }
    Ok((rows, mapped))
}

/// Checks that the kernel holds what the guest has not only in quiet moments, but after each of the
/// many changes that firmware and guest make.
pub fn every_commit(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let calls = vm.witnessed()?;
    let hidden = out_of_reach(lab, vm.pid, &calls)?;
    let wanted = |calls: &[Call]| without(&hidden, witness::guest_memory(calls));
    let (count, mut problems) = witness::commits(&calls, wanted)?;
    problems.truncate(5);
    if count < 2 {
        problems.push(format!("{count} changes of the guest's memory were seen, that is too few"));
    }
    lab.report.check(check, &problems, &format!("{count} changes, all right"));
    Ok(())
}

/// Host address ranges of `pid` with what the guest has and no device: BARs that are not mapped, and flash.
fn out_of_reach(lab: &Lab, pid: u32, calls: &[Call]) -> Result<Vec<(u64, u64)>> {
    let mut hidden = match (lab.job.container, lab.job.maps_bars()) {
        (Container::Type1, _) => Vec::new(),
        (Container::Iommufd, true) => proc::device_memory_below(pid, PAGE)?,
        (Container::Iommufd, false) => proc::device_memory(pid)?,
    };
    hidden.extend(firmware::flash(lab, calls));
    Ok(hidden)
}

/// What is not at one of these host addresses.
pub fn without(bars: &[(u64, u64)], mut memory: MappingSet) -> MappingSet {
    memory.retain(|_, slot| !proc::is_in(bars, slot.vaddr));
    memory
}

/// Runs `look` while the VM is paused.
pub fn quietly<T>(vm: &mut Vm, look: impl FnOnce(&mut Vm) -> Result<T>) -> Result<T> {
    let running = vm.qmp.status()? == "running";
    if running {
        vm.qmp.run("stop", json!({}))?;
    }
    let seen = look(vm);
    if running {
        vm.qmp.run("cont", json!({}))?;
    }
    seen
}

fn ignore_permission(reach: Vec<Reach>) -> Vec<Reach> {
    reach.into_iter().map(|reach| Reach { write: true, ..reach }).collect()
}

/// Where a mapping and a slot of the same guest address lead to different host addresses, or the
/// device may write what the guest may not.
pub fn wrong_memory(wanted: &MappingSet, held: &MappingSet) -> Vec<String> {
    let mut problems = Vec::new();
    for (&gpa, slot) in wanted {
        for (&iova, mapping) in held.range(..=gpa + (slot.size - 1)) {
            if iova + (mapping.size - 1) < gpa {
                continue;
            }
            if mapping.vaddr.wrapping_sub(iova) != slot.vaddr.wrapping_sub(gpa) {
                let at = iova.max(gpa);
                problems.push(format!("{at:#x} is mapped from other memory than the guest has there"));
            }
            if mapping.is_writable() && !slot.is_writable() {
                problems.push(format!("the device may write ROM at {:#x}", iova.max(gpa)));
            }
        }
    }
    problems
}

/// Checks that no container holds a mapping.
pub fn nothing_mapped(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let containers = witness::replay(&vm.witnessed()?)?;
    let left = containers.values().flatten();
    let problems: Vec<String> =
        left.map(|(iova, m)| format!("still mapped: {iova:#x} + {:#x}", m.size)).collect();
    lab.report.check(check, &problems, "nothing is mapped");
    Ok(())
}

/// Checks that nothing is mapped any more when the last group leaves its container, or the IOAS ends.
pub fn unmapped_before_leaving(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let calls = vm.witnessed()?;
    let mut problems = Vec::new();
    match witness::last_leaving(&calls) {
        None => problems.push("no group ever left its container, and no IOAS ended".to_owned()),
        Some(n) => {
            for (iova, m) in witness::replay(&calls[..n])?.values().flatten() {
                problems.push(format!("mapped when the container was left: {iova:#x} + {:#x}", m.size));
            }
        }
    }
    let seen = "nothing was mapped when the container was left";
    lab.report.check(check, &problems, seen);
    Ok(())
}

/// Checks that the library keeps no thread between commits.
pub fn no_threads(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let threads = proc::threads(vm.pid)?;
    let ours = threads.iter().filter(|thread| thread.is_of_library());
    let problems: Vec<String> = ours.map(|thread| format!("thread {} is alive", thread.name)).collect();
    let names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
    lab.report.check(check, &problems, &names.join(" "));
    Ok(())
}
