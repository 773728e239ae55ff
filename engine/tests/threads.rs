//! Many threads at once. `cargo xtask test` runs this under ThreadSanitizer as well, with every other test that starts threads.

#![allow(unsafe_code, reason = "a data race is planted, for ThreadSanitizer to find")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use vfio_fast_testing as common;

use common::memory::RealMemory;
use common::{assert_table, callers, engine, keeping};
use vfio_fast_engine::backend::Populate;
use vfio_fast_engine::backend::sim::{Rules, SimConfig};

const ROUNDS: u64 = 12;

#[test]
fn callers_with_ranges_of_their_own_never_see_each_other() {
    let memory = RealMemory::new();
    for rules in [Rules::Type1, Rules::Iommufd] {
        for populate in [Populate::Never, Populate::First, Populate::Meanwhile] {
            memory.cool();
            let (engine, sim) = engine(SimConfig { populate, ..keeping(rules) });
            let left = callers::keep_to_their_own(&engine, ROUNDS);
            left.assert_mapped(&sim.mappings());
            assert_table(&engine, &sim);
            engine.close().unwrap();
            assert!(sim.mappings().is_empty());
        }
    }
}

/// What nothing orders.
struct Unguarded(UnsafeCell<u64>);

// SAFETY: it is not safe, which is the point.
unsafe impl Sync for Unguarded {}

#[test]
#[ignore = "a data race, which ThreadSanitizer has to report"]
fn a_planted_race_is_reported() {
    let sum = Unguarded(UnsafeCell::new(0));
    let (sum, there) = (&sum, AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Both are at work before either writes, and a relaxed operation orders nothing.
                there.fetch_add(1, Ordering::Relaxed);
                while there.load(Ordering::Relaxed) < 2 {
                    std::thread::yield_now();
                }
                // SAFETY: it is not safe: the other thread writes as well.
                unsafe { *sum.0.get() += 1 };
            });
        }
    });
}
