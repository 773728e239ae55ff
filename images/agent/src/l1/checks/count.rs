//! What a run cost, as each witness counted it, and whether they agree.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rustix::param::page_size;
use serde_json::{Value, json};
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::record::{BarCosts, Facts};
use vfio_fast_protocol::witness::{Call, MappingSet};

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{proc, tracing};
use crate::machine;

/// From this kernel on VFIO does not try out superpages.
const NO_PROBES: (u32, u32) = (6, 16);

/// Calls and bytes since L1 started, which must have been this VM's alone; `wanted` is what should
/// be mapped now.
pub fn facts(vm: &Vm, wanted: &MappingSet) -> Result<Facts> {
    let calls = vm.witnessed()?;
    let kernel = tracing::read()?;
    let bars = proc::device_memory(vm.pid)?;
    let in_bar = |vaddr: u64| proc::is_in(&bars, vaddr);
    let nanoseconds =
        |which: fn(&Call) -> bool| -> u64 { calls.iter().filter(|c| which(c)).map(|c| c.duration_ns).sum() };
    // The first group in a container makes older VFIO map two pages and unmap them, to learn how the
    // IOMMU treats superpages. The IOMMU core counts these too.
    let probes = calls.iter().filter(|c| c.sets_iommu()).count() as u64;
    let probe_bytes =
        if machine::kernel_release()? < NO_PROBES { probes * 2 * page_size() as u64 } else { 0 };
    Ok(Facts {
        map_calls: kernel.map_calls,
        unmap_calls: kernel.unmap_calls,
        map_bytes: kernel.map_bytes.saturating_sub(probe_bytes),
        unmap_bytes: kernel.unmap_bytes.saturating_sub(probe_bytes),
        probe_bytes,
        ram_map_bytes: calls.iter().filter(|c| c.mapped() && !in_bar(c.vaddr)).map(|c| c.size).sum(),
        wanted_bytes: wanted.values().map(|m| m.size).sum(),
        wanted_ram_bytes: wanted.values().filter(|m| !in_bar(m.vaddr)).map(|m| m.size).sum(),
        map_ns: nanoseconds(Call::is_map),
        unmap_ns: nanoseconds(Call::is_unmap),
        populate_ns: 0,
        bars: bar_costs(&calls, in_bar),
        first_output_ms: None,
    })
}

/// What BARs cost of these calls.
fn bar_costs(calls: &[Call], in_bar: impl Fn(u64) -> bool) -> BarCosts {
    let mut costs = BarCosts::default();
    let mut held = BTreeMap::new();
    for call in calls {
        if call.mapped() && in_bar(call.vaddr) {
            costs.map_calls += 1;
            costs.map_bytes += call.size;
            costs.map_ns += call.duration_ns;
            held.insert(call.iova, call.size);
        } else if call.unmapped() {
            let last = call.iova.saturating_add(call.size.saturating_sub(1));
            let mut bytes = 0;
            held.retain(|iova, size| {
                let gone = (call.iova..=last).contains(iova);
                bytes += if gone { *size } else { 0 };
                !gone
            });
            if bytes > 0 && bytes == call.out {
                costs.unmap_bytes += bytes;
                costs.unmap_ns += call.duration_ns;
            }
        }
    }
    costs
}

/// Checks that the kernel's tracepoints and the ioctl witness counted the same.
pub fn witnesses_agree(lab: &Lab, vm: &Vm, facts: &Facts, check: impl CheckName) -> Result<()> {
    let calls = vm.witnessed()?;
    let count = |which: fn(&Call) -> bool| calls.iter().filter(|c| which(c)).count() as u64;
    let mapped = calls.iter().filter(|c| c.mapped()).map(|c| c.size).sum();
    let unmapped = calls.iter().filter(|c| c.unmapped()).map(|c| c.out).sum();
    let pairs = [
        ("map calls", facts.map_calls, count(Call::is_map)),
        ("unmap calls", facts.unmap_calls, count(Call::is_unmap)),
        ("bytes mapped", facts.map_bytes, mapped),
        ("bytes unmapped", facts.unmap_bytes, unmapped),
    ];
    report_equal(lab, check, "ioctl witness", &pairs);
    Ok(())
}

