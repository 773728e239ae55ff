//! What is installed for users: the library, shared and static, with its header and pkg-config file, the doctor, and what
//! is preloaded into unmodified programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::paths;
use crate::progress::{run_logged, step};
use crate::sysroot::Sysroot;
use crate::target::{self, Target};

/// Version of the library, which is that of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The package and the program.
const DOCTOR: &str = "vfio-fast-doctor";
/// The package of the library that is preloaded.
const PRELOAD: &str = "vfio-fast-preload";
/// The program that preloads it.
pub const RUN: &str = "vfio-fast-run";
const PRELOADED: &str = "libvfio_fast_preload.so";
/// For programs that are linked statically.
const STATIC: &str = "libvfio_fast.a";

/// Installs the library below `prefix`. `destdir` is put in front of it for copying only. Returns the files.
pub fn install(prefix: &Path, destdir: Option<&Path>) -> Result<Vec<PathBuf>> {
    let log = paths::target().join("install.log");
    let built = |log: &Path| {
        let doctor = build_package(DOCTOR, DOCTOR, log)?;
        Ok((build(log)?, build_static(log)?, doctor, preload(log)?))
    };
    let (library, archive, doctor, preload) = step("Build the library", &log, built)?;
    let mut files = copy(&library, &header(), prefix, destdir)?;
    let root = below(prefix, destdir);
    // vfio-fast-run finds the library in the lib folder of the same prefix.
    let run = preload.with_file_name(RUN);
    let mut others = vec![
        (archive, format!("lib/{STATIC}")),
        (doctor, format!("bin/{DOCTOR}")),
        (run, format!("bin/{RUN}")),
        (preload, format!("lib/{PRELOADED}")),
        (generated("man/vfio_fast.3"), "share/man/man3/vfio_fast.3".to_owned()),
    ];
    for name in [DOCTOR, RUN] {
        let completions = |file: String| generated(&format!("completions/{file}"));
        others.extend([
            (generated(&format!("man/{name}.1")), format!("share/man/man1/{name}.1")),
            (completions(format!("{name}.bash")), format!("share/bash-completion/completions/{name}")),
            (completions(format!("{name}.fish")), format!("share/fish/vendor_completions.d/{name}.fish")),
            (completions(format!("_{name}")), format!("share/zsh/site-functions/_{name}")),
        ]);
    }
    for (from, to) in others {
        let to = root.join(to);
        replace(&from, &to)?;
        files.push(to);
    }
    Ok(files)
}

/// Installs below a fresh directory, for builds and tests that link against the library.
pub fn into(prefix: &Path, log: &Path) -> Result<()> {
    crate::cache::remove_dir(prefix)?;
    copy(&build(log)?, &header(), prefix, None).map(drop)
}

/// The same for arm64.
pub fn into_arm64(sysroot: &Sysroot, prefix: &Path, log: &Path) -> Result<()> {
    crate::cache::remove_dir(prefix)?;
    copy(&build_arm64(sysroot, log)?, &header(), prefix, None).map(drop)
}

/// The interface that programs are compiled against: header without comments, pkg-config file, SONAME.
pub fn interface() -> Result<Vec<String>> {
    let header = header();
    let text = fs::read_to_string(&header).with_context(|| format!("Cannot read {}", header.display()))?;
    // What only static linking needs is no part of it.
    let pc = pkg_config(Path::new("/usr"))?;
    let pc = pc.split_inclusive('\n').filter(|line| !line.starts_with("Libs.private:")).collect();
    Ok(vec![without_comments(&text), pc, soname()])
}

/// C without its comments and the empty lines that they leave. The header has no string that contains one.
fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let mut code = parts.next().unwrap_or_default().to_owned();
    code.extend(parts.map(|part| part.split_once("*/").map_or("", |(_, code)| code)));
    code.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect()
}

/// The SONAME. It contains the full version before 1.0, because every release can change the ABI.
pub fn soname() -> String {
    format!("libvfio_fast.so.{VERSION}")
}

