//! Commits that leave what is to be mapped to a job, and what other calls do while it works.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::scope;
use std::time::Duration;

use vfio_fast_testing as common;

use common::hooked::{Hooked, Then, Waiting};
use common::{assert_table, hva, ram, range, threads};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::log::Log;
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, Engine, Errno, Phase};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The largest entry of a job.
const ENTRY: u64 = 128 * MIB;

/// Takes a job many entries.
const LARGE: u64 = 64 * GIB;

/// Whether a map call is one of the job's thread, which waits for the test.
fn is_of_job(_: &Mapping) -> bool {
    std::thread::current().name().is_some_and(|name| name == "vfio-fast-job")
}

struct Bench {
    engine: Arc<Engine>,
    sim: Sim,
    began: Receiver<IovaRange>,
    go_on: Sender<Then>,
    logged: Arc<Mutex<Vec<String>>>,
}

fn bench(config: SimConfig) -> Bench {
    bench_with(config, 1, is_of_job)
}

/// An engine with so many threads, of which these map calls wait for the test.
fn bench_with(config: SimConfig, threads: usize, waits: fn(&Mapping) -> bool) -> Bench {
    let sim = Sim::new(config);
    let (hooks, began, go_on) = Waiting::new(waits);
    let backend = Hooked { kernel: Box::new(sim.clone()), hooks };
    let logged = Arc::new(Mutex::new(Vec::new()));
    let log = {
        let logged = Arc::clone(&logged);
        Log::to(move |_, text| {
            assert_ne!(
                std::thread::current().name(),
                Some("vfio-fast-job"),
                "the caller's code on a library thread"
            );
            logged.lock().unwrap().push(text.to_owned());
        })
    };
    let config = Config { threads, oversubscribe: true, log, ..Config::default() };
    let engine = Arc::new(Engine::new(Box::new(backend), config).unwrap());
    Bench { engine, sim, began, go_on, logged }
}

fn both() -> [Bench; 2] {
    [Rules::Type1, Rules::Iommufd].map(|rules| bench(SimConfig { rules, ..SimConfig::default() }))
}

/// RAM of a guest.
fn guest(start: u64, length: u64) -> Region {
    Region { hva: hva((1 << 46) + start), backing: Backing(1), join: true, ..ram(start, length) }
}

impl Bench {
    fn commit(&self, regions: &[Region]) {
        self.engine.begin().unwrap();
        for region in regions {
            self.engine.map_region(*region).unwrap();
        }
        let outcome = self.engine.commit_background().unwrap();
        assert_eq!(outcome.executed.map_calls, 0);
    }

    /// Waits for the job's next map call, and lets it go on.
    fn step(&self, then: Then) -> IovaRange {
        let range = self.began.recv_timeout(Duration::from_secs(60)).expect("a map call");
        self.go_on.send(then).unwrap();
        range
    }

    /// Runs `call` on a thread of its own, and once it waits lets the job's map calls go on until it returns. Returns them,
    /// too.
    fn during<R: Send>(&self, call: impl FnOnce(&Engine) -> R + Send) -> (R, Vec<IovaRange>) {
        let engine = &*self.engine;
        let mut calls = Vec::new();
        let done = scope(|scope| {
            let running = threads::spawn_until_asleep(scope, move || call(engine));
            while !running.is_finished() {
                if let Ok(range) = self.began.recv_timeout(Duration::from_millis(5)) {
                    calls.push(range);
                    std::thread::sleep(Duration::from_millis(5));
                    self.go_on.send(Then::Maps).unwrap();
                }
            }
            running.join().unwrap()
        });
        (done, calls)
    }

    /// Lets all further map calls go on at once.
    fn release(self) -> (Arc<Engine>, Sim) {
        (self.engine, self.sim)
    }