/// Checks that so did the library. Its time for populating goes into the facts.
pub fn stats_agree(lab: &Lab, vm: &mut Vm, facts: &mut Facts, check: impl CheckName) -> Result<()> {
    stats_agree_of(lab, vm, facts, &["dut"], check)
}

/// The same with several containers, of these devices.
pub fn stats_agree_of(
    lab: &Lab,
    vm: &mut Vm,
    facts: &mut Facts,
    ids: &[&str],
    check: impl CheckName,
) -> Result<()> {
    let all = ids.iter().map(|id| library_stats_of(vm, id)).collect::<Result<Vec<Value>>>()?;
    all.iter().for_each(|stats| lab.report.log("stats", &stats.to_string()));
    let stat = |name: &str| {
        let each = all.iter().map(|stats| stats[name].as_u64());
        each.sum::<Option<u64>>().unwrap_or(u64::MAX)
    };
    facts.populate_ns = stat("populate_ns");
    // The library counts BARs that the kernel refused by themselves, and not each came as far as a map call: of some no
    // dma-buf can be made.
    let failed = vm.witnessed()?.iter().filter(|c| c.is_map() && !c.mapped()).count() as u64;
    let mut pairs = vec![
        ("map calls", facts.map_calls, stat("map_calls").saturating_add(failed)),
        ("unmap calls", facts.unmap_calls, stat("unmap_calls")),
        ("bytes mapped", facts.map_bytes, stat("map_bytes")),
        ("bytes unmapped", facts.unmap_bytes, stat("unmap_bytes")),
        ("bytes mapped in the end", facts.wanted_bytes, stat("mapped_bytes")),
    ];
    if stat("device_failures") == 0 {
        // BARs that were refused are wanted still.
        pairs.push(("bytes wanted", facts.wanted_bytes, stat("wanted_bytes")));
    }
    report_equal(lab, check, "library", &pairs);
    Ok(())
}

/// What the library of the device `dut` counted, by the library's names.
pub fn library_stats(vm: &mut Vm) -> Result<Value> {
    library_stats_of(vm, "dut")
}

fn library_stats_of(vm: &mut Vm, id: &str) -> Result<Value> {
    let all = vm.qmp.run("x-query-vfio-dma", json!({}))?;
    let mut devices = all.as_array().into_iter().flatten();
    let device = devices.find(|device| device["device-id"] == id);
    let stats = device.and_then(|device| device["stats"].as_object());
    let stats = stats.with_context(|| format!("no statistics of {id}: {all}"))?;
    Ok(stats.iter().map(|(name, value)| (name.replace('-', "_"), value.clone())).collect())
}

fn report_equal(lab: &Lab, check: impl CheckName, other: &str, pairs: &[(&str, u64, u64)]) {
    let wrong = pairs.iter().filter(|(_, a, b)| a != b);
    let problems: Vec<String> =
        wrong.map(|(what, a, b)| format!("{what}: kernel {a}, {other} {b}")).collect();
    let seen: Vec<String> = pairs.iter().map(|(what, a, _)| format!("{what} {a}")).collect();
    lab.report.check(check, &problems, &seen.join(", "));
}

/// Bytes that are locked for the device.
pub fn locked_bytes(lab: &Lab, vm: &Vm) -> Result<u64> {
    match lab.job.container {
        Container::Type1 => proc::locked_bytes(vm.pid),
        // iommufd counts locked bytes per user, which user space cannot read. What is pinned is in the IOMMU.
        Container::Iommufd => {
            let kernel = tracing::read()?;
            Ok(kernel.map_bytes.abs_diff(kernel.unmap_bytes))
        }
    }
}
