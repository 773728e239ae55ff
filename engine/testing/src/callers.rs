//! Threads that map and unmap through one engine concurrently, each in its own range of units.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Piece, Space, Step, UNIT, UNITS, drive};
use vfio_fast_engine::Engine;
use vfio_fast_engine::region::{Kind, Perm};

const CALLERS: u64 = 4;
/// Units of each caller: enough for the engine to use several threads on them.
const SHARE: u64 = UNITS / CALLERS;

/// Runs the callers for `rounds` rounds, while another thread observes the engine. Returns what they leave mapped.
pub fn keep_to_their_own(engine: &Engine, rounds: u64) -> Space {
    let before = engine.stats();
    let at_work = AtomicUsize::new(CALLERS as usize);
    let (left, calls) = std::thread::scope(|scope| {
        let looker = scope.spawn(|| look_on(engine, &at_work));
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let at_work = &at_work;
                scope.spawn(move || {
                    let _done = Done(at_work);
                    work(engine, caller, rounds)
                })
            })
            .collect();
        let mut left = Space::new(0);
        let mut calls = 0;
        for (caller, thread) in callers.into_iter().enumerate() {
            let (own, made) = thread.join().unwrap();
            let share = caller * SHARE as usize..(caller + 1) * SHARE as usize;
            left.cells[share.clone()].copy_from_slice(&own.cells[share]);
            calls += made;
        }
        assert!(looker.join().unwrap() > 0);
        (left, calls)
    });
    let stats = engine.stats();
    let mapped = left.wanted_units(0, UNITS) * UNIT;
    assert_eq!(stats.commits - before.commits, calls, "each call is a commit");
    assert_eq!((stats.failed_commits, stats.mapped_bytes), (before.failed_commits, mapped));
    assert_eq!(stats.map_bytes - stats.unmap_bytes, mapped);
    left
}

/// Counts a caller down when it ends, even by a panic.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One caller. Returns what it leaves mapped, and the number of its calls.
fn work(engine: &Engine, caller: u64, rounds: u64) -> (Space, u64) {
    let mut space = Space::new(0);
    let mut calls = 0;
    let mut act = |step: Step| {
        let wanted = match step {
            Step::Map(_) => 0,
            Step::Unmap { start, units } => space.wanted_units(start, units) * UNIT,
        };
        let bytes = drive(engine, &space, step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
        assert!(space.apply(step), "{step:?}");
        assert_eq!(bytes, wanted, "{step:?}");
        let share = space.range(caller * SHARE, SHARE);
        let own = engine.entries().into_iter().filter(|entry| entry.range.overlaps(share));
        let mapped: u64 = own.map(|entry| entry.range.length()).sum();
        assert_eq!(mapped, space.wanted_units(0, UNITS) * UNIT, "caller {caller} after {step:?}");
        calls += 1;
    };
    let first = caller * SHARE;
    for round in 0..rounds {
        let (object, middle) = (1 + (caller + round) % 3, 1 + round % (SHARE / 2));
        let piece = |start, units, object, perm, exact| {
            Step::Map(Piece { start, units, object, offset: start, perm, kind: Kind::Ram, join: true, exact })
        };
        act(piece(first, SHARE, object, Perm::ReadWrite, false));
        act(Step::Unmap { start: first + middle, units: SHARE / 4 });
        act(piece(first + middle, SHARE / 4, 1 + object % 3, Perm::Read, true));
        act(Step::Unmap { start: first, units: SHARE });
    }
    let (start, units) = (first, SHARE / 2);
    let (object, perm, kind) = (1, Perm::ReadWrite, Kind::Ram);
    act(Step::Map(Piece { start, units, object, offset: start, perm, kind, join: true, exact: false }));
    (space, calls)
}

/// Checks that another thread sees the state between two calls, never an intermediate one. Returns the number of
/// checks.
fn look_on(engine: &Engine, at_work: &AtomicUsize) -> u64 {
    let mut looks = 0;
    while looks == 0 || at_work.load(Ordering::Relaxed) > 0 {
        let entries = engine.entries();
        for pair in entries.windows(2) {
            assert!(pair[0].range.last() < pair[1].range.start(), "{pair:?}");
        }
        let stats = engine.stats();
        assert_eq!(stats.failed_commits, 0);
        assert!(stats.map_bytes >= stats.unmap_bytes);
        assert!(!engine.info().poisoned);
        looks += 1;
    }
    looks
}