    fn mapped(&self) -> u64 {
        self.engine.entries().iter().map(|entry| entry.range.length()).sum()
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    #[allow(unsafe_code, reason = "poll")]
    // SAFETY: the call reads and writes one pollfd, and returns at once.
    unsafe {
        libc::poll(&raw mut poll, 1, 0) == 1
    }
}

fn threads_of_jobs() -> usize {
    threads::named("vfio-fast-job").len()
}

#[test]
fn a_commit_returns_before_the_job_has_mapped() {
    for bench in both() {
        let engine = &bench.engine;
        let fd = engine.completion_fd().unwrap();
        assert_eq!(engine.progress().phase, Phase::None);
        assert_eq!(engine.wait(None, Some(Duration::ZERO)), Ok(true), "no job, nothing to wait for");
        bench.commit(&[guest(0, GIB)]);
        let first = bench.began.recv().unwrap();
        assert_eq!((first.start(), first.length()), (0, ENTRY));
        assert!(threads_of_jobs() > 0);
        assert_eq!(bench.mapped(), 0);
        assert_eq!(engine.wait(None, Some(Duration::ZERO)), Ok(false));
        assert_eq!(engine.wait(Some(range(0, MIB)), Some(Duration::from_millis(1))), Ok(false));
        assert_eq!(engine.wait(Some(range(GIB, MIB)), None), Ok(true), "nothing is wanted there");
        assert!(!is_readable(fd));
        let progress = engine.progress();
        assert_eq!((progress.phase, progress.wanted_bytes, progress.mapped_bytes), (Phase::Running, GIB, 0));
        bench.go_on.send(Then::Maps).unwrap();
        assert_eq!(engine.wait(Some(first), None), Ok(true));
        assert!(engine.progress().mapped_bytes >= ENTRY);
        for _ in 1..GIB / ENTRY {
            bench.step(Then::Maps);
        }
        assert_eq!(engine.wait(None, None), Ok(true));
        let progress = engine.progress();
        assert_eq!((progress.phase, progress.wanted_bytes, progress.mapped_bytes), (Phase::Done, GIB, GIB));
        assert_eq!((progress.left_ns, progress.threads), (Some(0), 0));
        assert!(is_readable(fd));
        assert_eq!(bench.mapped(), GIB);
        assert_table(engine, &bench.sim);
        // The next job resets the descriptor.
        bench.commit(&[guest(GIB, ENTRY)]);
        assert!(!is_readable(fd));
        bench.step(Then::Maps);
        assert_eq!(engine.wait(None, None), Ok(true));
        assert!(is_readable(fd));
    }
}

#[test]
fn the_job_leaves_a_cpu_until_somebody_waits() {
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let bench = bench_with(SimConfig::default(), 0, |_| true);
    bench.commit(&[guest(0, LARGE)]);
    let go_on = || {
        bench.began.recv_timeout(Duration::from_secs(60)).expect("a map call");
        bench.go_on.send(Then::Maps).unwrap();
    };
    let threads = || bench.engine.progress().threads;
    bench.began.recv_timeout(Duration::from_secs(60)).expect("a map call");
    assert_eq!(threads(), (cpus - 1).max(1));
    assert_eq!(bench.engine.wait(None, Some(Duration::ZERO)), Ok(false));
    bench.go_on.send(Then::Maps).unwrap();
    // Each thread ends the call that it is at, and then the job plans anew.
    let calls = (0..LARGE / ENTRY / 2).take_while(|_| threads() < cpus).map(|_| go_on()).count() as u64;
    assert!(calls < LARGE / ENTRY / 2, "{} of {cpus} threads", threads());
    let Bench { engine, sim, began, go_on, .. } = bench;
    drop((began, go_on));
    assert_eq!(engine.wait(None, None), Ok(true));
    assert_table(&engine, &sim);
}

#[test]
fn what_is_unmapped_is_not_mapped_afterwards() {
    for bench in both() {
        bench.commit(&[guest(0, GIB), guest(2 * GIB, GIB)]);
        let begun = bench.began.recv().unwrap();
        scope(|scope| {
            let engine = &bench.engine;
            let unmapping = threads::spawn_until_asleep(scope, move || engine.unmap(range(0, GIB)));
            assert!(!unmapping.is_finished(), "the memory is in the hands of the kernel");
            bench.go_on.send(Then::Maps).unwrap();
            assert_eq!(unmapping.join().unwrap(), Ok(GIB));
        });
        assert_eq!(begun, range(0, ENTRY));
        assert_eq!(bench.engine.wait(Some(range(0, GIB)), Some(Duration::ZERO)), Ok(true), "nothing is left");
        assert_eq!(bench.engine.progress().wanted_bytes, GIB);
        assert!(bench.sim.mappings().iter().all(|mapping| mapping.range.start() >= GIB));
        // The second one has not begun, or only its first entry has.
        let (unmapped, _) = bench.during(|engine| engine.unmap(range(2 * GIB, GIB / 2)));
        assert_eq!(unmapped, Ok(GIB / 2));
        let (_, calls) = bench.during(|engine| engine.wait(None, None));
        assert!(calls.iter().all(|call| call.start() >= 2 * GIB + GIB / 2), "{calls:?}");
        assert_eq!(bench.engine.wait(None, None), Ok(true));
        assert_eq!(bench.mapped(), GIB / 2);
        assert_table(&bench.engine, &bench.sim);
    }
}

#[test]
fn another_commit_is_done_when_it_returns() {
    for bench in both() {
        bench.commit(&[guest(0, LARGE)]);
        let engine = &bench.engine;
        let (outcome, calls) = bench.during(|engine| {
            engine.begin()?;
            engine.map_region(guest(128 * GIB, GIB))?;
            engine.map_region(Region { exact: true, ..guest(130 * GIB, 2 * MIB) })?;
            let outcome = engine.commit()?;
            assert_eq!(engine.wait(Some(range(128 * GIB, 16 * GIB)), Some(Duration::ZERO)), Ok(true));
            Ok::<_, vfio_fast_engine::Error>(outcome)
        });
        assert_eq!(outcome.unwrap().executed.map_bytes, GIB + 2 * MIB);
        assert!((calls.len() as u64) < LARGE / ENTRY, "the job did not give way");
        assert_eq!(engine.progress().phase, Phase::Running);
        // An entry of a vIOMMU does not wait for the job.
        bench.began.recv().unwrap();
        let entry = Region { exact: true, backing: Backing::UNKNOWN, ..guest(140 * GIB, 4096) };
        engine.map_region(entry).unwrap();
        engine.unmap(entry.range).unwrap();
        let (engine, sim) = bench.release();
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_eq!(engine.stats().mapped_bytes, LARGE + GIB + 2 * MIB);
        assert_table(&engine, &sim);
    }
}

#[test]
fn a_failure_is_kept_for_the_one_who_asks() {
    for bench in both() {
        let engine = &bench.engine;
        bench.commit(&[guest(0, GIB)]);
        bench.step(Then::Maps);
        bench.step(Then::Fails);
        let error = engine.wait(None, None).unwrap_err();
        assert_eq!((error.errno, error.range), (Errno::ENOMEM, Some(range(ENTRY, ENTRY))));
        assert_eq!(engine.wait(None, None).unwrap_err(), error, "it is kept");
        assert_eq!(engine.wait(Some(range(0, ENTRY)), None), Ok(true), "what was mapped stays");
        assert_eq!(engine.progress().phase, Phase::Failed);
        assert!(is_readable(engine.completion_fd().unwrap()));
        assert!(bench.logged.lock().unwrap().iter().any(|text| *text == error.to_string()));
        assert_eq!(bench.mapped(), ENTRY);
        assert_table(engine, &bench.sim);
        // The next background commit tries the rest again.
        bench.commit(&[]);
        let (engine, sim) = bench.release();
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_eq!(engine.stats().mapped_bytes, GIB);
        assert_table(&engine, &sim);
    }
}

#[test]
fn a_job_that_is_cancelled_leaves_what_the_caller_says() {
    for unmap in [false, true] {
        for failed in [false, true] {
            for bench in both() {
                let engine = &bench.engine;
                engine.map_region(guest(128 * GIB, GIB)).unwrap();
                bench.commit(&[guest(0, LARGE)]);
                bench.step(Then::Maps);
                bench.step(if failed { Then::Fails } else { Then::Maps });
                if failed {
                    engine.wait(None, None).unwrap_err();
                }
                let (cancelled, _) = bench.during(|engine| engine.cancel(unmap));
                cancelled.unwrap();
                let kept: u64 = engine.regions().iter().map(|region| region.range.length()).sum();
                assert_eq!(kept, bench.mapped());
                if unmap {
                    assert_eq!(kept, GIB);
                } else {
                    assert!((GIB + ENTRY..LARGE).contains(&kept), "{kept}");
                }
                assert_eq!(engine.progress().phase, Phase::Cancelled);
                assert_eq!(engine.wait(None, None), Ok(true));
                assert_table(engine, &bench.sim);
                assert_eq!(engine.cancel(true), Ok(()), "there is no job");
                assert_eq!(bench.mapped(), kept);
            }
        }
    }
}

/// What the job has mapped, and another call has unmapped and mapped again, is not the job's any more.
#[test]
fn a_cancel_leaves_what_others_have_mapped() {
    for bench in both() {
        let engine = &bench.engine;
        let exact = Region { exact: true, backing: Backing::UNKNOWN, ..guest(0, ENTRY) };
        bench.commit(&[exact, guest(ENTRY, LARGE)]);
        assert_eq!(bench.step(Then::Maps), exact.range);
        assert_eq!(bench.step(Then::Maps), range(ENTRY, ENTRY));
        let (again, _) = bench.during(|engine| {
            engine.unmap(exact.range)?;
            engine.map_region(exact)?;
            engine.unmap(range(ENTRY, ENTRY))?;
            engine.map_region(guest(ENTRY, ENTRY))
        });
        again.unwrap();
        bench.during(|engine| engine.cancel(true)).0.unwrap();
        assert_eq!(engine.progress().phase, Phase::Cancelled);
        let wanted: Vec<IovaRange> = engine.regions().iter().map(|region| region.range).collect();
        assert_eq!(wanted, [exact.range, range(ENTRY, ENTRY)]);
        assert_eq!(bench.mapped(), 2 * ENTRY);
        assert_table(engine, &bench.sim);
    }
}

#[test]
fn closing_ends_the_job() {
    for bench in both() {
        bench.commit(&[guest(0, 16 * GIB)]);
        bench.began.recv().unwrap();
        let (engine, sim) = (Arc::clone(&bench.engine), bench.sim.clone());
        scope(|scope| {
            let closing = threads::spawn_until_asleep(scope, || engine.close());
            assert!(!closing.is_finished(), "a map call is in flight");
            bench.go_on.send(Then::Maps).unwrap();
            closing.join().unwrap().unwrap();
        });
        assert!(sim.mappings().is_empty());
        assert_eq!(bench.began.try_iter().count(), 0, "a map call after the close began");
        assert_eq!(Arc::strong_count(&engine), 2, "the thread has ended");
        assert_eq!(engine.map_region(guest(0, MIB)).unwrap_err().errno, Errno::ENOTRECOVERABLE);
    }
}

#[test]
fn a_closed_engine_ends_a_job_that_waits_for_a_transaction() {
    let [bench, _] = both();
    bench.commit(&[guest(0, GIB)]);
    bench.during(|engine| {
        engine.begin().unwrap();
        engine.close().unwrap();
    });
    assert!(bench.sim.mappings().is_empty());
}

#[test]
fn the_rest_of_an_entry_is_mapped_at_once() {
    for bench in both() {
        let engine = &bench.engine;
        engine.map_region(guest(0, GIB)).unwrap();
        engine.begin().unwrap();
        engine.unmap(range(MIB, MIB)).unwrap();
        engine.map_region(guest(4 * GIB, ENTRY)).unwrap();
        let outcome = engine.commit_background().unwrap();
        assert_eq!(outcome.executed.map_bytes, GIB - MIB);
        assert_eq!(bench.mapped(), GIB - MIB);
        assert_eq!(bench.step(Then::Maps), range(4 * GIB, ENTRY));
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_table(engine, &bench.sim);
    }
}

#[test]
fn a_panic_of_the_job_poisons() {
    for bench in both() {
        let engine = &bench.engine;
        bench.commit(&[guest(0, GIB)]);
        bench.step(Then::Panics);
        assert_eq!(engine.wait(None, None).unwrap_err().errno, Errno::ENOTRECOVERABLE);
        assert!(engine.info().poisoned);
        while engine.progress().phase == Phase::Running {
            std::thread::yield_now();
        }
        assert_eq!(engine.progress().phase, Phase::Failed);
        engine.close().unwrap();
        assert!(bench.sim.mappings().is_empty());
    }
}

#[test]
fn the_job_waits_for_the_end_of_a_transaction() {
    for bench in both() {
        let engine = &bench.engine;
        bench.commit(&[guest(0, GIB)]);
        let (mapped, _) = bench.during(|engine| {
            engine.begin().unwrap();
            engine.unmap(range(0, GIB)).unwrap();
            assert_eq!(engine.wait(None, None).unwrap_err().errno, Errno::EBUSY);
            assert_eq!(engine.cancel(false).unwrap_err().errno, Errno::EBUSY);
            let before = engine.entries().len();
            std::thread::sleep(Duration::from_millis(50));
            let after = engine.entries().len();
            engine.abort().unwrap();
            (before, after)
        });
        assert_eq!(mapped.0, mapped.1, "the job works in a transaction");
        assert_eq!(engine.progress().phase, Phase::Running);
        let (engine, sim) = bench.release();
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_eq!(engine.stats().mapped_bytes, GIB);
        assert_table(&engine, &sim);
    }
}

/// A poisoned engine has no transaction, so the job need not wait for its end, and neither need others wait for the job.
#[test]
fn a_poison_wakes_those_who_wait() {
    for bench in both() {
        let fd = bench.engine.completion_fd().unwrap();
        bench.commit(&[guest(0, GIB)]);
        bench.during(|engine| engine.begin()).0.unwrap();
        let (told, waited) = channel();
        let engine = Arc::clone(&bench.engine);
        std::thread::spawn(move || told.send(engine.wait(None, None)));
        std::thread::sleep(Duration::from_millis(20));
        bench.engine.poison("as the test asks");
        let waited = waited.recv_timeout(Duration::from_secs(60)).expect("it still waits");
        assert_eq!(waited.unwrap_err().errno, Errno::ENOTRECOVERABLE);
        while bench.engine.progress().phase == Phase::Running {
            std::thread::yield_now();
        }
        assert!(is_readable(fd));
    }
}

/// What is left to the job may not fit any more. That is no reason to refuse a call that needs no room.
#[test]
fn unmapping_needs_no_room_for_what_is_left() {
    for bench in both() {
        let engine = &bench.engine;
        engine.map_region(guest(8 * GIB, GIB)).unwrap();
        bench.commit(&[guest(0, 2 * GIB)]);
        bench.step(Then::Maps);
        bench.sim.reconfigure(|config| config.memlock_limit = Some(GIB + 4 * ENTRY));
        let (unmapped, _) = bench.during(|engine| engine.unmap(range(8 * GIB + MIB, MIB)));
        assert_eq!(unmapped, Ok(MIB));
        let (unmapped, _) = bench.during(|engine| engine.unmap(range(0, 2 * GIB)));
        assert_eq!(unmapped, Ok(2 * GIB));
        assert_eq!(bench.mapped(), GIB - MIB);
        assert_table(engine, &bench.sim);
    }
}

/// Memory that a device has lost because of a failure was mapped, so it is mapped before the commit returns.
#[test]
fn what_was_lost_is_not_left_to_the_job() {
    for bench in both() {
        let (engine, sim) = (&bench.engine, &bench.sim);
        engine.map_region(guest(0, GIB)).unwrap();
        // Neither the commit nor its rollback maps the first rest of the entry again.
        sim.reconfigure(|config| config.failures = vec![(3, Errno::ENOMEM), (4, Errno::ENOMEM)]);
        engine.unmap(range(MIB, MIB)).unwrap_err();
        assert_eq!(engine.info().missing_bytes, MIB);
        engine.begin().unwrap();
        engine.unmap(range(0, 4096)).unwrap();
        engine.map_region(guest(4 * GIB, ENTRY)).unwrap();
        let outcome = engine.commit_background().unwrap();
        assert_eq!(outcome.executed.map_bytes, MIB - 4096);
        assert_eq!(engine.info().missing_bytes, 0);
        assert_eq!(bench.step(Then::Maps), range(4 * GIB, ENTRY));
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_table(engine, sim);
    }
}

/// One entry that a vIOMMU maps does not take the place of what is left to a job that does not run.
#[test]
fn a_single_map_leaves_room_for_the_job() {
    let bench = bench(SimConfig { dma_avail: 4, ..SimConfig::default() });
    let engine = &bench.engine;
    bench.commit(&[ram(0, 16 * MIB), ram(GIB, 16 * MIB), ram(2 * GIB, 16 * MIB)]);
    bench.step(Then::Fails);
    engine.wait(None, None).unwrap_err();
    let page = |n: u64| Region { exact: true, ..ram((8 << 30) + n * 4096, 4096) };
    engine.map_region(page(0)).unwrap();
    assert_eq!(engine.map_region(page(2)).unwrap_err().errno, Errno::ENOSPC);
    assert_table(engine, &bench.sim);
}

#[test]
fn limits_are_checked_before_and_count_what_is_left() {
    let config = SimConfig { memlock_limit: Some(2 * GIB), ..SimConfig::default() };
    let bench = bench(config);
    let engine = &bench.engine;
    let refused = |length| {
        engine.begin().unwrap();
        engine.map_region(guest(8 * GIB, length)).unwrap();
        let now = engine.commit().unwrap_err();
        engine.begin().unwrap();
        engine.map_region(guest(8 * GIB, length)).unwrap();
        let later = engine.commit_background().unwrap_err();
        assert_eq!([now.errno, later.errno], [Errno::ENOMEM; 2]);
        (now, later)
    };
    let (now, later) = refused(3 * GIB);
    assert_eq!(now, later);
    bench.commit(&[guest(0, GIB)]);
    // 1 GiB is on its way: 1.5 GiB more would be too much. The numbers change while it is mapped.
    bench.during(|_| refused(GIB + GIB / 2));
    let (engine, _) = bench.release();
    assert_eq!(engine.wait(None, None), Ok(true));
    assert_eq!(engine.stats().mapped_bytes, GIB);
}
