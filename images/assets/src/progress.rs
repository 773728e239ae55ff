//! Reports long steps: name, elapsed and remaining time, path of the log, and the end of the log after a failure.
//! Several threads can run steps at the same time.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Interval between progress lines.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Interval on a terminal, where each line overwrites the previous one.
const TTY_HEARTBEAT: Duration = Duration::from_secs(1);
/// Number of log lines shown when a step fails.
const TAIL: usize = 40;

/// The steps in progress.
static STEPS: Mutex<Steps> = Mutex::new(Steps { open: Vec::new(), ticking: false, line_is_shown: false });

struct Steps {
    /// Oldest first.
    open: Vec<Open>,
    /// Whether the thread that prints progress lines is running.
    ticking: bool,
    /// Whether the terminal's last line is a progress line.
    line_is_shown: bool,
}

/// Reads the progress of a step from its log, as the amounts done and in total.
pub type Measure = fn(&Path) -> Option<(u64, u64)>;

/// A step in progress. Progress lines show the newest step of each thread.
struct Open {
    what: String,
    log: PathBuf,
    start: Instant,
    thread: ThreadId,
    measure: Measure,
    /// Time and values of the first measurement.
    first: Option<(Instant, u64, u64)>,
}

/// A step that failed and has already reported the failure with the end of its log.
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

/// Runs a long step that writes to `log`, which is emptied first.
///
/// Prints a line when the step starts and ends, a progress line every 15 s, and on failure the error and the last
/// lines of the log.
pub fn step<T>(what: &str, log: &Path, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    step_measured(what, log, ninja, run)
}

/// The same for a step that does not report its progress as ninja does.
pub fn step_measured<T>(
    what: &str,
    log: &Path,
    measure: Measure,
    run: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    }
    File::create(log).with_context(|| format!("Cannot create {}", log.display()))?;
    say(&format!("==> {what} (log: {})", log.display()));
    let start = Instant::now();
    let result = {
        let _open = begin(what, log, start, measure);
        run(log)
    };
    let took = elapsed(start.elapsed());
    match result {
        Ok(value) => {
            say(&format!("    {what}: done in {took}"));
            Ok(value)
        }
        Err(error) if error.downcast_ref::<StepFailed>().is_some() => {
            say(&format!("    {what}: failed after {took}"));
            Err(error)
        }
        Err(error) => {
            let mut report = format!("    {what}: failed after {took}: {error:#}");
            for line in tail(log, TAIL) {
                report += &format!("\n    | {line}");
            }
            say(&format!("{report}\n    whole log: {}", log.display()));
            Err(error.context(StepFailed { what: what.to_owned(), log: log.to_path_buf() }))
        }
    }
}

/// Prints a line on standard error, above the progress lines.
pub fn say(line: &str) {
    let mut steps = steps();
    clear(&mut steps);
    eprintln!("{line}");
}

/// Prints a line on standard output, for results.
pub fn print(line: &str) {
    let mut steps = steps();
    clear(&mut steps);
    println!("{line}");
}

/// Runs a command and appends its output to `log`. A status other than 0 is an error.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    logged(command, log, interrupt::spawn)
}

/// The same for a command that must not be interrupted, even if a signal ends this process.
pub fn run_logged_to_its_end(command: &mut Command, log: &Path) -> Result<()> {
    logged(command, log, interrupt::spawn_to_its_end)
}

type Spawn = fn(&mut Command) -> std::io::Result<(std::process::Child, interrupt::Cleanup)>;

fn logged(command: &mut Command, log: &Path, spawn: Spawn) -> Result<()> {
    let line = command_line(command);
    let mut file = OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(file, "$ {line}")?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let (mut child, _cleanup) = spawn(command).with_context(|| format!("Cannot start `{line}`"))?;
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns its standard output. A status other than 0 is an error that contains its standard
/// error.
pub fn output(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("Cannot start `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, complaint.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed something not UTF-8"))
}

/// Formats a duration as "7.3 s" or "2 min 05 s".
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

/// Removes its step when dropped, also on panic.
struct Begun(Instant, ThreadId);

impl Drop for Begun {
    fn drop(&mut self) {
        let mut steps = steps();
        clear(&mut steps);
        steps.open.retain(|open| (open.start, open.thread) != (self.0, self.1));
    }
}

/// Registers a step and starts the progress thread if needed.
fn begin(what: &str, log: &Path, start: Instant, measure: Measure) -> Begun {
    let mut steps = steps();
    let thread = thread::current().id();
    let (what, log) = (what.to_owned(), log.to_path_buf());
    steps.open.push(Open { what, log, start, thread, measure, first: None });
    if !steps.ticking {
        steps.ticking = true;
        thread::spawn(tick);
    }
    Begun(start, thread)
}

