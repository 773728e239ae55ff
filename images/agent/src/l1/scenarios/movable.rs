//! Starts L2 with memory of every kind, mapped by QEMU's listener and by the library, and counts the pages that
//! migrate. L2 does not run. Nothing is present before: a page that the pin allocates is at once one that it need not
//! move.

use anyhow::Result;
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::scenarios::movable::Check;

use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::huge_pages;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::vmstat::Vmstat;
use crate::machine;

const PAGE: u64 = 4096;

/// What one start of QEMU did.
struct Start {
    /// Pages that migrated, and attempts that failed.
    migrated: u64,
    failed: u64,
    /// Huge pages that migrated whole.
    huge: u64,
    ms: u64,
}

impl Start {
    fn describe(&self) -> String {
        let Self { migrated, failed, huge, ms, .. } = self;
        format!("{migrated} pages migrated, {huge} of them huge, {failed} failed, {ms} ms")
    }
}

pub fn run(lab: &Lab) -> Result<()> {
    lab.report.step("present memory");
    huge_pages::allow(false)?;
    let pages = (lab.job.l2_memory_mib << 20) / PAGE;
    // Without this, a machine with no movable memory would pass.
    let present = one(lab, &line(lab, MemoryKind::Anon4k, Mode::Stock, ",prealloc=on"))?;
    let seen = format!("{pages} pages were present: {}", present.describe());
    lab.report.expect(Check::PagesThatArePresentMigrate, present.migrated >= pages / 2, &seen);

    for (memory, check) in [
        (MemoryKind::Anon4k, Check::AnonSmallStays),
        (MemoryKind::AnonThp, Check::AnonHugeStays),
        (MemoryKind::Memfd4k, Check::MemfdSmallStays),
        (MemoryKind::MemfdThp, Check::MemfdHugeStays),
    ] {
        lab.report.step(memory.name());
        huge_pages::allow(memory.may_be_huge())?;
        let stock = one(lab, &line(lab, memory, Mode::Stock, ""))?;
        let fast = one(lab, &line(lab, memory, Mode::Fast, ""))?;
        let seen = format!("stock: {}; fast: {}", stock.describe(), fast.describe());
        lab.report.expect(check, fast.migrated + fast.failed <= stock.migrated + stock.failed, &seen);
    }
    Ok(())
}

/// Starts QEMU and ends it.
fn one(lab: &Lab, line: &CommandLine) -> Result<Start> {
    // Compaction migrates pages too; what it can do is done here.
    machine::set("/proc/sys/vm/drop_caches", "3")?;
    machine::set("/proc/sys/vm/compact_memory", "1")?;
    let before = Vmstat::read()?;
    let mut vm = Vm::start(lab, line)?;
    let ms = vm.age().as_millis() as u64;
    let after = Vmstat::read()?;
    let counted = |name: &str| Ok::<_, anyhow::Error>(after.get(name)? - before.get(name)?);
    mappings::mappings(lab, &mut vm, Check::Mappings)?;
    vm.quit()?;
    Ok(Start {
        migrated: counted("pgmigrate_success")?,
        failed: counted("pgmigrate_fail")?,
        huge: counted("thp_migration_success")?,
        ms,
    })
}

/// A machine with RAM of that kind and its device, mapped in that mode.
fn line<'a>(lab: &'a Lab, memory: MemoryKind, mode: Mode, option: &str) -> CommandLine<'a> {
    let share = if memory.is_memfd() { ",share=on" } else { "" };
    CommandLine::new(lab)
        .q35_on(&format!("memory-backend-ram{share}{option}"), lab.job.l2_memory_mib)
        .root_port(0)
        .device_behind_in(0, "dut", 0, mode)
}
