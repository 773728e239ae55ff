//! Installs the library below a scratch prefix, compiles C consumers, and runs them with a time limit.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time limit of a program. None of them runs nearly as long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The library as users install it, installed once for all tests of this program.
pub struct Installed {
    prefix: PathBuf,
}

/// Installs the library below a scratch prefix with `cargo xtask install`.
pub fn installed() -> &'static Installed {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let prefix = scratch("prefix");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["xtask", "install", "--prefix"]).arg(&prefix);
        must(&mut cargo, "cargo comes with the Rust toolchain");
        Installed { prefix }
    })
}

impl Installed {
    /// The shared library, by the name that programs link with.
    pub fn library(&self) -> PathBuf {
        self.prefix.join("lib/libvfio_fast.so")
    }

    /// The output of pkg-config for the installed library.
    pub fn pkg_config(&self, arguments: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        // Only this prefix: pkg-config must not find a library installed on the machine.
        command.env("PKG_CONFIG_LIBDIR", self.prefix.join("lib/pkgconfig")).env_remove("PKG_CONFIG_PATH");
        command.args(arguments).arg("vfio_fast");
        must(&mut command, "install pkg-config").split_whitespace().map(str::to_owned).collect()
    }
}

/// The language of a consumer.
#[derive(Clone, Copy, Debug)]
pub enum Language {
    C11,
    Cpp17,
}

/// How a consumer is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Build {
    Plain,
    /// With the address and undefined-behaviour sanitizers, and leak detection.
    Sanitized,
}

/// Compiles `source`, a file of `ffi`, through the installed pkg-config file.
pub fn compile(source: &str, language: Language, build: Build, more: &[&str]) -> PathBuf {
    let library = installed();
    let name = source.replace(['.', '/'], "_");
    let program = scratch("bin").join(format!("{name}-{language:?}-{build:?}"));
    fs::create_dir_all(scratch("bin")).expect("the scratch directory is writable");
    let (compiler, standard) = match language {
        Language::C11 => ("cc", ["-x", "c", "-std=c11"]),
        Language::Cpp17 => ("c++", ["-x", "c++", "-std=c++17"]),
    };
    let mut command = Command::new(compiler);
    command.args(standard).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-pthread"]).args(more);
    if build == Build::Sanitized {
        command.args(["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]);
        command.arg("-fno-sanitize-recover=all");
    }
    command.args(library.pkg_config(&["--cflags"]));
    command.arg(root().join("ffi").join(source)).args(["-x", "none", "-o"]).arg(&program);
    command.args(library.pkg_config(&["--libs"]));
    must(&mut command, "install a C and a C++ compiler (gcc and g++)");
    program
}

/// Runs a compiled consumer and returns what it printed. It must succeed within the time limit.
pub fn run(program: &Path) -> String {
    let output = run_to_end(program);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {}\n{out}{err}", program.display(), output.status);
    out
}

fn run_to_end(program: &Path) -> Output {
    let files = [program.with_extension("out"), program.with_extension("err")];
    let [out, err] =
        files.each_ref().map(|file| File::create(file).expect("the scratch directory is writable"));
    let library = installed().library();
    let mut child = Command::new(program)
        .env("LD_LIBRARY_PATH", library.parent().expect("it lies in a directory"))
        .env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("it is our child");
            let _ = child.wait();
            panic!("{}: not done after {PATIENCE:?}", program.display());
        }
        sleep(Duration::from_millis(5));
    };
    let [stdout, stderr] = files.map(|file| fs::read(file).expect("it was written just now"));
    Output { status, stdout, stderr }
}

/// Runs a tool and returns what it printed. It must succeed. `otherwise` says what to do if it is not installed.
pub fn must(command: &mut Command, otherwise: &str) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().unwrap_or_else(|error| panic!("{name} cannot be run ({error}): {otherwise}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    assert!(
        output.status.success(),
        "{name} {}: {}\n{text}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ffi lies in the repository's root").to_path_buf()
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_consumers").join(name)
}