/// Prints progress lines until no step is in progress.
fn tick() {
    let tty = std::io::stderr().is_terminal();
    let interval = if tty { TTY_HEARTBEAT } else { HEARTBEAT };
    let mut next = Instant::now() + interval;
    loop {
        thread::sleep(next.saturating_duration_since(Instant::now()).min(TTY_HEARTBEAT));
        let mut steps = steps();
        if steps.open.is_empty() || interrupt::is_interrupted() {
            steps.ticking = false;
            return;
        }
        if Instant::now() < next {
            continue;
        }
        next += interval;
        let open = &mut steps.open;
        let mut lines = Vec::new();
        for n in 0..open.len() {
            let is_newest = open[n + 1..].iter().all(|other| other.thread != open[n].thread);
            // The start of a step was printed already.
            if is_newest && open[n].start.elapsed() + TTY_HEARTBEAT > interval {
                lines.push(open[n].sign_of_life(!tty));
            }
        }
        if lines.is_empty() {
            continue;
        }
        if tty {
            let line: String = format!("    {}", lines.join(" | ")).chars().take(width()).collect();
            eprint!("\r\x1b[K{line}");
            steps.line_is_shown = true;
        } else {
            lines.iter().for_each(|line| eprintln!("    {line}"));
        }
    }
}

impl Open {
    /// "Build QEMU (on): 1 min 15 s so far, 71 %, about 30 s left"
    fn sign_of_life(&mut self, with_log: bool) -> String {
        let mut line = format!("{}: {} so far", self.what, elapsed(self.start.elapsed()));
        let now = Instant::now();
        let measured = (self.measure)(&self.log).filter(|(done, whole)| done <= whole && *whole > 0);
        if let Some((done, whole)) = measured {
            line += &format!(", {} %", done * 100 / whole);
            // A different total means a different count.
            let (since, from, _) = *match self.first {
                Some((_, _, first)) if first == whole => self.first.get_or_insert((now, done, whole)),
                _ => self.first.insert((now, done, whole)),
            };
            if let Some(left) = left(now - since, done.saturating_sub(from), whole - done) {
                line += &format!(", about {} left", elapsed(left));
            }
        } else if with_log {
            let last = tail(&self.log, 1).pop().unwrap_or_default();
            line += &format!("  {}", last.chars().take(60).collect::<String>());
        }
        line
    }
}

/// Estimates how long `todo` takes if `done` took this long; `None` at the very beginning.
fn left(took: Duration, done: u64, todo: u64) -> Option<Duration> {
    let seconds = took.as_secs_f64() / done as f64 * todo as f64;
    (done > 0 && took > Duration::from_secs(2)).then(|| Duration::from_secs(seconds as u64))
}

/// Reads ninja's progress from lines that begin with `[done/total]`.
fn ninja(log: &Path) -> Option<(u64, u64)> {
    let line = tail(log, 1).pop()?;
    let (counts, _) = line.strip_prefix('[')?.split_once(']')?;
    let (done, whole) = counts.split_once('/')?;
    Some((done.parse().ok()?, whole.parse().ok()?))
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.map_or(80, |size| usize::from(size.ws_col).max(20)) - 1
}

fn clear(steps: &mut Steps) {
    if std::mem::take(&mut steps.line_is_shown) {
        eprint!("\r\x1b[K");
    }
}

fn steps() -> MutexGuard<'static, Steps> {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner)
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
            // Progress bars overwrite themselves, so keep only their last state.
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
    fn a_step_says_how_far_it_is() {
        let path = log("measured");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let begun = Instant::now() - Duration::from_secs(100);
        let mut open = Open {
            what: "Build".into(),
            log: path.clone(),
            start: begun,
            thread: thread::current().id(),
            measure: ninja,
            first: Some((begun + Duration::from_secs(20), 0, 200)),
        };
        for (text, end) in [
            ("[50/200] Compiling a.c\n", " so far, 25 %, about 4 min 00 s left"),
            ("[200/200] Linking\n", " so far, 100 %, about 0.0 s left"),
            ("[1/300] Another count\n", " so far, 0 %"),
            ("checking for gcc\n", " so far  checking for gcc"),
        ] {
            fs::write(&path, text).unwrap();
            let line = open.sign_of_life(true);
            assert!(line.starts_with("Build: 1 min 40 s") && line.ends_with(end), "{line}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn elapsed_reads_well() {
        assert_eq!(elapsed(Duration::from_millis(7300)), "7.3 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 05 s");
    }
}
