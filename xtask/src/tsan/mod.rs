//! Runs the tests that start threads under ThreadSanitizer.
//!
//! ThreadSanitizer derives the order of accesses from atomic operations, but sees only those compiled with its
//! instrumentation. The atomic operations in the locks of the standard library are not instrumented: the library
//! comes compiled, and not every toolchain includes its source. But its archive also contains bitcode for link-time
//! optimization. The linker of the toolchain compiles that bitcode again, this time with instrumentation.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::sanitizer;
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::image::TARGET;
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::progress::{output, run_logged};
use vfio_fast_assets::{once, paths};

/// The libraries that threads block in: std, and the test harness.
const LIBRARIES: &[&str] = &["libstd-", "libtest-"];
/// An object linked into every test.
const FENCE: &str = "fence.o";
/// The test binaries that use threads. The engine's unit tests run as well.
const TESTS: &[&str] =
    &["threads", "fail_nth", "conformance", "native", "discard", "beside", "background", "random_job"];
/// An ignored test in `threads` that contains a data race, and the report it must cause.
const PLANTED: &str = "a_planted_race_is_reported";
const REPORT: &str = "WARNING: ThreadSanitizer: data race";

/// What the check depends on besides the toolchain.
const INPUTS: &[&str] = &["Cargo.lock", "engine", "xtask/src/tsan", "xtask/src/sanitizer.rs"];

/// Runs the check unless it has passed with this engine and this toolchain.
pub fn check_once(log: &Path) -> Result<()> {
    once::unless_passed("ThreadSanitizer", INPUTS, &[&once::compiler()?], || check(log))
}

/// Fails unless the deliberate race, and no other, is reported.
fn check(log: &Path) -> Result<()> {
    let sysroot = instrumented_libraries(log)?;
    let mut planted = cargo(&sysroot);
    planted.args(["--test", "threads", "--", "--ignored", "--exact", PLANTED]);
    let failed = run_logged(&mut planted, log).is_err();
    let reported = fs::read_to_string(log)?.contains(REPORT);
    ensure!(failed && reported, "ThreadSanitizer does not report the deliberate race");

    let mut tests = cargo(&sysroot);
    tests.arg("--lib").args(TESTS.iter().flat_map(|test| ["--test", *test]));
    run_logged(&mut tests, log)
}

/// Runs tests of the engine, compiled for ThreadSanitizer and linked with these libraries.
fn cargo(sysroot: &Path) -> Command {
    let [sysroot, fence] =
        [format!("--sysroot={}", sysroot.display()), format!("-Clink-arg={}", sysroot.join(FENCE).display())];
    let flags = [
        sysroot.as_str(),
        &fence,
        "-Clink-arg=-Wl,--wrap=__tsan_atomic64_fetch_sub,--wrap=__tsan_atomic_thread_fence",
        // The other precompiled libraries have no locks.
        "-Cunsafe-allow-abi-mismatch=sanitizer",
        // Generics instantiated in other crates are not instrumented.
        "-Zshare-generics=no",
    ];
    let mut command = sanitizer::tests("vfio-fast-engine", "thread", &flags);
    command.env_remove("TSAN_OPTIONS");
    command
}

/// A copy of the toolchain's libraries, in which those of `LIBRARIES` are instrumented.
fn instrumented_libraries(log: &Path) -> Result<PathBuf> {
    let version = once::compiler()?;
    let toolchain = Path::new(rustc(&["--print", "sysroot"])?.trim()).join("lib/rustlib").join(TARGET);
    let all = paths::target().join("tsan");
    let sysroot = all.join("sysroot");
    let stamp = sysroot.join("made-from");
    let how = [include_str!("mod.rs"), include_str!("fence.c")].concat();
    let made_from = format!("{}\n{version}\n{how}", toolchain.display());
    if fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        return Ok(sysroot);
    }
    // Cargo does not track which libraries the tests were linked with.
    remove_dir(&all)?;
    let own = sysroot.join("lib/rustlib").join(TARGET);
    fs::create_dir_all(own.join("lib"))?;
    symlink(toolchain.join("bin"), own.join("bin"))?;
    let libraries = fs::read_dir(toolchain.join("lib"))
        .map_err(|error| CannotRun(format!("this toolchain has no libraries for {TARGET}: {error}")))?;
    let mut made = 0;
    for library in libraries {
        let library = library?;
        let (from, to) = (library.path(), own.join("lib").join(library.file_name()));
        let name = library.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && LIBRARIES.iter().any(|start| name.starts_with(start)) {
            fs::copy(from, &to)?;
            instrument(&to, &toolchain.join("bin/rust-lld"), &sysroot, log)?;
            made += 1;
        } else {
            symlink(from, to)?;
        }
    }
    ensure!(made == LIBRARIES.len(), "{made} libraries found of {}", LIBRARIES.len());
    let source = paths::root().join("xtask/src/tsan/fence.c");
    let flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-c"];
    run_logged(Command::new("cc").args(flags).arg("-o").arg(sysroot.join(FENCE)).arg(source), log)?;
    fs::write(stamp, made_from)?;
    Ok(sysroot)
}

/// Replaces the machine code in an archive by code compiled from its bitcode.
fn instrument(archive: &Path, linker: &Path, scratch: &Path, log: &Path) -> Result<()> {
    let members = output(Command::new("ar").arg("t").arg(archive))?;
    for object in members.lines().filter(|name| name.ends_with(".o")) {
        run_logged(Command::new("ar").current_dir(scratch).arg("x").arg(archive).arg(object), log)?;
        let (object, bitcode) = (scratch.join(object), scratch.join("bitcode"));
        let mut section = Command::new("objcopy");
        section.args(["--output-target=binary", "--only-section=.llvmbc"]);
        // Without this flag the section is not loadable, and objcopy omits it.
        run_logged(section.args(["--set-section-flags", ".llvmbc=alloc"]).arg(&object).arg(&bitcode), log)?;
        if !linker.exists() || fs::metadata(&bitcode).map_or(0, |meta| meta.len()) == 0 {
            let what = "this toolchain has no rust-lld, or no bitcode of std; use the one from rustup";
            return Err(CannotRun(what.to_owned()).into());
        }
        let mut link = Command::new(linker);
        link.args(["-flavor", "gnu", "-r", "-m", "elf_x86_64"]);
        link.arg("--lto-newpm-passes=tsan-module,function(tsan)");
        run_logged(link.arg("-o").arg(&object).arg(&bitcode), log)?;
        run_logged(Command::new("ar").arg("r").arg(archive).arg(&object), log)?;
        fs::remove_file(&object)?;
        fs::remove_file(&bitcode)?;
    }
    Ok(())
}

fn rustc(args: &[&str]) -> Result<String> {
    output(Command::new("rustc").args(args))
}
