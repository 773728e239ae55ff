//! What the crate promises beyond what the engine's tests check: guards, borrowing, descriptors, errors.
#![allow(unsafe_code, reason = "maps memory on the model, which accesses none")]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::{ptr, thread};

use vfio_fast_dma::sim::{Container, Driver};
use vfio_fast_dma::{Config, Engine, Level, Operation, ProgressState, Region};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

fn open(container: &Container) -> Engine {
    Engine::sim(container, Config::new()).unwrap()
}

fn ram(iova: u64, length: u64) -> Region<'static> {
    Region::new(iova, ptr::without_provenance_mut((0x7f00_0000_0000 + (iova & 0xffff_ffff)) as usize), length)
}

fn map(engine: &Engine, region: &Region<'_>) -> Result<(), i32> {
    // SAFETY: the model accesses no memory.
    unsafe { engine.map(region) }.map_err(|error| error.errno())
}

/// A transaction that has added 1 MiB at 0.
macro_rules! begun {
    ($engine:expr) => {{
        let mut transaction = $engine.begin().unwrap();
        // SAFETY: the model accesses no memory.
        unsafe { transaction.map(&ram(0, MIB)) }.unwrap();
        transaction
    }};
}

#[test]
fn a_transaction_that_is_not_committed_leaves_nothing() {
    for driver in [Driver::Type1, Driver::Iommufd] {
        let container = Container::new(driver);
        let engine = open(&container);
        drop(begun!(engine));
        begun!(engine).abort();
        let panicked = thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _transaction = begun!(engine);
                    panic!("a test");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!((container.map_calls(), engine.info().in_transaction), (0, false));
        let outcome = begun!(engine).commit().unwrap();
        assert_eq!((outcome.map_calls, outcome.map_bytes), (1, MIB));
        assert_eq!(engine.mapped(), [0..=MIB - 1]);
    }
}

#[test]
fn a_failed_commit_ends_the_transaction_and_names_what_failed() {
    let container = Container::new(Driver::Type1).fail_call(1, EIO);
    let engine = open(&container);
    let error = begun!(engine).commit().unwrap_err();
    assert_eq!((error.errno(), error.operation(), error.iova()), (EIO, Operation::Map, Some(0..=MIB - 1)));
    assert_eq!((error.leftover(), error.missing()), (vec![], vec![]));
    assert_eq!(std::io::Error::from(error.clone()).to_string(), error.to_string());
    assert!(!engine.info().in_transaction && container.mappings().is_empty());
    begun!(engine).commit().unwrap();
}

#[test]
fn a_transaction_belongs_to_its_thread() {
    let engine = open(&Container::new(Driver::Type1));
    let transaction = begun!(engine);
    assert_eq!(engine.begin().unwrap_err().errno(), EBUSY);
    thread::scope(|scope| {
        let refused = scope.spawn(|| (map(&engine, &ram(MIB, MIB)), engine.unmap(0, MIB)));
        let (mapped, unmapped) = refused.join().unwrap();
        assert_eq!((mapped, unmapped.unwrap_err().errno()), (Err(EBUSY), EBUSY));
    });
    transaction.commit().unwrap();
    assert_eq!(map(&engine, &ram(MIB, MIB)), Ok(()));
}

#[test]
fn dropping_an_engine_unmaps_and_tells_what_it_could_not() {
    let container = Container::new(Driver::Type1);
    map(&open(&container), &ram(0, MIB)).unwrap();
    assert_eq!((container.mappings().len(), container.map_calls(), container.unmap_calls()), (0, 1, 1));

    let container = Container::new(Driver::Type1).fail_call(2, EIO);
    let texts = Arc::new(Mutex::new(Vec::new()));
    let log = {
        let texts = texts.clone();
        move |level, text: &str| texts.lock().unwrap().push((level, text.to_owned()))
    };
    let engine = Engine::sim(&container, Config::new().log(log)).unwrap();
    map(&engine, &ram(0, MIB)).unwrap();
    drop(engine);
    let texts = texts.lock().unwrap();
    assert!(
        texts.iter().any(|(level, text)| *level == Level::Error && text.contains("Unmapping")),
        "{texts:?}"
    );
}

#[test]
fn closing_returns_what_is_still_mapped() {
    let container = Container::new(Driver::Type1).fail_call(2, EIO);
    let engine = open(&container);
    map(&engine, &ram(0, MIB)).unwrap();
    let error = engine.close().unwrap_err();
    assert_eq!((error.errno(), error.leftover()), (EIO, vec![0..=MIB - 1]));
    assert_eq!(container.unmap_calls(), 1, "it is not tried twice");
}

