//! Every single failing call, and pairs of them: the table stays true to the kernel, a failed commit leaves what it says it
//! leaves, the first errno is kept, and what cannot be taken back poisons.

mod common;

use common::{Space, Step, assert_table, base, drive, engine, transactions};
use proptest::prelude::*;
use vfio_fast_engine::Errno;
use vfio_fast_engine::backend::sim::{Call, Sim, SimConfig};
use vfio_fast_engine::error::{Op, Why};
use vfio_fast_engine::region::Kind;

/// Not an errno the model answers by itself.
const INJECTED: Errno = Errno(libc::EREMOTEIO);
const SECOND: Errno = Errno(libc::ENOLINK);

/// Device memory is refused rather than failed; these tests are about RAM.
fn ram_only(transactions: Vec<Vec<Step>>) -> Vec<Vec<Step>> {
    let ram = |step| match step {
        Step::Map(piece) => Step::Map(common::Piece { kind: Kind::Ram, ..piece }),
        unmap @ Step::Unmap { .. } => unmap,
    };
    transactions.into_iter().map(|steps| steps.into_iter().map(ram).collect()).collect()
}

/// What a failed commit leaves: what was wanted before, less everything the transaction unmapped.
fn after_failure(before: &Space, applied: &[Step]) -> Space {
    let mut space = before.clone();
    for step in applied {
        if matches!(step, Step::Unmap { .. }) {
            space.apply(*step);
        }
    }
    space
}

/// Runs the transactions up to the first commit that fails; answers how many calls were made until then.
fn run_until_failure(transactions: &[Vec<Step>], base: u64, failures: &[(u64, Errno)]) -> (u64, bool) {
    let (engine, sim) = engine(SimConfig { failures: failures.to_vec(), ..SimConfig::default() });
    let mut space = Space::new(base);
    for steps in transactions {
        let before = space.clone();
        let mut applied = Vec::new();
        engine.begin().unwrap();
        for step in steps {
            if space.apply(*step) {
                applied.push(*step);
            }
            let _ = drive(&engine, &space, *step);
        }
        let Err(error) = engine.commit() else {
            space.assert_mapped(&sim.mappings());
            continue;
        };
        assert_eq!(error.errno, failures[0].1, "not the first failure: {error}");
        assert!(matches!(error.op, Op::Map | Op::Unmap));
        assert_table(&engine, &sim);
        sim.reconfigure(|config| config.failures.clear());
        if engine.info().poisoned {
            assert!(failures.len() > 1, "one failed call must not poison");
            assert_poisoned(&engine);
        } else {
            after_failure(&before, &applied).assert_mapped(&sim.mappings());
            assert_usable(&engine, &sim, base);
        }
        let poisoned = engine.info().poisoned;
        engine.close().unwrap();
        assert!(sim.mappings().is_empty(), "close left something mapped");
        return (sim.calls().len() as u64, poisoned);
    }
    (sim.calls().len() as u64, false)
}

fn assert_poisoned(engine: &vfio_fast_engine::Engine) {
    for answer in [engine.begin(), engine.unmap(common::Space::new(0).range(0, 1)).map(drop)] {
        let error = answer.expect_err("a poisoned engine must refuse");
        assert_eq!(error.errno, Errno::ENOTRECOVERABLE);
        assert!(matches!(error.why, Why::Poisoned { .. }));
    }
}

/// A failed commit must not leave a transaction open or the wanted set half-changed.
fn assert_usable(engine: &vfio_fast_engine::Engine, sim: &Sim, base: u64) {
    let all = Space::new(base).range(0, common::UNITS);
    engine.unmap(all).expect("still usable");
    assert!(sim.mappings().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_single_failure_is_taken_back(transactions in transactions(), base in base()) {
        let transactions = ram_only(transactions);
        let (calls, _) = run_until_failure(&transactions, base, &[]);
        for nth in 1..=calls {
            run_until_failure(&transactions, base, &[(nth, INJECTED)]);
        }
    }

    #[test]
    fn a_failure_while_taking_back_poisons_or_is_survived(transactions in transactions(), base in base(), gap in 1u64..4) {
        let transactions = ram_only(transactions);
        let (calls, _) = run_until_failure(&transactions, base, &[]);
        for nth in 1..=calls {
            run_until_failure(&transactions, base, &[(nth, INJECTED), (nth + gap, SECOND)]);
        }
    }
}

#[test]
fn undo_that_fails_does_poison() {
    let piece = |start, units| common::Piece {
        start,
        units,
        object: 1,
        offset: start,
        perm: vfio_fast_engine::region::Perm::ReadWrite,
        kind: Kind::Ram,
        exact: false,
    };
    // Call 1 maps unit 0, call 2 (of unit 8, another entry) fails, call 3 (taking unit 0 back) fails too.
    let steps = vec![vec![Step::Map(piece(0, 1)), Step::Map(piece(8, 1))]];
    let (_, poisoned) = run_until_failure(&steps, 0, &[(2, INJECTED), (3, SECOND)]);
    assert!(poisoned);
    let (_, poisoned) = run_until_failure(&steps, 0, &[(2, INJECTED)]);
    assert!(!poisoned);
}

#[test]
fn a_stolen_mapping_is_found_out() {
    let (engine, sim) = engine(SimConfig::default());
    let space = Space::new(0);
    let piece = common::Piece {
        start: 0,
        units: 2,
        object: 1,
        offset: 0,
        perm: vfio_fast_engine::region::Perm::ReadWrite,
        kind: Kind::Ram,
        exact: false,
    };
    engine.map_region(space.region(piece)).unwrap();
    assert!(sim.steal(0));
    let error = engine.unmap(space.range(0, 2)).expect_err("the kernel has nothing to unmap");
    assert_eq!(error.why, Why::ByteCount { expected: 2 * common::UNIT, got: 0 });
    assert_poisoned(&engine);
    assert!(sim.calls().iter().any(|call| matches!(call, Call::Unmap(_))));
}
