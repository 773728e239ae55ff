//! Starts L2 with an IOMMU of its own that invalidates at each unmap, mapped by QEMU or by the library in turns, and
//! measures what its DMA maps cost QEMU while it reads its disk.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, Record, Traffic};
use vfio_fast_protocol::scenarios::viommu_traffic::Check;

use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

/// A tick of the times in /proc: USER_HZ is 100 wherever Linux runs.
const TICK_NS: u64 = 10_000_000;

pub fn run(lab: &Lab) -> Result<()> {
    for &(_, round) in &lab.job.starts {
        lab.report.step(&format!("round {}", round + 1));
        let mut modes = [Mode::Stock, Mode::Fast];
        if round % 2 == 1 {
            modes.reverse();
        }
        for mode in modes {
            let traffic = one(lab, round, mode)?;
            lab.report.send(&Record::Traffic(traffic));
        }
    }
    Ok(())
}

fn one(lab: &Lab, round: u32, mode: Mode) -> Result<Traffic> {
    let job = &lab.job;
    let data = lab.disk_job(job.l2_memory_mib / 4);
    let line = CommandLine::new(lab)
        .q35(",kernel-irqchip=split", "")
        .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        .device_with(0, "id=dut", mode)
        .linux(&L2Job::Read(data), "intel_iommu=on iommu=nopt iommu.strict=1");
    let mut vm = Vm::start(lab, &line)?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_event("L2 to begin", |event| matches!(event, Event::Up { .. }))?;
    let (began, before, cpu) = (Instant::now(), vm.witnessed()?.len(), Cpu::of(vm.pid)?);
    let mut bytes = 0;
    vm.wait_ready(|event| {
        if let Event::Moved { bytes: moved, .. } = event {
            bytes += moved;
        }
    })?;
    let (wall, after) = (began.elapsed(), Cpu::of(vm.pid)?);
    vm.qmp.run("stop", json!({}))?;
    let planned = job.disk_mib << 20;
    // The last block of the disk is no part of the image.
    let read = bytes >= planned / 2 && bytes <= planned;
    lab.report.expect(Check::DataRead, read, &format!("{bytes} of {planned} bytes read and right"));
    let calls = vm.witnessed()?.split_off(before);
    let count =
        |which: &dyn Fn(&&vfio_fast_protocol::witness::Call) -> bool| calls.iter().filter(which).count();
    let traffic = Traffic {
        round,
        mode,
        map_calls: count(&|call| call.is_map()) as u64,
        unmap_calls: count(&|call| call.is_unmap()) as u64,
        bytes,
        qemu_ns: after.qemu_ns - cpu.qemu_ns,
        guest_ns: after.guest_ns - cpu.guest_ns,
        wall_ns: wall.as_nanos() as u64,
    };
    vm.qmp.run("quit", json!({}))?;
    vm.wait_exit()?;
    Ok(traffic)
}

/// CPU time of QEMU's threads.
struct Cpu {
    /// Outside the guest, the kernel's work for QEMU included.
    qemu_ns: u64,
    /// In the guest.
    guest_ns: u64,
}

impl Cpu {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("no CPU times")?;
        // Fields of proc_pid_stat(5); before the third is the name in parentheses.
        let (_, fields) = stat.rsplit_once(") ").context("no CPU times")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| -> Result<u64> {
            let text = fields.get(number - 3).context("a CPU time is missing")?;
            Ok(text.parse::<u64>()? * TICK_NS)
        };
        let (user, system, guest) = (field(14)?, field(15)?, field(43)?);
        Ok(Self { qemu_ns: (user + system).saturating_sub(guest), guest_ns: guest })
    }
}
