//! Builds the program of `images/listener`: QEMU's VFIO memory listener and DMA mapper in a machine of random events.
//!
//! QEMU is not configured for it. The headers that a build generates are made from its scripts, and the few settings of
//! this host that its files need are below.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::qemu::QemuSeries;

use super::build::PYTHON;
use super::series::Series;
use super::{Kind, fetch, target, tree};
use crate::cache::{Cache, remove_dir};
use crate::progress::{output, run_logged};
use crate::{library, packages, paths};

/// The files under test, and what they need of QEMU.
const FILES: &[&str] = &[
    "hw/vfio/dma-mapper.c",
    "hw/vfio/dma-cpr.c",
    "hw/vfio/common.c",
    "hw/vfio/container-base.c",
    "hw/vfio/helpers.c",
    "util/bitmap.c",
    "util/bitops.c",
    "util/error.c",
    "util/iova-tree.c",
    "util/notify.c",
];

/// What configure would find out, as far as the files ask for it.
const CONFIG_HOST: &str = "#define CONFIG_LINUX 1\n#define CONFIG_POSIX 1\n#define CONFIG_VFIO_FAST 1\n\
    #define CONFIG_IOVEC 1\n#define CONFIG_MADVISE 1\n#define CONFIG_PREADV 1\n#define HOST_X86_64 1\n";
const CONFIG_TARGET: &str = "#define TARGET_X86_64 1\n#define TARGET_I386 1\n#define TARGET_BIG_ENDIAN 0\n\
    #define TARGET_NAME \"x86_64\"\n#define TARGET_LONG_BITS 64\n";

/// QEMU's own options, and the sanitizers. The first finding ends the program.
const OPTIONS: &[&str] = &[
    "-std=gnu11",
    "-g1",
    "-O1",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fno-common",
    "-D_GNU_SOURCE",
    "-DCOMPILING_PER_TARGET",
    "-DCONFIG_TARGET=\"config-target.h\"",
    "-DCONFIG_DEVICES=\"config-devices.h\"",
    "-ffunction-sections",
    "-fdata-sections",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
];

/// Functions that the harness never reaches are left out by the linker, or end the program when they are called.
const LINK: &[&str] = &[
    "-Wl,--gc-sections",
    "-Wl,-z,lazy",
    "-Wl,--unresolved-symbols=ignore-all",
    // The library's calls of ioctl() have to arrive in the program.
    "-rdynamic",
];

/// A fault in a file of QEMU.
pub struct Fault {
    pub name: &'static str,
    pub file: &'static str,
    /// What the file has once, and what it is replaced by.
    pub from: &'static str,
    pub to: &'static str,
}

/// The program, and one with each fault.
pub struct Programs {
    pub sound: PathBuf,
    pub faulty: Vec<PathBuf>,
}

/// Builds the programs for a series. The tree is one of its own, so that no build of QEMU has to be waited for.
pub fn build(of: QemuSeries, faults: &[Fault], log: &Path) -> Result<Programs> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let _lock = cache.lock("listener")?;
    let tree = target().join("listener").join(of.name()).join("tree");
    tree::prepare(&fetch(&cache, of)?, &tree)?;
    tree::apply_series(&Series::open(&Kind::On.patches(of))?, &tree, log)?;
    let objects = Objects::compile(of, tree, log)?;
    let faulty = faults.iter().map(|fault| objects.with_fault(fault, log)).collect::<Result<_>>()?;
    Ok(Programs { sound: objects.link("listener", log)?, faulty })
}

/// What the programs are linked from, and how.
struct Objects {
    dir: PathBuf,
    tree: PathBuf,
    include: Vec<String>,
    prefix: PathBuf,
}

impl Objects {
    fn compile(of: QemuSeries, tree: PathBuf, log: &Path) -> Result<Objects> {
        let dir = target().join("listener").join(of.name()).join("objects");
        remove_dir(&dir)?;
        fs::create_dir_all(&dir)?;
        let prefix = dir.join("prefix");
        library::into(&prefix, log)?;
        let generated = dir.join("generated");
        generate(&tree, &generated, log)?;
        let objects = Objects { include: include(&tree, &generated, &prefix)?, dir, tree, prefix };
        for file in FILES {
            objects.object(&objects.tree.join(file), &["-w"], log)?;
        }
        for file in sources()? {
            objects.object(&file, &["-Wall", "-Werror"], log)?;
        }
        Ok(objects)
    }

