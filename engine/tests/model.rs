//! Random transactions compared with a naive oracle: after each commit the kernel holds exactly what is wanted,
//! entries follow the grid, and nothing that stayed the same was unmapped.

use common::{Space, assert_table, assert_untouched, base, drive, engine_with, keeping};
use common::{rules, threads, transactions};
use proptest::prelude::*;
use vfio_fast_testing as common;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_holds_what_is_wanted(
        transactions in transactions(),
        base in base(),
        single in any::<bool>(),
        rules in rules(),
        threads in threads(),
    ) {
        let (engine, sim) = engine_with(threads, keeping(rules));
        let mut space = Space::new(base);
        for steps in transactions {
            let (before, kernel, calls) = (space.clone(), sim.mappings(), sim.calls().len());
            if !single {
                engine.begin().unwrap();
            }
            for step in steps {
                let wanted_before = space.clone();
                let applies = space.apply(step);
                let answer = drive(&engine, &space, step);
                prop_assert_eq!(answer.is_ok(), applies, "{:?} answered {:?}", step, answer);
                if let (common::Step::Unmap { start, units }, Ok(bytes)) = (step, answer) {
                    prop_assert_eq!(bytes, wanted_before.wanted_units(start, units) * common::UNIT);
                }
                if single {
                    space.assert_mapped(&sim.mappings());
                }
            }
            if !single {
                prop_assert_eq!(sim.calls().len(), calls, "a kernel call before the commit");
                engine.commit().unwrap();
                assert_untouched(&before, &space, &kernel, &sim.calls()[calls..]);
            }
            space.assert_mapped(&sim.mappings());
            space.assert_shape(&sim.mappings());
            assert_table(&engine, &sim);
        }
        engine.close().unwrap();
        prop_assert!(sim.mappings().is_empty(), "close left something mapped");
    }

    #[test]
    fn an_aborted_transaction_never_was(
        transactions in transactions(),
        base in base(),
        rules in rules(),
        threads in threads(),
    ) {
        let (engine, sim) = engine_with(threads, keeping(rules));
        let mut space = Space::new(base);
        for (number, steps) in transactions.into_iter().enumerate() {
            let (before, regions, calls) = (space.clone(), engine.regions(), sim.calls().len());
            engine.begin().unwrap();
            for step in steps {
                space.apply(step);
                let _ = drive(&engine, &space, step);
            }
            if number % 2 == 0 {
                engine.commit().unwrap();
            } else {
                engine.abort().unwrap();
                prop_assert_eq!(engine.regions(), regions);
                prop_assert_eq!(sim.calls().len(), calls);
                space = before;
            }
            space.assert_mapped(&sim.mappings());
        }
    }
}
