//! Looks at a VM that stands still: does the kernel hold exactly what the flat view wants?
//!
//! The flat view is known from two sides. KVM's memory slots are always at hand and name host
//! addresses, but RAM that the chipset makes read-only (PAM) is an ordinary slot. `info mtree -f`
//! knows permissions, but every use of it in QEMU 10.0 keeps a reference to the view it printed,
//! and with it every device whose BAR is in that view: such a device is never freed after an
//! unplug. So it is only used where no such device is in the view, or none is unplugged later.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::flatview::{self, Row};
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::witness::{self, Call, Held};

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{firmware, proc};
use crate::pci::Device;

/// iommufd cannot map a smaller BAR: there is no dma-buf of a part of a page. A container maps the page around it.
const PAGE: u64 = 4096;

/// Compares the kernel's mappings with the guest's memory while the VM stands still, and reports
/// it as the check `mappings-<when>`. A VM that was running runs again. The answer is what of the guest's
/// memory shall be mapped.
pub fn mappings(lab: &Lab, vm: &mut Vm, when: &str) -> Result<Held> {
    mappings_of(lab, vm, when, 1, Ok)
}

/// The same with so many containers, each of which has to have all of it. Where KVM has more than a device may reach, `there`
/// says what of it.
pub fn mappings_of(
    lab: &Lab,
    vm: &mut Vm,
    when: &str,
    containers: usize,
    there: impl FnOnce(Held) -> Result<Held>,
) -> Result<Held> {
    let calls = quietly(vm, |vm| vm.witnessed())?;
    let all = witness::replay(&calls)?;
    ensure!(all.len() <= containers, "more containers than expected: {:?}", all.keys());
    let wanted = without(&out_of_reach(lab, vm.pid, &calls)?, there(witness::guest_memory(&calls))?);
    ensure!(!wanted.is_empty(), "KVM was given no memory: nothing to compare with");

    let mut problems = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    let mut all = all.into_values();
    for held in (0..containers).map(|_| all.next().unwrap_or_default()) {
        // The host compares these between runs of different modes, of which with iommufd only one maps BARs.
        let everywhere = match lab.job.container {
            Container::Type1 => held.clone(),
            Container::Iommufd => without(&proc::device_memory(vm.pid)?, held.clone()),
        };
        for reach in ranges::normalise(witness::reach(&everywhere)?) {
            lab.report.log(&format!("held-{when}"), &reach.to_string());
        }
        let wanted_reach = ignore_permission(witness::reach(&wanted)?);
        let mapped = ignore_permission(witness::reach(&held)?);
        problems.extend(ranges::differences("wanted", wanted_reach, "mapped", mapped));
        problems.extend(wrong_memory(&wanted, &held));
        count += held.len();
        bytes += held.values().map(|m| m.size).sum::<u64>();
    }
    let seen = format!("{count} mappings, {bytes} bytes, are the guest's memory");
    lab.report.check(&format!("mappings-{when}"), &problems, &seen);
    Ok(wanted)
}

/// Compares the kernel's mappings, permissions included, with what `info mtree -f` prints for
/// address space `space`, and reports it as the check `flat-view-<when>`. See above for its price.
pub fn flat_view(lab: &Lab, vm: &mut Vm, space: &str, when: &str) -> Result<()> {
    let (rows, mapped) = flat_view_rows(lab, vm, space, when)?;
    let small = |row: &Row| {
        row.bar().is_some_and(|(device, n)| Device::at(device).bar(n).is_ok_and(|bar| bar.bytes < PAGE))
    };
    let mappable = |row: &&Row| match (lab.job.container, lab.job.maps_bars()) {
        (Container::Type1, _) => true,
        (Container::Iommufd, true) => !small(row),
        (Container::Iommufd, false) => !row.is_device(),
    };
    let printed: Vec<Reach> = rows.iter().filter(mappable).filter_map(Row::reach).collect();
    let seen = format!("{} rows, {} mappings, the same memory", rows.len(), mapped.len());
    let problems = ranges::differences("printed", printed, "mapped", mapped);
    lab.report.check(&format!("flat-view-{when}"), &problems, &seen);
    Ok(())
}

/// The rows of a flat view, and what is mapped at the same moment.
pub fn flat_view_rows(lab: &Lab, vm: &mut Vm, space: &str, when: &str) -> Result<(Vec<Row>, Vec<Reach>)> {
    let (text, calls) = quietly(vm, |vm| Ok((vm.qmp.human("info mtree -f")?, vm.witnessed()?)))?;
    text.lines().for_each(|line| lab.report.log(&format!("mtree-{when}"), line));
    let rows = flatview::rows_of(&text, space)
        .with_context(|| format!("no flat view renders address space `{space}`"))?;
    let mut mapped = Vec::new();
    for held in witness::replay(&calls)?.values() {
        mapped.extend(witness::reach(held)?);
    }
    Ok((rows, mapped))
}

/// Reports the check `mappings-at-every-commit`: not only at quiet moments does the kernel hold
/// what the guest has, but after each of the many changes firmware and guest make.
pub fn every_commit(lab: &Lab, vm: &Vm) -> Result<()> {
    let calls = vm.witnessed()?;
    let hidden = out_of_reach(lab, vm.pid, &calls)?;
    let wanted = |calls: &[Call]| without(&hidden, witness::guest_memory(calls));
    let (count, mut problems) = witness::commits(&calls, wanted)?;
    problems.truncate(5);
    if count < 2 {
        problems.push(format!("{count} changes of the guest's memory were seen, that is too few"));
    }
    lab.report.check("mappings-at-every-commit", &problems, &format!("{count} changes, all right"));
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
fn without(bars: &[(u64, u64)], mut memory: Held) -> Held {
    memory.retain(|_, slot| !proc::is_in(bars, slot.vaddr));
    memory
}

/// Runs `look` while the VM stands still.
pub fn quietly<T>(vm: &mut Vm, look: impl FnOnce(&mut Vm) -> Result<T>) -> Result<T> {
    let running = vm.qmp.run("query-status", json!({}))?["running"] == true;
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
pub fn wrong_memory(wanted: &Held, held: &Held) -> Vec<String> {
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

/// Reports the check `nothing-mapped-<when>`.
pub fn nothing_mapped(lab: &Lab, vm: &Vm, when: &str) -> Result<()> {
    let containers = witness::replay(&vm.witnessed()?)?;
    let left = containers.values().flatten();
    let problems: Vec<String> =
        left.map(|(iova, m)| format!("still mapped: {iova:#x} + {:#x}", m.size)).collect();
    lab.report.check(&format!("nothing-mapped-{when}"), &problems, "nothing is mapped");
    Ok(())
}

/// The check `unmapped-before-leaving`: when the last group leaves its container, or the IOAS ends,
/// nothing is mapped any more.
pub fn unmapped_before_leaving(lab: &Lab, vm: &Vm) -> Result<()> {
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
    lab.report.check("unmapped-before-leaving", &problems, seen);
    Ok(())
}

/// Reports the check `no-threads-<when>`: the library keeps no thread between commits.
pub fn no_threads(lab: &Lab, vm: &Vm, when: &str) -> Result<()> {
    let threads = proc::threads(vm.pid)?;
    let ours = threads.iter().filter(|thread| thread.is_of_library());
    let problems: Vec<String> = ours.map(|thread| format!("thread {} is alive", thread.name)).collect();
    let names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
    lab.report.check(&format!("no-threads-{when}"), &problems, &names.join(" "));
    Ok(())
}
