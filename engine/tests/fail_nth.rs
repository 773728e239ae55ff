//! Every single failing call, and pairs of them: the table stays true to the kernel, a failed commit leaves the
//! documented state, the first errno is returned, and what a rollback could not do is told and done later.

use vfio_fast_testing as common;

use common::memory::RealMemory;
use common::{Difference, Space, Step, THREADS, assert_table, base, drive, engine, engine_with, keeping};
use common::{rules, threads, transactions};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op, Unfinished};
use vfio_fast_engine::region::{Kind, Perm};
use vfio_fast_engine::{Engine, Errno, Error};

/// An errno that the model itself does not return.
const INJECTED: Errno = Errno(libc::EREMOTEIO);
const SECOND: Errno = Errno(libc::ENOLINK);

fn piece(start: u64, units: u64) -> common::Piece {
    let (object, offset, perm) = (1, start, Perm::ReadWrite);
    common::Piece { start, units, object, offset, perm, kind: Kind::Ram, join: true, exact: false }
}

/// Runs the transactions up to the first commit that fails; returns the number of calls made until then.
fn run_until_failure(
    threads: usize,
    rules: Rules,
    transactions: &[Vec<Step>],
    base: u64,
    failures: &[(u64, Errno)],
) -> (u64, Difference) {
    run_with(threads, SimConfig { failures: failures.to_vec(), ..keeping(rules) }, transactions, base)
}

/// The same; also returns what the rollback could not do.
fn run_with(threads: usize, config: SimConfig, transactions: &[Vec<Step>], base: u64) -> (u64, Difference) {
    let failures = config.failures.clone();
    let parallel = config.rules == Rules::Iommufd;
    let (engine, sim) = engine_with(threads, config);
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
        let errnos =
            failures.iter().map(|(_, errno)| *errno).chain(failures.is_empty().then_some(Errno::EFAULT));
        // Of calls that fail concurrently, either may return first.
        assert!(matches!(error.op, Op::Map | Op::Unmap));
        assert_table(&engine, &sim);
        sim.reconfigure(|config| config.failures.clear());
        assert!(!engine.info().poisoned, "an error of the kernel must not poison");
        let wanted = before.after_failure(&applied);
        let left = assert_difference(&engine, &sim, &wanted, &error, &failures);
        // That wanted memory is not mapped any more is more important than what failed first.
        let possible: Vec<Errno> =
            errnos.take(if parallel || !left.missing.is_empty() { 2 } else { 1 }).collect();
        assert!(possible.contains(&error.errno), "not the first failure: {error}");
        let calls = sim.calls().len() as u64;
        assert_tried_again(&engine, &sim, wanted, &left);
        assert_usable(&engine, &sim, base);
        engine.close().unwrap();
        assert!(sim.mappings().is_empty(), "close left something mapped");
        return (calls, left);
    }
    (sim.calls().len() as u64, Difference::default())
}

