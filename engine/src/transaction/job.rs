//! The job that maps in the background what commits have left to it.
//!
//! The job is a thread that plans what is left, executes the plan as any commit does, and ends when nothing is left. Every
//! call that has to wait for a commit pauses it: the job stops after the chunk and the entry that its threads are at, the
//! call does its own work, and the job plans anew. So it never maps what was unmapped meanwhile, and a call waits for one
//! entry at most. It does not work while a transaction is open, because what is wanted is not final then.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::lock::Locked;
use super::{Engine, State, counters};
use crate::addr::IovaRange;
use crate::error::{Error, Op, Result};
use crate::execute::cut_all;
use crate::log::{Level, Log};
use crate::populate::{self, Control, PopulateOptions, ThreadLimit};
use crate::reconcile::backlog::Backlog;
use crate::reconcile::plan::Plan;
use crate::sync::thread::JoinHandle;
use crate::sys::eventfd::EventFd;
use crate::sys::thread;
use crate::timeline;

/// Maximum size of an entry that a job maps, unless a page of its memory is larger: a call that pauses the job waits for
/// one entry for each thread.
const ENTRY_BYTES: u64 = 128 << 20;

/// What a job is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// There was none.
    #[default]
    None,
    /// It works, or waits for another call to end.
    Running,
    /// It has mapped everything.
    Done,
    /// It could not map everything.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes that it has mapped and has to map.
    pub wanted_bytes: u64,
    /// Bytes of these that were found present or faulted in.
    pub present_bytes: u64,
    /// Bytes of these that it has mapped.
    pub mapped_bytes: u64,
    /// The number of threads that work for it.
    pub threads: u64,
    /// Nanoseconds since it began, or from its beginning to its end.
    pub elapsed_ns: u64,
    /// An estimate of the nanoseconds that are left; `None`: not known yet.
    pub left_ns: Option<u64>,
}

/// The part of a job that the lock protects.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub phase: Phase,
    /// Why it failed.
    pub error: Option<Error>,
    pub thread: Option<JoinHandle<()>>,
    /// Tells it from those before it: a thread that has not noticed the end of its job must not work for the next one.
    number: u64,
    /// What it has mapped, less what was unmapped since.
    pub mapped: Backlog,
    /// Whether a call has waited for it.
    awaited: bool,
    /// Whether it works with fewer threads than a commit would.
    leaves_cpu: bool,
}

/// The part of a job that any thread reads at any time.
#[derive(Debug)]
pub(super) struct Shown {
    /// Readable once a job has ended; opened when somebody asks for it.
    ended: OnceLock<EventFd>,
    pub control: Control,
    phase: AtomicU64,
    wanted: AtomicU64,
    mapped: AtomicU64,
    threads: AtomicU64,
    /// The beginning and the end of the job, in nanoseconds since `epoch`.
    begun: AtomicU64,
    over: AtomicU64,
    epoch: Instant,
}

impl Shown {
    pub fn new() -> Self {
        let [phase, wanted, mapped, threads, begun, over] = Default::default();
        let (ended, control) = Default::default();
        Self { ended, control, phase, wanted, mapped, threads, begun, over, epoch: Instant::now() }
    }

    fn now(&self) -> u64 {
        counters::nanoseconds(self.epoch.elapsed())
    }

    fn show(&self, phase: Phase) {
        self.phase.store(phase as u64, Ordering::Release);
    }

    fn progress(&self) -> Progress {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let phase = match self.phase.load(Ordering::Acquire) {
            phase if phase == Phase::Running as u64 => Phase::Running,
            phase if phase == Phase::Done as u64 => Phase::Done,
            phase if phase == Phase::Failed as u64 => Phase::Failed,
            phase if phase == Phase::Cancelled as u64 => Phase::Cancelled,
            _ => return Progress::default(),
        };
        let mapped_bytes = read(&self.mapped);
        let wanted_bytes = read(&self.wanted).max(mapped_bytes);
        let present_bytes = self.control.present().max(mapped_bytes).min(wanted_bytes);
        let running = phase == Phase::Running;
        let end = if running { self.now() } else { read(&self.over) };
        let elapsed_ns = end.saturating_sub(read(&self.begun));
        // Faulting in and mapping each are one half of the work: which of them takes longer depends on the memory.
        let (done, all) =
            (u128::from(present_bytes) + u128::from(mapped_bytes), 2 * u128::from(wanted_bytes));
        let left_ns = match done {
            _ if !running => Some(0),
            0 => None,
            done => u64::try_from(u128::from(elapsed_ns) * (all - done) / done).ok(),
        };
        let threads = if running { read(&self.threads) } else { 0 };
        Progress { phase, wanted_bytes, present_bytes, mapped_bytes, threads, elapsed_ns, left_ns }
    }
}

