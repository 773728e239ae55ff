//! Allocations of the kernel that fail, with its fault injection: each one that a commit and a close make on the calling
//! thread, and some of those that several threads make. Afterwards the IOMMU has what the engine says, and nothing
//! stays pinned.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cases::PAGE;
use super::common::memory::RealMemory;
use super::common::range;
use super::kernel::{self, Driver};
use super::killed::pinned;
use super::limits::locked;
use super::plan::{PRESENT, after, pages, prepare, table, transact, undone};
use super::witness::{self, PageTables, Translations, assert_same};
use vfio_fast_engine::{Config, Engine, Result};

/// Threads of an engine that has several, and how many of its allocations fail, one in each transaction.
const THREADS: usize = 4;
const TIMES: u64 = 60;

/// The parts of the kernel's fault injection, as debugfs names them.
const INJECTORS: [&str; 3] = ["failslab", "fail_page_alloc", "fail_iommufd"];

fn set(injector: &str, option: &str, value: &str) {
    let file = Path::new("/sys/kernel/debug").join(injector).join(option);
    fs::write(&file, value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Makes allocations of the kernel fail.
struct Faults {
    /// What is left until one fails, of the thread that has opened this.
    nth: File,
}

impl Faults {
    /// Of the calling thread, and of those that it starts.
    fn new() -> Self {
        for injector in INJECTORS {
            // Otherwise, each failure leaves a stack trace in the log.
            set(injector, "verbose", "0");
            set(injector, "task-filter", "Y");
            set(injector, "probability", "0");
        }
        // Otherwise, allocations that may wait do not fail.
        for injector in &INJECTORS[..2] {
            set(injector, "ignore-gfp-wait", "N");
        }
        set("fail_page_alloc", "ignore-gfp-highmem", "N");
        set("fail_page_alloc", "min-order", "0");
        fs::write("/proc/thread-self/make-it-fail", "1").unwrap();
        let nth = File::options().read(true).write(true).open("/proc/thread-self/fail-nth").unwrap();
        Self { nth }
    }

    /// Lets the nth allocation of the calling thread fail, and says whether there was one.
    fn nth<T>(&self, nth: u64, run: impl FnOnce() -> T) -> (T, bool) {
        self.write(nth);
        let result = run();
        let mut left = [0; 16];
        let bytes = self.nth.read_at(&mut left, 0).unwrap();
        self.write(0);
        (result, left[..bytes].starts_with(b"0"))
    }

    fn write(&self, nth: u64) {
        self.nth.write_all_at(nth.to_string().as_bytes(), 0).unwrap();
    }

    /// Lets one allocation of any thread fail, at the latest the nth, and says whether there was one.
    fn within<T>(injector: &str, nth: u64, run: impl FnOnce() -> T) -> (T, bool) {
        set(injector, "interval", &nth.to_string());
        set(injector, "times", "1");
        set(injector, "probability", "100");
        let result = run();
        set(injector, "probability", "0");
        let times = fs::read_to_string(Path::new("/sys/kernel/debug").join(injector).join("times")).unwrap();
        (result, times.trim() == "0")
    }
}

/// The outcomes.
#[derive(Debug, Default)]
struct Counts {
    injected: u64,
    commits_failed: u64,
    not_undone: u64,
    poisoned: u64,
    closes_failed: u64,
    errnos: BTreeSet<i32>,
}

struct Test<'a> {
    driver: Driver,
    tables: PageTables,
    memory: &'a RealMemory,
    threads: usize,
    /// Whether the memory has to be faulted in.
    cold: bool,
    counts: Counts,
}

/// What is done while an allocation fails.
type During<'a> = dyn FnMut(&mut dyn FnMut()) -> bool + 'a;

/// Every allocation fails once.
pub fn may_fail(driver: Driver) {
    let memory = RealMemory::new();
    memory.small_pages();
    let (pinned_before, locked_before) = (pinned(), locked());
    let faults = Faults::new();
    for cold in [false, true] {
        let mut test = Test::new(driver, &memory, 1, cold);
        for closing in [false, true] {
            let each = (1..).take_while(|nth| test.run(closing, &mut |run| faults.nth(*nth, run).1));
            println!("{driver:?}, cold: {cold}, closing: {closing}: {} allocations", each.count());
        }
        test.print();
    }
    // type1's calls are all made by one thread.
    if driver == Driver::Iommufd {
        let mut test = Test::new(driver, &memory, THREADS, false);
        for nth in 1..=TIMES {
            for injector in &INJECTORS[..2] {
                test.run(false, &mut |run| Faults::within(injector, nth, run).1);
            }
        }
        test.print();
    }
    drop(memory);
    assert_eq!((pinned(), locked()), (pinned_before, locked_before), "pages stay pinned, or counted");
}

impl<'a> Test<'a> {
    fn new(driver: Driver, memory: &'a RealMemory, threads: usize, cold: bool) -> Self {
        let tables = PageTables::of(&kernel::device_name()).expect("VT-d, which shows its page tables");
        Self { driver, tables, memory, threads, cold, counts: Counts::default() }
    }

    /// Prints what happened. Failures that nobody noticed would show nothing.
    fn print(&self) {
        let Self { driver, threads, cold, counts, .. } = self;
        println!("{driver:?}, {threads} threads, cold: {cold}: {counts:?}");
        assert!(counts.commits_failed > 0, "no failure was noticed");
    }

    /// One transaction, and closing. One of both is run by `during`, which says whether an allocation failed.
    fn run(&mut self, closing: bool, during: &mut During<'_>) -> bool {
        self.memory.cool();
        if !self.cold {
            self.memory.populate(PRESENT);
        }
        let mut injected = false;
        kernel::owned(self.driver, |backend, _, _| {
            let config =
                Config { threads: self.threads, oversubscribe: true, huge_pages: false, ..Config::default() };
            let engine = Engine::new(backend, config).unwrap();
            prepare(&engine).expect("nothing fails yet");
            let mut committed = Ok(());
            let mut commit = || committed = transact(&engine);
            if closing {
                commit();
            } else {
                injected = during(&mut commit);
            }
            self.committed(&engine, &committed, injected);
            let mut closed = Ok(());
            let mut close = || closed = engine.close();
            if closing {
                injected = during(&mut close);
            } else {
                close();
            }
            self.closed(&closed, closing && injected);
        });
        self.counts.injected += u64::from(injected);
        injected
    }

    /// A commit that failed has added nothing, or has said what it could not undo.
    fn committed(&mut self, engine: &Engine, committed: &Result<()>, injected: bool) {
        let poisoned = engine.info().poisoned;
        self.counts.poisoned += u64::from(poisoned);
        let table = table(engine);
        match committed {
            Ok(()) => assert!(!poisoned && pages(&table) == after(), "a commit that succeeded"),
            Err(error) => {
                assert!(injected, "{error}");
                self.counts.commits_failed += 1;
                self.counts.errnos.insert(error.errno.0);
                let told = error.unfinished.is_some();
                self.counts.not_undone += u64::from(told);
                assert!(told || poisoned || pages(&table) == undone(), "{error}: it is not undone");
            }
        }
        if !poisoned {
            assert_same(&format!("{committed:?}"), &witness::mapped(&table), &self.tables.read());
        }
    }

    /// A close that failed has said what it could not unmap.
    fn closed(&mut self, closed: &Result<()>, injected: bool) {
        let found = self.tables.read();
        let Err(error) = closed else { return assert_same("closed", &Translations::new(), &found) };
        assert!(injected, "{error}");
        self.counts.closes_failed += 1;
        self.counts.errnos.insert(error.errno.0);
        let told = error.unfinished.as_ref().map_or(&[][..], |unfinished| &unfinished.leftover);
        let is_told = |iova: &u64| told.iter().any(|range| range.contains(self::range(*iova, PAGE)));
        assert!(found.keys().all(is_told), "{error}: {found:x?}");
    }
}