/// Fails unless the kernel holds what is wanted, except for the range of one call, which failed last: one entry that
/// could not be unmapped, or one that could not be mapped again. The error and the statistics have to say so.
fn assert_difference(
    engine: &Engine,
    sim: &Sim,
    wanted: &Space,
    error: &Error,
    failures: &[(u64, Errno)],
) -> Difference {
    let calls = sim.calls();
    let failed = failures.iter().rev().find_map(|(nth, errno)| Some((calls.get(*nth as usize - 1)?, *errno)));
    let difference = wanted.difference(&sim.mappings());
    let info = engine.info();
    let units = |range: IovaRange| -> Vec<u64> {
        let first = range.start().wrapping_sub(wanted.base) / common::UNIT;
        (first..first + range.length() / common::UNIT).collect()
    };
    let unfinished = error.unfinished.as_deref().cloned().unwrap_or_default();
    match (difference.left.is_empty(), difference.missing.is_empty()) {
        (true, true) => {
            assert_eq!(error.unfinished, None);
            assert_eq!((info.leftover_entries, info.missing_bytes), (0, 0));
        }
        (false, true) => {
            let Some((Call::Unmap(range), errno)) = failed else {
                panic!("{failed:?} leaves nothing mapped")
            };
            assert_eq!(
                unfinished,
                Unfinished { leftover: vec![*range], refused: Some(errno), ..Unfinished::default() }
            );
            assert!(sim.mappings().iter().any(|mapping| mapping.range == *range));
            assert!(difference.left.iter().all(|unit| units(*range).contains(unit)));
            assert_eq!((info.leftover_entries, info.missing_bytes), (1, 0));
        }
        (true, false) => {
            let Some((Call::Map(mapping), errno)) = failed else {
                panic!("{failed:?} leaves nothing unmapped")
            };
            let range = mapping.range;
            assert_eq!((&unfinished.missing, &unfinished.leftover), (&vec![range], &vec![]));
            assert_eq!((error.op, error.range), (Op::Map, Some(range)));
            // The same range can have failed first.
            assert!(error.errno == errno || error.errno == failures[0].1, "{error}");
            assert_eq!(difference.missing, units(range));
            assert_eq!((info.leftover_entries, info.missing_bytes), (0, range.length()));
        }
        (false, false) => panic!("one call cannot leave both: {difference:?}"),
    }
    difference
}

/// The next call that touches what was left does the rest.
fn assert_tried_again(engine: &Engine, sim: &Sim, mut wanted: Space, left: &Difference) {
    let Some(&unit) = left.left.first().or(left.missing.first()) else { return };
    let touch = Step::Unmap { start: unit, units: 1 };
    assert!(wanted.apply(touch));
    drive(engine, &wanted, touch).expect("nothing fails any more");
    wanted.assert_mapped(&sim.mappings());
    assert_table(engine, sim);
    let info = engine.info();
    assert_eq!((info.leftover_entries, info.missing_bytes), (0, 0));
}

fn assert_poisoned(engine: &Engine) {
    for answer in [engine.begin(), engine.unmap(common::Space::new(0).range(0, 1)).map(drop)] {
        let error = answer.expect_err("a poisoned engine must refuse");
        assert_eq!(error.errno, Errno::ENOTRECOVERABLE);
        assert!(matches!(error.kind, ErrorKind::Poisoned { .. }));
    }
}

/// Fails if a failed commit left a transaction open or the wanted set half changed.
fn assert_usable(engine: &Engine, sim: &Sim, base: u64) {
    let all = Space::new(base).range(0, common::UNITS);
    engine.unmap(all).expect("still usable");
    assert!(sim.mappings().is_empty());
}

