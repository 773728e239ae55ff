//! Limits of the kernel at every number up to what a transaction needs: locked memory, and entries of a container.

use super::common::memory::RealMemory;
use super::kernel::{self, Driver};
use super::killed::pinned;
use super::plan::{
    ENTRIES, MAPPED, PREPARED, PREPARED_ENTRIES, after, assert_left, prepare, transact, undone,
};
use super::run::Needs;
use vfio_fast_engine::{Config, Engine, Error, Result};

/// With as much locked memory as the transaction needs it succeeds. With less it says how much, and adds nothing.
pub fn of_locked_memory(driver: Driver) {
    for limit in PREPARED..=MAPPED + 1 {
        let needs = Needs { memlock_pages: Some(limit), ..Needs::default() };
        let transacted = transacted(driver, needs);
        let numbers = |error: &Error| error.needed_and_available().map(|(needed, left)| needed.cmp(&left));
        match transacted {
            Ok(()) => assert!(limit >= MAPPED, "{driver:?}: {limit} pages sufficed for {MAPPED}"),
            Err(error) => {
                assert!(limit < MAPPED, "{driver:?}, {limit} pages: {error}");
                assert!(
                    numbers(&error).is_some_and(|order| order.is_gt()),
                    "{driver:?}, {limit} pages: {error}"
                );
                assert!(error.to_string().contains("ulimit -l"), "{driver:?}, {limit} pages: {error}");
            }
        }
    }
}

/// The same with the number of entries.
pub fn of_entries() {
    for limit in PREPARED_ENTRIES..=ENTRIES + 1 {
        let needs = Needs { entries: Some(limit), ..Needs::default() };
        match transacted(Driver::Type1, needs) {
            Ok(()) => assert!(limit >= ENTRIES, "{limit} entries sufficed for {ENTRIES}"),
            Err(error) => {
                assert!(limit < ENTRIES, "{limit} entries: {error}");
                let numbers = error.needed_and_available();
                assert!(numbers.is_some_and(|(needed, left)| needed > left), "{limit} entries: {error}");
                assert!(error.to_string().contains("dma_entry_limit="), "{limit} entries: {error}");
            }
        }
    }
}

/// The result of the transaction.
fn transacted(driver: Driver, needs: Needs) -> Result<()> {
    let memory = RealMemory::new();
    memory.small_pages();
    let pinned_before = pinned();
    let mut result = None;
    kernel::owned_with(needs, driver, |backend, _| {
        // This thread makes all calls: it alone has no right to exceed the limit.
        let config = Config { huge_pages: false, threads: 1, ..Config::default() };
        let engine = Engine::new(backend, config).unwrap();
        prepare(&engine).unwrap_or_else(|error| panic!("{driver:?}, {needs:?}: {error}"));
        let transacted = transact(&engine);
        let expected = if transacted.is_ok() { after() } else { undone() };
        assert_left(&format!("{driver:?}, {needs:?}: {transacted:?}"), &engine, &expected);
        engine.close().unwrap();
        result = Some(transacted);
    });
    drop(memory);
    assert_eq!(pinned(), pinned_before, "{driver:?}, {needs:?}: pages stay pinned");
    result.expect("it was run")
}