/// Path of the header in the repository.
pub fn header() -> PathBuf {
    paths::root().join("include/vfio_fast.h")
}

/// A manual page or completions, which `cargo xtask pages` makes.
fn generated(file: &str) -> PathBuf {
    paths::root().join("packaging").join(file)
}

/// Builds the library that is preloaded into unmodified programs, and vfio-fast-run beside it.
pub fn preload(log: &Path) -> Result<PathBuf> {
    build_package(PRELOAD, PRELOADED, log)
}

/// Builds the library.
fn build(log: &Path) -> Result<PathBuf> {
    build_package("vfio-fast", "libvfio_fast.so", log)
}

/// Builds the library for arm64.
fn build_arm64(sysroot: &Sysroot, log: &Path) -> Result<PathBuf> {
    let triple = Target::Arm64.triple();
    target::add(triple, log)?;
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let cargo = paths::cargo();
    let flags = format!("-C link-arg={} -C link-arg={}", sysroot.option(), sysroot.link_option());
    let build = cmd!(sh, "{cargo} build --package vfio-fast --release --locked --target {triple}");
    let build = build.env("RUSTFLAGS", flags).envs(Target::Arm64.variables().iter().copied());
    run_logged(&mut build.into(), log)?;
    Ok(paths::target().join(triple).join("release/libvfio_fast.so"))
}

/// Builds the static library.
fn build_static(log: &Path) -> Result<PathBuf> {
    let arguments = ["rustc", "--package", "vfio-fast", "--lib", "--crate-type", "staticlib"];
    build_release(&arguments, STATIC, log)
}

/// Builds a package with the release profile; returns this file of it.
fn build_package(package: &str, file: &str, log: &Path) -> Result<PathBuf> {
    build_release(&["build", "--package", package], file, log)
}

/// Runs cargo with the release profile; returns a file that it makes.
fn build_release(arguments: &[&str], file: &str, log: &Path) -> Result<PathBuf> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let cargo = paths::cargo();
    run_logged(&mut cmd!(sh, "{cargo} {arguments...} --release --locked").into(), log)?;
    Ok(paths::target().join("release").join(file))
}

fn copy(library: &Path, header: &Path, prefix: &Path, destdir: Option<&Path>) -> Result<Vec<PathBuf>> {
    let sh = Shell::new()?;
    let dynamic = cmd!(sh, "readelf --dynamic {library}").quiet().read()?;
    let soname = soname();
    let right =
        dynamic.lines().any(|line| line.contains("(SONAME)") && line.contains(&format!("[{soname}]")));
    ensure!(right, "{} does not have the SONAME {soname}", library.display());

    let root = below(prefix, destdir);
    let files = ["lib", "lib", "lib/pkgconfig", "include"]
        .into_iter()
        .zip([soname.as_str(), "libvfio_fast.so", "vfio_fast.pc", "vfio_fast.h"])
        .map(|(dir, name)| root.join(dir).join(name))
        .collect::<Vec<_>>();
    let [shared, link, pc, include] = files.as_slice() else { unreachable!("four files") };
    for file in &files {
        make_way(file)?;
    }
    sh.copy_file(library, shared)?;
    symlink(&soname, link).with_context(|| format!("Cannot write {}", link.display()))?;
    sh.write_file(pc, pkg_config(prefix)?)?;
    sh.copy_file(header, include)?;
    Ok(files)
}

/// Where the files of a prefix are copied to.
fn below(prefix: &Path, destdir: Option<&Path>) -> PathBuf {
    match destdir {
        Some(destdir) => destdir.join(prefix.strip_prefix("/").unwrap_or(prefix)),
        None => prefix.to_path_buf(),
    }
}

/// Makes the directory of a file, and removes an old file. A running program can have the old file mapped, so it is
/// replaced instead of overwritten. Dangling links must be removed as well.
fn make_way(file: &Path) -> Result<()> {
    let dir = file.parent().context("a file has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    if file.symlink_metadata().is_ok() {
        fs::remove_file(file).with_context(|| format!("Cannot replace {}", file.display()))?;
    }
    Ok(())
}