/// Several threads fault memory in while entries are mapped; every call can fail, and memory can be missing anywhere.
#[test]
fn failures_meanwhile_are_taken_back() {
    let memory = RealMemory::new();
    let strategy = (threads(), rules(), transactions(), base(), 0..common::UNITS);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() });
    let swept = runner.run(&strategy, |(threads, rules, transactions, base, hole)| {
        let transactions = common::ram_only(transactions);
        for populate in [PopulatePolicy::Upfront, PopulatePolicy::Overlapped] {
            let config = SimConfig { populate, ..keeping(rules) };
            memory.cool();
            let (calls, _) = run_with(threads, config.clone(), &transactions, base);
            for nth in 1..=calls {
                memory.cool();
                let failures = vec![(nth, INJECTED)];
                run_with(threads, SimConfig { failures, ..config.clone() }, &transactions, base);
            }
            for nth in (1..=calls).step_by(3) {
                let failures = vec![(nth, INJECTED), (nth + 1, SECOND)];
                run_with(threads, SimConfig { failures, ..config.clone() }, &transactions, base);
            }
            memory.cool();
            memory.protect(1, hole, libc::PROT_NONE);
            let at = common::hva_of(1, hole);
            let unmappable = vec![(at, at + common::UNIT - 1)];
            run_with(threads, SimConfig { unmappable, ..config }, &transactions, base);
            memory.protect(1, hole, libc::PROT_READ | libc::PROT_WRITE);
        }
        assert_eq!(threads::left(), Vec::<String>::new());
        Ok(())
    });
    swept.unwrap();
    // The test only means something if several threads worked.
    for threads in THREADS {
        memory.cool();
        let (engine, _) =
            engine_with(threads, SimConfig { populate: PopulatePolicy::Overlapped, ..SimConfig::default() });
        engine.map_region(Space::new(0).region(piece(0, common::UNITS))).unwrap();
        let stats = engine.stats();
        // Two entries may share a huge page, and either may be faulted in first.
        assert_eq!(stats.populate_bytes + stats.populate_present, common::UNITS * common::UNIT);
        assert!(stats.populate_bytes >= stats.populate_present, "{stats:?}");
        // No more threads than missing huge pages.
        let pages = common::UNITS * common::UNIT / (2 << 20);
        assert_eq!(stats.threads_peak, stats.map_calls.min(pages).min(threads as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_single_failure_is_taken_back(
        transactions in transactions(),
        base in base(),
        rules in rules(),
        threads in threads(),
    ) {
        let transactions = common::ram_only(transactions);
        let (calls, _) = run_until_failure(threads, rules, &transactions, base, &[]);
        for nth in 1..=calls {
            run_until_failure(threads, rules, &transactions, base, &[(nth, INJECTED)]);
        }
    }

    #[test]
    fn what_cannot_be_taken_back_is_told_and_done_later(
        transactions in transactions(),
        base in base(),
        gap in 1u64..4,
        rules in rules(),
        threads in threads(),
    ) {
        let transactions = common::ram_only(transactions);
        let (calls, _) = run_until_failure(threads, rules, &transactions, base, &[]);
        for nth in 1..=calls {
            run_until_failure(threads, rules, &transactions, base, &[(nth, INJECTED), (nth + gap, SECOND)]);
        }
    }
}

#[test]
fn both_kinds_of_an_incomplete_rollback_happen() {
    // Call 1 maps unit 0, call 2 (for unit 8, another entry) fails, and call 3 (which rolls unit 0 back) fails too.
    let steps = vec![vec![Step::Map(piece(0, 1)), Step::Map(piece(8, 1))]];
    let (_, left) = run_until_failure(8, Rules::Type1, &steps, 0, &[(2, INJECTED), (3, SECOND)]);
    assert_eq!(left, Difference { left: vec![0], missing: vec![] });
    let (_, left) = run_until_failure(8, Rules::Type1, &steps, 0, &[(2, INJECTED)]);
    assert_eq!(left, Difference::default());
    // Call 1 maps units 8 to 15, call 2 unmaps them, call 3 does not map the rest again, and neither does call 4.
    let steps = vec![vec![Step::Map(piece(8, 8))], vec![Step::Unmap { start: 8, units: 4 }]];
    let (_, left) = run_until_failure(8, Rules::Type1, &steps, 0, &[(3, INJECTED), (4, SECOND)]);
    assert_eq!(left, Difference { left: vec![], missing: (12..16).collect() });
}

/// An unmap that the kernel refuses with EINVAL: it has a mapping there that the table does not have.
#[test]
fn an_answer_that_contradicts_the_table_poisons() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine(keeping(rules));
        let space = Space::new(0);
        engine.map_region(space.region(piece(8, 8))).unwrap();
        let next = sim.calls().len() as u64 + 1;
        sim.reconfigure(|config| config.failures = vec![(next, Errno::EINVAL)]);
        let error = engine.unmap(space.range(8, 4)).unwrap_err();
        assert_eq!((error.op, error.errno, error.unfinished), (Op::Unmap, Errno::EINVAL, None));
        assert_poisoned(&engine);
        let maps = sim.calls().iter().filter(|call| matches!(call, Call::Map(_))).count();
        assert_eq!(maps, 1, "nothing is mapped once the table is known to be wrong");
        engine.close().unwrap();
        assert!(sim.mappings().is_empty());
    }
}

