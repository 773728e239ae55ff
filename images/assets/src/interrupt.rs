//! Cleans up before SIGINT, SIGTERM or SIGHUP ends a tool: stops child processes, removes partial cache entries,
//! restores settings of the host.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Time that a child has to end after SIGTERM before it gets SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

type Action = Box<dyn FnOnce() + Send>;

/// The registered actions, oldest first. The signal handler never releases the lock. After a signal, threads that
/// register or revoke an action block until the process ends, so no new work starts.
static ACTIONS: Mutex<Vec<(u64, Action)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An action that runs if a signal ends the process before this guard is dropped.
#[derive(Debug)]
#[must_use = "dropping it revokes the action"]
pub struct Cleanup(u64);

impl Drop for Cleanup {
    fn drop(&mut self) {
        actions().retain(|(id, _)| *id != self.0);
    }
}

/// Installs the handler: a signal runs the registered actions, newest first, and ends the process with exit code 128
/// plus the signal's number.
pub fn handle_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("Cannot handle signals")?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        let mut actions = actions();
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("\ninterrupted, cleaning up");
        while let Some((_, action)) = actions.pop() {
            action();
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Whether a signal was received.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub fn on_interrupt(action: impl FnOnce() + Send + 'static) -> Cleanup {
    register(&mut actions(), action)
}

/// Starts a child in its own process group. A signal ends the whole group.
pub fn spawn(command: &mut Command) -> io::Result<(Child, Cleanup)> {
    spawn_with(command, |group| {
        let _ = kill_process_group(group, Signal::TERM);
        if !wait_for(group, Some(PATIENCE)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    })
}

/// Starts a child that must not be interrupted: after a signal, the process waits for the child to end.
pub fn spawn_to_its_end(command: &mut Command) -> io::Result<(Child, Cleanup)> {
    let name = command.get_program().to_string_lossy().into_owned();
    spawn_with(command, move |group| {
        eprintln!("waiting for {name}, which must not be interrupted");
        wait_for(group, None);
    })
}

fn spawn_with(
    command: &mut Command,
    action: impl FnOnce(Pid) + Send + 'static,
) -> io::Result<(Child, Cleanup)> {
    // Hold the lock from before the child exists until its action is registered, so that no signal is handled in
    // between.
    let mut actions = actions();
    let child = command.process_group(0).spawn()?;
    let group = group_of(child.id());
    let cleanup = register(&mut actions, move || action(group));
    Ok((child, cleanup))
}

/// Waits until no process of the group runs. Returns whether the group ended in time.
fn wait_for(group: Pid, patience: Option<Duration>) -> bool {
    let start = Instant::now();
    while test_kill_process_group(group).is_ok() {
        if patience.is_some_and(|patience| start.elapsed() > patience) {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

fn group_of(id: u32) -> Pid {
    i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process has a positive number")
}

fn register(actions: &mut Vec<(u64, Action)>, action: impl FnOnce() + Send + 'static) -> Cleanup {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    actions.push((id, Box::new(action)));
    Cleanup(id)
}

fn actions() -> MutexGuard<'static, Vec<(u64, Action)>> {
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}