    /// The program with a fault in it.
    fn with_fault(&self, fault: &Fault, log: &Path) -> Result<PathBuf> {
        let sound = self.tree.join(fault.file);
        let text = fs::read_to_string(&sound)?;
        ensure!(text.matches(fault.from).count() == 1, "{}: {} has no place for it", fault.name, fault.file);
        let copy = self.dir.join(sound.file_name().context("a file has a name")?);
        fs::write(&copy, text.replacen(fault.from, fault.to, 1))?;
        self.object(&copy, &["-w"], log)?;
        let program = self.link(fault.name, log)?;
        self.object(&sound, &["-w"], log)?;
        Ok(program)
    }

    fn object(&self, file: &Path, also: &[&str], log: &Path) -> Result<()> {
        let name = file.file_name().context("a file has a name")?.to_string_lossy();
        let mut command = Command::new("gcc");
        command.current_dir(&self.dir).args(OPTIONS).args(also).args(&self.include);
        run_logged(command.arg("-c").arg(file).arg("-o").arg(format!("{name}.o")), log)
    }

    fn link(&self, name: &str, log: &Path) -> Result<PathBuf> {
        let program = self.dir.join(name);
        let mut command = Command::new("gcc");
        command.current_dir(&self.dir).args(["-fsanitize=address,undefined", "-o"]).arg(&program).args(LINK);
        for file in fs::read_dir(&self.dir)? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "o") {
                command.arg(file);
            }
        }
        let lib = self.prefix.join("lib");
        command.arg(format!("-L{}", lib.display())).arg("-lvfio_fast");
        command.arg(format!("-Wl,-rpath,{}", lib.display()));
        command.args(packaged("--libs")?).arg("-lpthread");
        run_logged(&mut command, log)?;
        Ok(program)
    }
}

/// The headers that a build generates.
fn generate(tree: &Path, into: &Path, log: &Path) -> Result<()> {
    for folder in ["qapi", "trace", "linux-headers"] {
        fs::create_dir_all(into.join(folder))?;
    }
    let script = |name: &str| {
        let mut command = Command::new(PYTHON);
        command.current_dir(tree).arg("-B").arg(Path::new("scripts").join(name));
        command
    };
    let mut qapi = script("qapi-gen.py");
    run_logged(qapi.args(["-b", "-o"]).arg(into.join("qapi")).arg("qapi/qapi-schema.json"), log)?;
    for (group, folder) in [("hw_vfio", "hw/vfio"), ("qom", "qom")] {
        let mut trace = script("tracetool.py");
        trace.args(["--backend=nop", "--format=h", &format!("--group={group}")]);
        trace.arg(format!("{folder}/trace-events"));
        run_logged(trace.arg(into.join(format!("trace/trace-{group}.h"))), log)?;
    }
    std::os::unix::fs::symlink(tree.join("linux-headers/asm-x86"), into.join("linux-headers/asm"))?;
    fs::write(into.join("config-host.h"), CONFIG_HOST)?;
    fs::write(into.join("config-target.h"), CONFIG_TARGET)?;
    fs::write(into.join("config-devices.h"), "")?;
    Ok(())
}

/// The folders in which the files look for headers, and options of the libraries that they use.
fn include(tree: &Path, generated: &Path, prefix: &Path) -> Result<Vec<String>> {
    let option = |path: PathBuf| format!("-I{}", path.display());
    let mut options = vec![
        option(generated.to_path_buf()),
        option(generated.join("qapi")),
        format!("-isystem{}", tree.join("linux-headers").display()),
        format!("-isystem{}", generated.join("linux-headers").display()),
        option(tree.to_path_buf()),
    ];
    let folders =
        ["include", "hw/vfio", "target/i386", "tcg/i386", "host/include/x86_64", "host/include/generic"];
    options.extend(folders.map(|folder| option(tree.join(folder))));
    options.push(option(prefix.join("include")));
    options.push(option(folder()));
    options.extend(packaged("--cflags")?);
    Ok(options)
}

fn packaged(what: &str) -> Result<Vec<String>> {
    let text = output(Command::new("pkg-config").args([what, "glib-2.0", "pixman-1"]))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The folder of the harness.
fn folder() -> PathBuf {
    paths::root().join("images/listener")
}

/// The files of the harness.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder())? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "c") {
            found.push(file);
        }
    }
    Ok(found)
}

/// Runs that failed once. They are repeated by each check.
pub fn corpus() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let folder = folder().join("corpus");
    if folder.exists() {
        for file in fs::read_dir(folder)? {
            found.push(file?.path());
        }
    }
    found.sort();
    Ok(found)
}