#[test]
fn a_stolen_mapping_is_found_out() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine(keeping(rules));
        let space = Space::new(0);
        engine.map_region(space.region(piece(0, 2))).unwrap();
        assert!(sim.steal(0));
        let error = engine.unmap(space.range(0, 2)).expect_err("the kernel has nothing to unmap");
        assert_eq!(error.kind, ErrorKind::ByteCount { expected: 2 * common::UNIT, got: 0 });
        assert_poisoned(&engine);
        assert!(sim.calls().iter().any(|call| matches!(call, Call::Unmap(_))));
    }
}

/// A foreign mapping replaces an entry and is longer: an unmap of the table's entries cuts it.
#[test]
fn a_mapping_that_has_grown_is_found_out() {
    for (rules, kind, left) in [
        // type1 unmaps nothing.
        (Rules::Type1, ErrorKind::Kernel, [true, true]),
        // ENOENT, which a caller could mistake for success, and a call that unmapped the entry below.
        (Rules::Iommufd, ErrorKind::ByteCount { expected: 12 * common::UNIT, got: 0 }, [false, true]),
    ] {
        let (engine, sim) = engine(keeping(rules));
        let space = Space::new(0);
        engine.map_region(space.region(piece(8, 12))).unwrap();
        let [first, second] = [space.range(8, 8), space.range(16, 4)];
        assert_eq!(sim.mappings().iter().map(|mapping| mapping.range).collect::<Vec<_>>(), [first, second]);
        assert!(sim.steal(second.start()));
        let region = space.region(piece(16, 8));
        sim.ask_to_map(second.start(), 8 * common::UNIT, region.hva, region.perm).unwrap();
        let error = engine.unmap(space.range(8, 12)).expect_err("the kernel's mapping is longer");
        assert_eq!((error.op, error.kind), (Op::Unmap, kind), "{rules:?}");
        assert_poisoned(&engine);
        let starts: Vec<u64> = sim.mappings().iter().map(|mapping| mapping.range.start()).collect();
        assert_eq!([first, second].map(|range| starts.contains(&range.start())), left, "{rules:?}");
        engine.close().unwrap();
        assert!(sim.mappings().is_empty(), "close left something mapped");
    }
}

/// The same, found out only when the engine is closed: what is mapped is not known, so all of it is unmapped.
#[test]
fn a_close_that_is_contradicted_leaves_nothing() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine(keeping(rules));
        let space = Space::new(0);
        engine.map_region(space.region(piece(8, 12))).unwrap();
        let second = space.range(16, 4);
        assert!(sim.steal(second.start()));
        let region = space.region(piece(16, 8));
        sim.ask_to_map(second.start(), 8 * common::UNIT, region.hva, region.perm).unwrap();
        let error = engine.close().expect_err("the kernel's mapping is longer");
        assert_eq!(error.op, Op::Unmap, "{rules:?}");
        assert!(sim.mappings().is_empty(), "{rules:?}: close left something mapped");
    }
}

/// A mapping that is in use stays, and the unmap returns an error.
#[test]
fn a_busy_mapping_is_an_error() {
    let (engine, sim) = engine(keeping(Rules::Iommufd));
    let space = Space::new(0);
    engine.map_region(space.region(piece(8, 12))).unwrap();
    sim.reconfigure(|config| config.busy.push(space.iova(16)));
    let error = engine.unmap(space.range(8, 12)).expect_err("the second entry is in use");
    assert_eq!((error.op, error.errno), (Op::Unmap, Errno::EBUSY));
    assert!(!engine.info().poisoned);
    assert_eq!(sim.mappings().len(), 1, "what is not in use has gone");
    sim.reconfigure(|config| config.busy.clear());
    engine.close().unwrap();
    assert!(sim.mappings().is_empty());
}