#[test]
fn an_engine_that_is_dropped_ends_its_job() {
    let container = Container::new(Driver::Iommufd);
    let engine = open(&container);
    let mut transaction = engine.begin().unwrap();
    // So much that the job is not done when the engine is dropped.
    // SAFETY: the model accesses no memory.
    unsafe { transaction.map(&ram(0, 1 << 40)) }.unwrap();
    transaction.commit_in_background().unwrap();
    drop(engine);
    assert!(container.mappings().is_empty());

    let engine = open(&container);
    begun!(engine).commit_in_background().unwrap();
    assert_eq!(engine.wait(None).map_err(|error| error.errno()), Ok(true));
    assert_eq!(engine.progress().state, ProgressState::Done);
    assert_eq!(engine.mapped(), [0..=MIB - 1]);
}

#[test]
fn descriptors_of_something_else_are_refused() {
    let file = File::open("/dev/null").unwrap();
    let type1 = Engine::type1(file.as_fd(), Config::new()).unwrap_err();
    let iommufd = Engine::iommufd(file.as_fd(), 1, Config::new()).unwrap_err();
    assert_eq!((type1.errno(), type1.operation()), (ENOTTY, Operation::Open));
    assert_eq!(iommufd.errno(), ENOTTY);
}

#[test]
fn regions_say_what_they_are() {
    let container = Container::new(Driver::Iommufd);
    let engine = open(&container);
    let file = File::open("/dev/null").unwrap();
    map(&engine, &ram(0, PAGE).read_only()).unwrap();
    map(&engine, &ram(PAGE, 2 * PAGE).exact()).unwrap();
    map(&engine, &ram(MIB, PAGE).backing(7).file(file.as_fd(), MIB)).unwrap();
    assert_eq!(
        container.mappings().iter().map(|mapping| mapping.writable).collect::<Vec<_>>(),
        [false, true, true]
    );
    assert_eq!(engine.unmap(PAGE, PAGE).unwrap_err().errno(), EINVAL, "it is exact");
    assert_eq!(map(&engine, &ram(MIB, PAGE)), Err(EEXIST));
    assert_eq!(map(&engine, &ram(2 * MIB, PAGE).file(file.as_fd(), 0)), Err(EINVAL), "it has no backing");
    for wrong in [ram(1, PAGE), ram(2 * MIB, 0), ram(u64::MAX - PAGE + 1, 2 * PAGE)] {
        assert_eq!(map(&engine, &wrong), Err(EINVAL), "{wrong:?}");
    }
    let refusing = open(&Container::new(Driver::Iommufd).fail_call(1, EOPNOTSUPP));
    let mut transaction = refusing.begin().unwrap();
    // SAFETY: the model accesses no memory.
    unsafe { transaction.map(&ram(0, MIB).backing(1).bar(file.as_fd(), 2, 0)) }.unwrap();
    let refused = transaction.commit().unwrap().refused;
    assert_eq!(
        refused.iter().map(|region| (region.iova.clone(), region.errno)).collect::<Vec<_>>(),
        [(0..=MIB - 1, EOPNOTSUPP)]
    );
}

#[test]
fn limits_are_told_in_numbers() {
    let engine = open(&Container::new(Driver::Type1).entry_limit(2).iova_ranges([0..=(1 << 39) - 1]));
    let info = engine.info();
    assert_eq!(
        (info.free_entries, info.iova_ranges, info.poisoned),
        (Some(2), vec![0..=(1 << 39) - 1], false)
    );
    let mut transaction = engine.begin().unwrap();
    for n in 0..3 {
        // SAFETY: the model accesses no memory.
        unsafe { transaction.map(&ram(2 * n * MIB, MIB)) }.unwrap();
    }
    assert_eq!(transaction.check().unwrap_err().errno(), ENOSPC);
    let error = transaction.commit().unwrap_err();
    assert_eq!((error.errno(), error.needed_and_available()), (ENOSPC, Some((3, 2))));
    let none = Engine::sim(&Container::new(Driver::Type1), Config::new().cpus([]));
    assert_eq!(none.unwrap_err().errno(), EINVAL);
}

#[test]
fn dirty_pages_are_bits() {
    let container = Container::new(Driver::Type1).precise_dirty_pages();
    let engine = open(&container);
    map(&engine, &ram(0, MIB)).unwrap();
    engine.track_dirty(true).unwrap();
    container.write(3 * PAGE);
    let mut bitmap = [0; 4];
    engine.read_dirty(0, MIB, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1 << 3, 0, 0, 0]);
    assert_eq!(engine.unmap_dirty(0, MIB, &mut bitmap).unwrap(), MIB);
    let iommufd = open(&Container::new(Driver::Iommufd));
    assert_eq!(iommufd.track_dirty(true).unwrap_err().errno(), EOPNOTSUPP);
}

/// What the documentation says of threads, as types. That transactions stay with their thread is an example there.
#[test]
fn threads_can_share_what_they_are_said_to() {
    fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    shared::<vfio_fast_dma::Error>();
    shared::<Region<'static>>();
    shared::<Container>();
}
