//! Random histories, handed over to a process that wants something else: it takes over what it wants as it is, changes
//! only the rest, and if any call fails, the first process can go on.

use common::{
    Space, assert_table, assert_untouched, base, drive, engine_on, engine_with, keeping, rules, threads,
};
use common::{Step, ram_only, transactions};
use proptest::prelude::*;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::backend::sim::Rules;
use vfio_fast_engine::region::Perm;
use vfio_fast_engine::{Engine, Errno, Error};
use vfio_fast_testing as common;

/// A process with these transactions behind it.
fn with_history(engine: &Engine, space: &mut Space, transactions: Vec<Vec<Step>>) {
    for steps in transactions {
        engine.begin().unwrap();
        for step in steps {
            space.apply(step);
            let _ = drive(engine, space, step);
        }
        engine.commit().unwrap();
    }
}

/// Lets a new process want what the old one has declared, and then what the steps change, and adopt. Where the old one has
/// memory, the new one has the same or none: no one can tell other memory at the address of an entry from the same.
fn adopt(new: &Engine, old: &Engine, space: &mut Space, changes: Vec<Step>) -> Result<(), Error> {
    let entries: Vec<(IovaRange, Perm)> =
        old.entries().iter().map(|entry| (entry.range, entry.perm)).collect();
    new.begin().unwrap();
    for region in old.regions() {
        new.map_region(region).unwrap();
    }
    let of_old = space.clone();
    let is_free = |step: &Step| match *step {
        Step::Map(piece) => of_old.wanted_units(piece.start, piece.units) == 0,
        Step::Unmap { .. } => true,
    };
    for step in changes.into_iter().filter(is_free) {
        space.apply(step);
        let _ = drive(new, space, step);
    }
    new.adopt(entries).map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_still_wanted_stays(
        history in transactions(),
        changes in transactions(),
        base in base(),
        rules in rules(),
        threads in threads(),
    ) {
        let (old, sim) = engine_with(threads, keeping(rules));
        let mut space = Space::new(base);
        with_history(&old, &mut space, history);
        old.suspend().unwrap();

        let (before, kernel, calls) = (space.clone(), sim.mappings(), sim.calls().len());
        let new = engine_on(&sim, threads);
        adopt(&new, &old, &mut space, changes.into_iter().flatten().collect()).unwrap();
        old.close().unwrap();
        assert_untouched(&before, &space, &kernel, &sim.calls()[calls..]);
        space.assert_mapped(&sim.mappings());
        space.assert_shape(&sim.mappings());
        assert_table(&new, &sim);
        prop_assert!(sim.without_address().is_empty());
        prop_assert_eq!(new.info().leftover_entries, 0);
        new.close().unwrap();
        prop_assert!(sim.mappings().is_empty());
    }

    #[test]
    fn after_any_failure_the_first_process_goes_on(
        history in transactions().prop_map(ram_only),
        changes in transactions().prop_map(ram_only),
        nth in 1..40u64,
        errno in prop::sample::select(&[Errno::ENOMEM, Errno::EFAULT, Errno::EBUSY][..]),
        base in base(),
        rules in rules(),
        threads in threads(),
    ) {
        let (old, sim) = engine_with(threads, keeping(rules));
        let mut space = Space::new(base);
        with_history(&old, &mut space, history);
        old.suspend().unwrap();

        let (mut wanted, kernel) = (space.clone(), sim.mappings());
        let failing = sim.calls().len() as u64 + nth;
        sim.reconfigure(|config| config.failures = vec![(failing, errno)]);
        let new = engine_on(&sim, threads);
        let adopted = adopt(&new, &old, &mut wanted, changes.into_iter().flatten().collect());
        if adopted.is_ok() {
            wanted.assert_mapped(&sim.mappings());
            return Ok(());
        }
        prop_assert!(new.entries().is_empty() && new.regions().is_empty());
        prop_assert!(!new.info().poisoned);
        new.close().unwrap();

        // Nothing new is mapped. Only what the new process did not want can be gone.
        let left = sim.mappings();
        let ranges = |mappings: &[Mapping]| mappings.iter().map(|mapping| mapping.range).collect::<Vec<_>>();
        let (before, after) = (ranges(&kernel), ranges(&left));
        prop_assert!(after.iter().all(|range| before.contains(range)), "{:?} of {:?}", after, before);
        if rules == Rules::Type1 {
            prop_assert_eq!(sim.without_address().len(), left.len());
        }
        if after.len() == before.len() {
            old.resume().unwrap();
            space.assert_mapped(&sim.mappings());
            assert_table(&old, &sim);
        } else if rules == Rules::Type1 {
            prop_assert_eq!(old.resume().unwrap_err().errno, Errno::ENOENT);
        }
    }
}
