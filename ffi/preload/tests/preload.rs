//! The library in a program: the same answers with it and without it, and memory that is present before each call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Pages of each map call of the program.
const PAGES: usize = 48 << 20 >> 12;

fn scratch() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("preload");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn compile(source: &str, output: &str, flags: &[&str]) -> PathBuf {
    let output = scratch().join(output);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&output);
    assert!(cc.arg(source).status().expect("install a C compiler").success());
    output
}

/// vfio-fast-run, with the library beside it: a test alone builds only the program.
fn vfio_fast_run() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
            "build",
            "--locked",
            "--package",
            "vfio-fast-preload",
        ]);
        cargo.args(["--quiet", "--target-dir"]).arg(scratch().join("target"));
        assert!(cargo.status().expect("cargo runs tests").success());
        scratch().join("target/debug/vfio-fast-run")
    });
    Command::new(program)
}

/// A run of the program.
struct Run {
    stdout: String,
    stderr: String,
    /// What the kernel saw at each map call.
    record: Vec<String>,
    summary: String,
    /// The timeline, in JSON.
    timeline: String,
}

/// Runs the program under that name, with the library and with a kernel in the next one, if so.
fn run(name: &str, preloaded: bool, kernel: bool) -> Run {
    let program = compile("program.c", &format!("{name}-program"), &[]);
    let [record, summary, timeline] =
        ["record", "summary", "timeline"].map(|file| scratch().join(format!("{name}-{file}")));
    for file in [&record, &summary, &timeline] {
        let _ = fs::remove_file(file);
    }
    let mut command = if preloaded {
        let mut command = vfio_fast_run();
        command.arg("--stats-file").arg(&summary).arg("--timeline").arg(&timeline).arg("--").arg(&program);
        command
    } else {
        Command::new(&program)
    };
    if kernel {
        let library = compile("kernel.c", &format!("{name}-kernel.so"), &["-shared", "-fPIC"]);
        command.env("LD_PRELOAD", library).env("KERNEL_RECORD", &record);
    }
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(status.success(), "{status}\n{stdout}{stderr}");
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let record = read(record).lines().map(str::to_owned).collect();
    Run { stdout, stderr, record, summary: read(summary), timeline: read(timeline) }
}

#[test]
fn the_kernel_of_this_machine_answers_the_same() {
    let [without, with] = [false, true].map(|preloaded| run(&format!("real-{preloaded}"), preloaded, false));
    assert_eq!(without.stdout, with.stdout);
    assert!(
        with.stdout.contains("unreadable: -1") && with.stdout.contains("cancelled: 1"),
        "{}",
        with.stdout
    );
}

#[test]
fn memory_is_present_before_the_call_and_the_answers_are_the_same() {
    let [without, with] = [false, true].map(|preloaded| run(&format!("all-{preloaded}"), preloaded, true));
    assert_eq!(without.stdout, with.stdout);
    assert_eq!(without.stderr, "");
    assert!(without.summary.is_empty());
    assert_eq!(without.record.len(), with.record.len());
    let present = |run: &Run| -> Vec<usize> {
        let numbers = run.record.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap());
        numbers.collect()
    };
    assert!(present(&without).iter().all(|pages| *pages == 0), "{:?}", without.record);
    let summary = &with.summary;
    if summary.contains("one CPU only") || summary.contains("RLIMIT_MEMLOCK leaves") {
        // There is nothing to be seen on such a machine.
        return;
    }
    // map, map again, ioas map, read only, vaddr, small, nothing there, refused, cancelled, child
    let expected = [PAGES, PAGES, PAGES, 0, 0, 0, 0, 0, PAGES, PAGES];
    assert_eq!(present(&with), expected, "{:?}", with.record);
    // The program's own, of which the one that was cancelled is the second: those that faulted in have ended.
    let threads = |n: usize| with.record[n].rsplit(", ").next().unwrap();
    assert_eq!(
        [0, 1, 2, 8, 9].map(threads),
        ["1 threads", "1 threads", "1 threads", "2 threads", "1 threads"]
    );
}

#[test]
fn the_summary_says_what_was_done_and_why_not() {
    let Run { summary, .. } = run("summary", true, true);
    let (child, parent) = summary.split_at(summary.rfind("vfio-fast-preload").unwrap());
    // Two processes, each with its own calls.
    assert!(child.contains("type1 map") && child.contains(" 1 calls") && !child.contains("unmap"), "{child}");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let parent = words(parent);
    // 48 MiB are mapped three times by type1, and 1 MiB; what only reads, and where nothing is, is mapped as well.
    for line in [
        "type1 unmap 3 calls 2.3 MiB",
        "iommufd map 2 calls 48.0 MiB",
        "less than 4 MiB",
        "the device may only read it",
        "flags, a size or an alignment that are not known here",
        "the arguments cannot be read",
        "not the descriptor of a device",
    ] {
        assert!(parent.contains(line), "{line}: {parent}");
    }
    if !parent.contains("one CPU only") && !parent.contains("RLIMIT_MEMLOCK leaves") {
        assert!(parent.contains("faulted in before 3 calls 144.0 MiB"), "{parent}");
        assert!(parent.contains("threads: 2") || parent.contains("threads: 3"), "{parent}");
    }
}

#[test]
fn arguments_on_the_stack_are_read_without_a_system_call() {
    let program = compile("sandbox.c", "sandbox", &[]);
    let run = vfio_fast_run().args(["--stats", "--"]).arg(program).output().unwrap();
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success(), "{text}");
    for (calls, reason) in [("5 calls", "less than 4 MiB"), ("3 calls", "the arguments cannot be read")] {
        let line = text.lines().find(|line| line.contains(reason));
        assert!(line.is_some_and(|line| line.contains(calls)), "{text}");
    }
}

#[test]
fn the_timeline_has_what_the_summary_has() {
    let Run { summary, timeline, .. } = run("timeline", true, true);
    let events: Vec<serde_json::Value> = serde_json::from_str(&timeline).expect(&timeline);
    let of = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    // The child's are in neither.
    let parent = &summary[summary.rfind("vfio-fast-preload").unwrap()..];
    for name in ["type1 unmap", "iommufd map"] {
        let line = parent.lines().find(|line| line.trim().starts_with(&format!("{name} "))).expect(name);
        let calls = line.split_whitespace().find(|word| word.parse::<u64>().is_ok()).unwrap();
        assert!(
            of(name) > 0 && of(name) >= calls.parse().unwrap(),
            "{name}: {} in the timeline: {line}",
            of(name)
        );
    }
    if !parent.contains("one CPU only") && !parent.contains("RLIMIT_MEMLOCK leaves") {
        assert!(of("fault in") > 0, "{timeline}");
    }
}

#[test]
fn what_cannot_be_run_is_said() {
    let run = |args: &[&str]| vfio_fast_run().args(args).output().unwrap();
    assert_eq!(run(&["/nowhere/at/all"]).status.code(), Some(127));
    assert_eq!(run(&["/etc/passwd"]).status.code(), Some(126));
    assert_eq!(run(&["--stats"]).status.code(), Some(125));
    let none = run(&["--stats", "true"]);
    let text = String::from_utf8(none.stderr).unwrap();
    assert!(none.status.success() && text.contains("(true) made no call that maps or unmaps"), "{text}");
    assert_eq!(run(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
}
