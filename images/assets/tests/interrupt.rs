//! A signal leaves no child, no partial entry, no lock and no changed setting.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vfio_fast_assets::cache::{Cache, Input};
use vfio_fast_assets::{interrupt, paths, progress};

/// Set for the process to be interrupted: its working directory.
const SCRATCH: &str = "VFIO_FAST_TEST_INTERRUPTED";

/// The process to be interrupted: builds an entry with a child that never ends. Does nothing in an ordinary run.
#[test]
fn builds_until_it_is_interrupted() {
    let Some(scratch) = std::env::var_os(SCRATCH) else { return };
    let scratch = Path::new(&scratch);
    interrupt::handle_signals().unwrap();
    let setting = scratch.join("setting");
    fs::write(&setting, "changed").unwrap();
    let _cleanup = interrupt::on_interrupt(move || fs::write(setting, "as it was").unwrap());
    let entry = Cache::at(scratch).unwrap().entry("thing", &[Input::Text("x")]).unwrap();
    let built = entry.get_or_build(|dir| {
        fs::write(dir.join("half"), "")?;
        // The shell's child must end as well.
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo $! > $0/child; wait"]).arg(scratch);
        progress::step("Build", &entry.log(), |log| progress::run_logged(&mut shell, log))
    });
    unreachable!("{built:?}");
}

#[test]
fn nothing_is_left_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let name = format!("interrupt-{}-{}", signal.as_raw(), std::process::id());
        let scratch = paths::target().join("test-scratch").join(name);
        fs::create_dir_all(&scratch).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "builds_until_it_is_interrupted", "--nocapture"])
            .env(SCRATCH, &scratch)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("==> Build")));
        let child = loop {
            match fs::read_to_string(scratch.join("child")) {
                Ok(text) if text.ends_with('\n') => break text.trim().parse::<u32>().unwrap(),
                _ => std::thread::yield_now(),
            }
        };
        assert!(scratch.join("entries").read_dir().unwrap().count() > 0, "an entry is being built");

        let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let status = process.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{status}");
        assert_eq!(fs::read_to_string(scratch.join("setting")).unwrap(), "as it was");
        assert_eq!(scratch.join("entries").read_dir().unwrap().count(), 0, "half an entry is left");
        assert!(!runs(child), "the build's child still runs");
        // This would block if the lock were still held.
        let entry = Cache::at(&scratch).unwrap().entry("thing", &[Input::Text("x")]).unwrap();
        entry.get_or_build(|_| Ok(())).unwrap();
        fs::remove_dir_all(scratch).unwrap();
    }
}

/// Whether a process exists and is not a zombie.
fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
