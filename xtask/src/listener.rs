//! Runs QEMU's VFIO memory listener and DMA mapper in the machine of `images/listener`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use vfio_fast_assets::progress::{output, run_logged, step};
use vfio_fast_assets::qemu::listener::{Fault, build, corpus};
use vfio_fast_assets::{once, paths};
use vfio_fast_protocol::qemu::QemuSeries;

/// How many runs the check makes, and in how many a deliberate fault has to be found.
const RUNS: u64 = 3_000;
const RUNS_WITH_FAULT: u64 = 1_000;

/// Deliberate faults of the DMA mapper, and what the program says about each.
const FAULTS: [(Fault, &str); 4] = [
    (
        Fault {
            name: "forgotten-unmap",
            file: MAPPER,
            from: "    ret = vfio_dma_mapper_join(mapper);\n    if (!ret) {\n        ret = vfio_fast_unmap(",
            to: "    ret = vfio_dma_mapper_join(mapper);\n    if (!ret && iova % 0x10000) {\n        ret = vfio_fast_unmap(",
        },
        "is mapped and not wanted",
    ),
    (
        Fault {
            name: "writable-rom",
            file: MAPPER,
            from: "(readonly ? 0 : VFIO_FAST_REGION_WRITE) |\n                     (memory_region_is_ram_device",
            to: "VFIO_FAST_REGION_WRITE |\n                     (memory_region_is_ram_device",
        },
        "writable is 1",
    ),
    (
        Fault {
            name: "no-abort",
            file: MAPPER,
            from: "    vfio_fast_abort(mapper->vf);\n    return !ret;",
            to: "    return !ret;",
        },
        "a transaction is open",
    ),
    (
        Fault { name: "leak", file: MAPPER, from: "    g_array_free(mapper->bars, true);\n", to: "" },
        "LeakSanitizer",
    ),
];
const MAPPER: &str = "hw/vfio/dma-mapper.c";

/// What the check depends on besides the compilers.
const INPUTS: &[&str] = &[
    "Cargo.lock",
    "engine/Cargo.toml",
    "engine/src",
    "ffi/Cargo.toml",
    "ffi/src",
    "images/assets/src/qemu/listener.rs",
    "images/listener",
    "include",
    "qemu-patches/10.0",
    "xtask/src/listener.rs",
];

/// Runs the check unless it has passed with these sources and compilers.
pub fn check_once(log: &Path) -> Result<()> {
    let gcc = output(Command::new("gcc").arg("--version"))?;
    once::unless_passed("listener", INPUTS, &[&once::compiler()?, &gcc], || check(log))
}

/// Fails unless the deliberate faults, and no others, are found.
fn check(log: &Path) -> Result<()> {
    let (faults, reports): (Vec<Fault>, Vec<&str>) = FAULTS.into_iter().unzip();
    let programs = build(QemuSeries::USUAL, &faults, log)?;
    for ((program, fault), report) in programs.faulty.iter().zip(&faults).zip(reports) {
        let log = log.with_extension(fault.name);
        fs::write(&log, "")?;
        let failed = run_logged(seeds(program, RUNS_WITH_FAULT).arg("/dev/null"), &log).is_err();
        let reported = fs::read_to_string(&log)?.contains(report);
        ensure!(failed && reported, "the deliberate fault {} is not found", fault.name);
    }
    let corpus = corpus()?;
    if !corpus.is_empty() {
        run_logged(Command::new(&programs.sound).args(corpus), log)?;
    }
    run_logged(seeds(&programs.sound, RUNS).arg(found()?), log)
}

/// Runs the program for some time, from a seed that depends on the clock.
pub fn fuzz(minutes: u64) -> Result<()> {
    let log = paths::target().join("fuzz/listener.log");
    step("Fuzz listener", &log, |log| {
        let program = build(QemuSeries::USUAL, &[], log)?.sound;
        let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() << 32;
        let mut command = Command::new(program);
        command.args(["seconds", &first.to_string(), &(minutes * 60).to_string()]);
        run_logged(command.arg(found()?), log)
    })?;
    println!("{}", fs::read_to_string(&log)?.lines().last().unwrap_or_default());
    Ok(())
}

fn seeds(program: &Path, count: u64) -> Command {
    let mut command = Command::new(program);
    command.args(["seeds", "0", &count.to_string()]);
    command
}

/// The file for the choices of a run that fails.
fn found() -> Result<PathBuf> {
    let folder = paths::target().join("fuzz/found");
    fs::create_dir_all(&folder)?;
    Ok(folder.join("listener"))
}
