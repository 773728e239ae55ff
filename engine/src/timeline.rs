//! A record of what the library does when: the trace-event format, which Perfetto and chrome://tracing open.
//!
//! There is one record for the process, because threads and containers are compared in it. While none is written, a
//! place that could write to it costs one load.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::IovaRange;
use crate::error::KernelResult;
use crate::log::{Level, Log};

/// The variable of the environment that names the file.
pub const VARIABLE: &str = "VFIO_FAST_TIMELINE";
/// The text that is collected before it is written to the file.
const BUFFER: usize = 64 << 10;
/// What ends the file. It is overwritten by what follows, so that the file is complete after each write.
const END: &str = "\n]\n";
const BEGIN: &str = "[";
/// The row of the job's thread. Workers have the numbers of their names, and rows of other threads follow.
const JOB: u32 = 999;
/// How the names of the library's threads begin.
const OWN_NAMES: &str = "vfio-fast-";
const FIRST_CALLER: u32 = 1000;

/// The process that writes a record; 0: none. After a fork the child has the same file, and maybe a lock that nobody
/// will open, and must touch neither.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static RECORD: Mutex<Option<Record>> = Mutex::new(None);

thread_local! {
    static ROW: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Record {
    file: File,
    buffer: String,
    start: Instant,
    /// Whether there is no event yet, after which a comma would have to follow.
    is_first: bool,
}

/// Starts the record in a new file, or in the place of another one. Does nothing if there is a record already. If the
/// file cannot be written, logs a warning.
pub fn start(path: &Path, log: &Log) {
    if PROCESS.load(Ordering::Acquire) != 0 {
        return;
    }
    let mut record = lock();
    if record.is_some() {
        return;
    }
    match create(path) {
        Ok(file) => {
            *record = Some(Record { file, buffer: String::new(), start: Instant::now(), is_first: true });
            PROCESS.store(std::process::id(), Ordering::Release);
        }
        Err(error) => {
            log.write(Level::Warn, format_args!("No timeline: cannot write {}: {error}", path.display()));
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut file = File::create(path)?;
    file.write_all(BEGIN.as_bytes())?;
    file.write_all(END.as_bytes())?;
    Ok(file)
}

/// Writes what was collected to the file.
pub fn flush() {
    if is_on() {
        write_out(&mut lock());
    }
}

fn is_on() -> bool {
    let process = PROCESS.load(Ordering::Acquire);
    process != 0 && process == std::process::id()
}

/// Records a span of this thread from now on until the value is dropped.
pub(crate) fn span(name: &'static str) -> Span {
    sized(name, 0)
}

/// The same for work on that many bytes.
pub(crate) fn sized(name: &'static str, bytes: u64) -> Span {
    Span { name, bytes, start: is_on().then(Instant::now) }
}

/// Records a call of the caller's, and writes everything to the file when it ends.
pub(crate) fn operation(name: &'static str) -> Operation {
    Operation { _span: span(name), _flush: Flush }
}

/// A call of the caller's that has begun. The fields are dropped in this order.
pub(crate) struct Operation {
    _span: Span,
    _flush: Flush,
}

struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        flush();
    }
}

/// A span that has begun.
pub(crate) struct Span {
    name: &'static str,
    bytes: u64,
    start: Option<Instant>,
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        record(self.name, start, &[("bytes", (self.bytes > 0).then_some(self.bytes))]);
    }
}

/// Makes a call of the kernel for `range`, and records it.
pub(crate) fn call<T>(
    name: &'static str,
    range: IovaRange,
    call: impl FnOnce() -> KernelResult<T>,
) -> KernelResult<T> {
    if !is_on() {
        return call();
    }
    let start = Instant::now();
    let answer = call();
    let errno = answer.as_ref().err().map(|errno| u64::from(errno.0.unsigned_abs()));
    record(name, start, &[("iova", Some(range.start())), ("bytes", Some(range.length())), ("errno", errno)]);
    answer
}

/// Records a call of the kernel that somebody else has made and that has just ended.
pub fn call_has_ended(name: &str, bytes: u64, errno: Option<i32>, took: Duration) {
    if is_on() {
        let began = Instant::now().checked_sub(took).unwrap_or_else(Instant::now);
        let errno = errno.map(|errno| u64::from(errno.unsigned_abs()));
        record(name, began, &[("bytes", Some(bytes)), ("errno", errno)]);
    }
}

/// Those that have a value, as the members of an object.
struct Arguments<'a>(&'a [(&'static str, Option<u64>)]);

impl fmt::Display for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.0.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
            // A number of the format has 53 bits.
            write!(f, "{separator}\"{name}\":\"{value:#x}\"")?;
            separator = ",";
        }
        Ok(())
    }
}

fn record(name: &str, began: Instant, arguments: &[(&'static str, Option<u64>)]) {
    let ended = Instant::now();
    let mut record = lock();
    let Some(open) = &mut *record else { return };
    let (process, arguments) = (PROCESS.load(Ordering::Relaxed), Arguments(arguments));
    let row = ROW.get().unwrap_or_else(|| new_row(open));
    let begin = Microseconds(began.saturating_duration_since(open.start));
    let took = Microseconds(ended - began);
    open.event(format_args!(
        "\"name\":\"{name}\",\"ph\":\"X\",\"ts\":{begin},\"dur\":{took},\"pid\":{process},\"tid\":{row},\
         \"args\":{{{arguments}}}"
    ));
    if open.buffer.len() >= BUFFER {
        write_out(&mut record);
    }
}

/// A time as the format has it: microseconds, with a fraction.
struct Microseconds(Duration);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = self.0.as_nanos();
        write!(f, "{}.{:03}", nanoseconds / 1000, nanoseconds % 1000)
    }
}

impl Record {
    fn event(&mut self, members: fmt::Arguments<'_>) {
        let separator = if std::mem::replace(&mut self.is_first, false) { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(self.buffer, "{separator}\n{{{members}}}");
    }
}

/// The row of this thread. The library's threads are started for each commit, and keep their rows.
fn new_row(open: &mut Record) -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(FIRST_CALLER);
    let current = thread::current();
    let own = current.name().filter(|name| name.starts_with(OWN_NAMES));
    let of_caller = || NEXT.fetch_add(1, Ordering::Relaxed);
    let row = own.map_or_else(of_caller, |name| name[OWN_NAMES.len()..].parse().unwrap_or(JOB));
    ROW.set(Some(row));
    let name = own.map_or_else(|| format!("caller {}", row - FIRST_CALLER + 1), str::to_owned);
    let process = PROCESS.load(Ordering::Relaxed);
    open.event(format_args!(
        "\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":{process},\"tid\":{row},\"args\":{{\"name\":\"{name}\"}}"
    ));
    row
}

/// A file that cannot be written ends the record.
fn write_out(record: &mut Option<Record>) {
    let Some(Record { file, buffer, .. }) = record else { return };
    if buffer.is_empty() {
        return;
    }
    buffer.push_str(END);
    let end = -i64::try_from(END.len()).expect("a few bytes");
    let written = file.seek(SeekFrom::End(end)).and_then(|_| file.write_all(buffer.as_bytes()));
    buffer.clear();
    if written.is_err() {
        PROCESS.store(0, Ordering::Release);
        *record = None;
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Record>> {
    // A panic while it was locked leaves at worst a span out.
    RECORD.lock().unwrap_or_else(PoisonError::into_inner)
}