/// Copies a file in place of an old one.
fn replace(from: &Path, to: &Path) -> Result<()> {
    make_way(to)?;
    fs::copy(from, to).with_context(|| format!("Cannot write {}", to.display()))?;
    Ok(())
}

/// The pkg-config file for a prefix. Debian's package makes its own of the same template.
fn pkg_config(prefix: &Path) -> Result<String> {
    let template = paths::root().join("ffi/vfio_fast.pc.in");
    let text =
        fs::read_to_string(&template).with_context(|| format!("Cannot read {}", template.display()))?;
    let prefix = prefix.display().to_string();
    Ok(text.replace("@prefix@", &prefix).replace("@libdir@", "${prefix}/lib").replace("@version@", VERSION))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn comments_are_no_part_of_the_interface() {
        let text = "/* a\n * b */\n#define A 1 /* c */\n\nint f(void);\n/** d */\nint g(void);\n";
        assert_eq!(without_comments(text), "#define A 1 \nint f(void);\nint g(void);\n");
        let header = without_comments(&fs::read_to_string(header()).unwrap());
        assert!(!header.contains("*/") && header.contains("int vfio_fast_commit(struct vfio_fast *vf,"));
    }
    use crate::cache::remove_dir;
    use crate::progress::output;

    /// Builds a shared library with this SONAME.
    fn library(dir: &Path, soname: &str) -> PathBuf {
        fs::create_dir_all(dir).unwrap();
        let (source, library) = (dir.join("x.c"), dir.join("x.so"));
        fs::write(&source, "int vfio_fast_x(void) { return 0; }\n").unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", &format!("-Wl,-soname,{soname}"), "-o"]).arg(&library).arg(&source);
        output(&mut cc).unwrap();
        library
    }

    #[test]
    fn files_go_below_destdir_and_speak_of_the_prefix() {
        let dir = paths::target().join("test-scratch").join(format!("install-{}", std::process::id()));
        let (library, header) = (library(&dir, &soname()), dir.join("x.c"));
        let install = |prefix: &str| copy(&library, &header, Path::new(prefix), Some(&dir.join("dest")));
        let files = install("/opt/x").unwrap();
        assert_eq!(install("/opt/x").unwrap(), files, "a second time over the first");
        let program = below(Path::new("/opt/x"), Some(&dir.join("dest"))).join("bin/x");
        for _ in 0..2 {
            replace(&header, &program).unwrap();
        }
        assert!(dir.join("dest/opt/x/bin/x").exists());
        let lib = dir.join("dest/opt/x/lib");
        assert_eq!(fs::canonicalize(lib.join("libvfio_fast.so")).unwrap(), files[0].canonicalize().unwrap());
        assert_eq!(files[0], lib.join(format!("libvfio_fast.so.{VERSION}")));

        let pkg_config = |args: &[&str]| {
            let mut command = Command::new("pkg-config");
            command.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1");
            output(command.args(args).arg("vfio_fast")).unwrap().trim().to_owned()
        };
        assert_eq!(pkg_config(&["--modversion"]), VERSION);
        assert_eq!(pkg_config(&["--cflags", "--libs"]), "-I/opt/x/include -L/opt/x/lib -lvfio_fast");
        remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_wrong_soname_is_refused() {
        let dir = paths::target().join("test-scratch").join(format!("soname-{}", std::process::id()));
        let library = library(&dir, "libvfio_fast.so.9");
        let error = copy(&library, &dir.join("x.c"), &dir.join("prefix"), None).unwrap_err().to_string();
        assert!(error.ends_with(&format!("does not have the SONAME {}", soname())), "{error}");
        assert!(!dir.join("prefix").exists(), "nothing half installed");
        remove_dir(&dir).unwrap();
    }
}
