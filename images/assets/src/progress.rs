//! Long steps: what runs, for how long, where its log is, and the end of the log when it fails.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Between two on a terminal, where they overwrite each other.
const TTY_HEARTBEAT: Duration = Duration::from_secs(1);
/// Lines of the log shown when a step fails.
const TAIL: usize = 40;

/// How many steps are open, one inside the other; only the innermost shows signs of life.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A step that failed and has told so, with the end of its log.
#[derive(Debug)]
pub struct StepFailed {
    what: String,
    log: PathBuf,
}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed, log: {}", self.what, self.log.display())
    }
}

impl Error for StepFailed {}

/// Runs a long step that writes to `log`, which starts empty.
///
/// Prints a line when it starts and when it ends, a sign of life every 15 s, and on failure the
/// error and the last lines of the log.
pub fn step<T>(what: &str, log: &Path, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    }
    File::create(log).with_context(|| format!("Cannot create {}", log.display()))?;
    eprintln!("==> {what} (log: {})", log.display());
    let start = Instant::now();
    let result = beating(what, log, start, || run(log));
    let took = elapsed(start.elapsed());
    match result {
        Ok(value) => {
            eprintln!("    {what}: done in {took}");
            Ok(value)
        }
        Err(error) if error.downcast_ref::<StepFailed>().is_some() => {
            eprintln!("    {what}: failed after {took}");
            Err(error)
        }
        Err(error) => {
            eprintln!("    {what}: failed after {took}: {error:#}");
            for line in tail(log, TAIL) {
                eprintln!("    | {line}");
            }
            eprintln!("    whole log: {}", log.display());
            Err(error.context(StepFailed { what: what.to_owned(), log: log.to_path_buf() }))
        }
    }
}

/// Runs a command with its output appended to `log`; a status other than 0 is an error.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let line = command_line(command);
    let mut file = OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(file, "$ {line}")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("Cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed; a status other than 0 is an error with its complaints.
pub fn output(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("Cannot start `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, complaint.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed something not UTF-8"))
}

/// "7.3 s", "2 min 05 s".
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs `run` beside a thread that shows signs of life.
fn beating<T>(what: &str, log: &Path, start: Instant, run: impl FnOnce() -> T) -> T {
    let depth = OPEN.fetch_add(1, Ordering::Relaxed) + 1;
    let tty = std::io::stderr().is_terminal();
    let interval = if tty { TTY_HEARTBEAT } else { HEARTBEAT };
    let (stop, stopped) = mpsc::channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if OPEN.load(Ordering::Relaxed) != depth {
                    continue;
                }
                let last = tail(log, 1).pop().unwrap_or_default();
                let last: String = last.chars().take(60).collect();
                let line = format!("    {what}: {} so far  {last}", elapsed(start.elapsed()));
                if tty { eprint!("\r\x1b[K{line}") } else { eprintln!("{line}") }
            }
            if tty {
                eprint!("\r\x1b[K");
            }
        });
        // Dropped on return and on panic alike: the thread ends, the scope can close.
        let _stop = stop;
        run()
    });
    OPEN.fetch_sub(1, Ordering::Relaxed);
    result
}

/// The last lines of a file; none if it cannot be read.
fn tail(path: &Path, lines: usize) -> Vec<String> {
    const WINDOW: u64 = 64 << 10;
    let read = || -> std::io::Result<Vec<String>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut kept = VecDeque::with_capacity(lines + 1);
        for line in BufReader::new(file.take(WINDOW)).split(b'\n') {
            // Progress bars overwrite themselves: what counts is what they showed last.
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            kept.push_back(line.rsplit('\r').next().unwrap_or_default().to_owned());
            if kept.len() > lines {
                kept.pop_front();
            }
        }
        Ok(kept.into())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    fn log(test: &str) -> PathBuf {
        paths::target().join("test-scratch").join(format!("progress-{test}-{}.log", std::process::id()))
    }

    #[test]
    fn a_failing_command_fails_its_step_once() {
        let path = log("fail");
        let result = step("Outer", &path, |_| {
            step("Inner", &path, |log| {
                run_logged(Command::new("sh").args(["-c", "echo before; echo broken >&2; exit 3"]), log)
            })
        });
        let error = result.unwrap_err();
        assert_eq!(error.downcast_ref::<StepFailed>().unwrap().what, "Inner");
        assert!(format!("{error:#}").contains("exit status: 3"), "{error:#}");
        assert_eq!(tail(&path, 2), ["before", "broken"]);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn output_carries_the_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().ends_with("no such thing"), "{error}");
        assert_eq!(output(Command::new("echo").arg("yes")).unwrap(), "yes\n");
    }

    #[test]
    fn tail_keeps_the_last_lines_and_the_last_state_of_a_bar() {
        let path = log("tail");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "1\n2\n10%\r20%\r30%\n").unwrap();
        assert_eq!(tail(&path, 2), ["2", "30%"]);
        assert_eq!(tail(Path::new("/nonexistent"), 2), [""; 0]);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn elapsed_reads_well() {
        assert_eq!(elapsed(Duration::from_millis(7300)), "7.3 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 05 s");
    }
}