impl State {
    /// Whether this job has not ended.
    fn has_job(&self, number: u64) -> bool {
        self.job.phase == Phase::Running && self.job.number == number
    }

    /// Whether the job need not wait for a transaction or another call.
    fn may_job_work(&self) -> bool {
        self.owner.is_none() && self.waiting == 0 && self.running.is_none()
    }
}

impl Engine {
    /// How far the job is that maps in the background. Never waits.
    pub fn progress(&self) -> Progress {
        self.job.progress()
    }

    /// A descriptor that is readable from the end of a job until it is read or the next job begins.
    pub fn completion_fd(&self) -> Result<BorrowedFd<'_>> {
        let state = self.state();
        if let Some(event) = self.job.ended.get() {
            return Ok(event.fd());
        }
        let event = EventFd::new().map_err(|errno| Error::kernel(Op::Open, errno))?;
        if !matches!(state.job.phase, Phase::None | Phase::Running) {
            event.signal();
        }
        Ok(self.job.ended.get_or_init(|| event).fd())
    }

    /// Leaves `later` to the job, which is started unless it runs.
    pub(super) fn leave_to_job(self: &Arc<Self>, mut state: Locked<'_>, later: &[IovaRange]) {
        let running = state.job.phase == Phase::Running;
        later.iter().for_each(|range| state.backlog.add(*range));
        if running {
            self.show_job(&state);
            return;
        }
        let before = state.job.thread.take();
        let number = state.job.number + 1;
        self.job.ended.get().into_iter().for_each(EventFd::reset);
        state.job = Job { phase: Phase::Running, number, ..Job::default() };
        self.job.begun.store(self.job.now(), Ordering::Relaxed);
        self.job.threads.store(0, Ordering::Relaxed);
        self.job.control.resume(0);
        self.show_job(&state);
        self.job.show(Phase::Running);
        if state.backlog.is_empty() {
            self.end_job(&mut state, Phase::Done, None);
            state.job.thread = before;
            return;
        }
        let engine = Arc::clone(self);
        // The new thread joins the one before it. If it cannot be started, whoever waits for this job does.
        let before = Arc::new(Mutex::new(before));
        let take = |before: &Mutex<Option<_>>| before.lock().unwrap_or_else(PoisonError::into_inner).take();
        let of_thread = Arc::clone(&before);
        let started = thread::spawn("vfio-fast-job", self.cpu_set.as_ref(), move || {
            // It has ended its job, and nothing but its end is left of it.
            take(&of_thread).map(JoinHandle::join);
            Log::hold_own();
            // The panic itself has been reported where panics are; nobody joins this thread for its result.
            let _ = catch_unwind(AssertUnwindSafe(|| engine.work_for_job(number)));
        });
        match started {
            Ok(thread) => state.job.thread = Some(thread),
            Err(errno) => {
                // A sandbox forbids threads: the calling thread does the work, and gives way as the job's would.
                self.log.write(
                    Level::Info,
                    format_args!("No thread for the background ({errno}): mapped at once"),
                );
                state.job.thread = take(&before);
                drop(state);
                self.work_for_job(number);
            }
        }
    }

    /// Works for a job until it has ended.
    fn work_for_job(&self, number: u64) {
        let poison = || {
            let mut state = self.state();
            self.set_poison(&mut state, "a panic".to_owned());
            if state.has_job(number) {
                let error = state.poisoned().err();
                self.end_job(&mut state, Phase::Failed, error);
            }
        };
        let work = || {
            loop {
                let mut state = self.state();
                while state.has_job(number) && !state.may_job_work() {
                    state.sleep(None);
                }
                if !state.has_job(number) {
                    return;
                }
                self.advance_job(&mut state);
            }
        };
        thread::on_panic(poison, work);
    }

    /// Works until the job is paused or has ended.
    fn advance_job(&self, state: &mut Locked<'_>) {
        if let Err(poisoned) = state.poisoned() {
            return self.end_job(state, Phase::Failed, Some(poisoned));
        }
        if state.backlog.is_empty() {
            return self.end_job(state, Phase::Done, None);
        }
        self.job.control.resume(self.job.mapped.load(Ordering::Relaxed));
        let operation = timeline::operation("map in the background");
        let worked = self.work_off(state);
        drop(operation);
        self.record_state(state);
        self.show_job(state);
        match worked {
            // What is not mapped and was tried was refused, or is not wanted any more.
            Ok(()) if !self.job.control.is_paused() => state.backlog.clear(),
            Ok(()) => {}
            Err(error) => {
                self.log.write(Level::Error, format_args!("{error}"));
                self.counters.failed_commits.add(1);
                if state.contradicted {
                    self.set_poison(state, error.to_string());
                }
                self.end_job(state, Phase::Failed, Some(error));
            }
        }
    }

    /// Plans what is left, and executes that until it is paused.
    fn work_off(&self, state: &mut Locked<'_>) -> Result<()> {
        let mut scope: Vec<IovaRange> = state.backlog.iter().collect();
        let mut plan = self.plan_or_ask_limits(state, &mut scope)?;
        let room = state.limits.entries.map(|entries| entries.saturating_sub(state.table.len()));
        let smaller = cut_all(plan.maps.clone(), ENTRY_BYTES);
        if room.is_none_or(|room| smaller.len() as u64 <= room) {
            plan.maps = smaller;
        }
        let threads = self.threads_of_job(state, &plan);
        self.job.threads.store(threads as u64, Ordering::Relaxed);
        let options = PopulateOptions {
            threads,
            method: self.method(&plan),
            cpus: self.cpu_set.as_ref(),
            huge_pages: self.huge_pages,
            chunk: if state.job.leaves_cpu { populate::SHORT_CHUNK_BYTES } else { populate::CHUNK_BYTES },
            control: Some(&self.job.control),
        };
        let executed = self.carry_out(state, &plan, options)?;
        self.record_refusals(&executed);
        state.settle(&scope, &[]);
        state.forget_dirty(&scope);
        Ok(())
    }

    fn threads_of_job(&self, state: &mut State, plan: &Plan) -> usize {
        let all = self.threads_for(plan);
        let threads = if all == 1 || state.job.awaited { all } else { ThreadLimit::beside_others(all) };
        state.job.leaves_cpu = threads < all;
        threads
    }

    /// Lets the job use as many threads as a commit does, because a call needs what is left to it.
    pub(super) fn hurry_job(&self, state: &mut State) {
        state.job.awaited = true;
        if std::mem::take(&mut state.job.leaves_cpu) {
            // It plans anew, with more threads.
            self.job.control.pause();
        }
    }

    pub(super) fn end_job(&self, state: &mut State, phase: Phase, error: Option<Error>) {
        state.job.phase = phase;
        state.job.error = error;
        self.job.over.store(self.job.now(), Ordering::Relaxed);
        self.job.show(phase);
        self.job.ended.get().into_iter().for_each(EventFd::signal);
        self.changed.notify_all();
    }

    /// Shows how much the job has to do and has done.
    pub(super) fn show_job(&self, state: &State) {
        if state.job.phase == Phase::Running {
            let mapped = state.job.mapped.bytes();
            self.job.mapped.store(mapped, Ordering::Relaxed);
            self.job.wanted.store(mapped.saturating_add(state.backlog.bytes()), Ordering::Relaxed);
        }
    }

    /// Shows that the job has mapped more.
    pub(super) fn show_mapped(&self, bytes: u64) {
        self.job.mapped.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits for the end of a thread that has no job any more, also if another call waits for it already.
    pub(super) fn join_job<'a>(&'a self, mut state: Locked<'a>) {
        while state.job.phase != Phase::Running {
            if let Some(thread) = state.job.thread.take() {
                state.joining += 1;
                drop(state);
                // Its panics are caught.
                let _ = thread.join();
                state = self.state();
                state.joining -= 1;
                self.changed.notify_all();
                return;
            }
            if state.joining == 0 {
                return;
            }
            state.sleep(None);
        }
    }
}
