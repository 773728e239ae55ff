//! Processes that are killed at any moment. The kernel has to release everything that they had, and a process that has
//! handed its entries over has to get them back.
//!
//! The victims are processes of this program. A victim writes a letter to its standard error before each of its steps,
//! so the last letter tells in which step it was killed.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::cases::PAGE;
use super::common::memory::RealMemory;
use super::common::{hva_of, range};
use super::kernel::{self, Driver};
use super::process::{ram, running};
use super::refused;
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::reconcile::table::Entry;
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, Engine};

/// The processes that each test kills, unless [`OTHER_KILLS`] has a number.
const KILLS: usize = 40;
/// Read when this is compiled, because nothing else gets into the test machine.
const OTHER_KILLS: Option<&str> = option_env!("VFIO_FAST_KILLS");
/// How often a victim suspends and resumes.
const SUSPENSIONS: u64 = 256;
/// What the victim uses: a [`Driver`], or the number of the container's descriptor.
const USES: &str = "VFIO_FAST_VICTIM_USES";
const START: u64 = 0x6000_0000;
/// A region of each of the three objects of [`RealMemory`].
const LENGTH: u64 = 8 << 20;
/// The entries that are handed over, all of the first object, and their length.
const ENTRIES: u64 = 512;
const ENTRY: u64 = 32 << 10;
/// The kernel releases what a process had before its end is reported, or a little later.
const RELEASED_WITHIN: Duration = Duration::from_secs(60);

/// A step of a victim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Map,
    Unmap,
    Background,
    Suspend,
    Close,
    Adopt,
    Adopted,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Map, Self::Unmap, Self::Background, Self::Suspend, Self::Close, Self::Adopt, Self::Adopted];
    /// The steps of a victim that works alone. iommufd has nothing to do for an address space that is suspended.
    const ALONE: [Self; 5] = [Self::Map, Self::Unmap, Self::Background, Self::Close, Self::Suspend];

    fn letter(self) -> u8 {
        let position = Self::ALL.iter().position(|step| *step == self);
        b'a' + u8::try_from(position.expect("one of all")).unwrap()
    }

    fn of(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.letter() == letter)
    }

    /// Tells the other process that the step begins.
    fn begin(self) {
        std::io::stderr().write_all(&[self.letter()]).unwrap();
    }
}

fn engine(backend: Box<dyn vfio_fast_engine::backend::Backend>) -> Arc<Engine> {
    let config = Config {
        entry_size: 2 << 20,
        threads: 3,
        oversubscribe: true,
        huge_pages: false,
        ..Config::default()
    };
    Arc::new(Engine::new(backend, config).unwrap())
}

/// A victim that works alone: it maps, unmaps, and so on, until it is killed.
pub fn work() {
    let memory = RealMemory::new();
    memory.small_pages();
    let driver = Driver::named(&uses());
    let regions =
        |start: u64, offset| (1..4).map(move |object| ram(start + object * LENGTH, object, offset, LENGTH));
    kernel::reopening(driver, |open| {
        loop {
            let engine = engine(open());
            memory.cool();
            Step::Map.begin();
            engine.begin().unwrap();
            regions(START, 0).for_each(|region| engine.map_region(region).unwrap());
            engine.commit().unwrap();
            Step::Unmap.begin();
            engine.unmap(range(START + LENGTH + LENGTH / 2, 2 * LENGTH)).unwrap();
            Step::Background.begin();
            engine.begin().unwrap();
            regions(2 * START, LENGTH).for_each(|region| engine.map_region(region).unwrap());
            engine.commit_background().unwrap();
            assert!(engine.wait(None, None).unwrap());
            if driver == Driver::Type1 {
                Step::Suspend.begin();
                // Each takes a moment only, in which few would be killed.
                for _ in 0..SUSPENSIONS {
                    engine.suspend().unwrap();
                    engine.resume().unwrap();
                }
            }
            Step::Close.begin();
            engine.close().unwrap();
        }
    });
}

fn uses() -> String {
    std::env::var(USES).expect("another test's process")
}

/// A process of this program.
struct Victim {
    process: Child,
    said: Vec<u8>,
}

impl Victim {
    fn start(test: &str, uses: &str) -> Self {
        let process = running(test)
            .env(USES, uses)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, said: Vec::new() }
    }

    /// Waits until it begins the step, lets it go on for `time`, and kills it. Returns the step that it was in.
    fn kill(mut self, step: Step, time: Duration) -> Step {
        let mut says = self.process.stderr.take().unwrap();
        while self.said.last() != Some(&step.letter()) {
            let mut letter = [0];
            if says.read(&mut letter).unwrap() == 0 {
                panic!("it ended before {step:?}: {}", String::from_utf8_lossy(&self.said));
            }
            self.said.push(letter[0]);
        }
        thread::sleep(time);
        self.process.kill().unwrap();
        says.read_to_end(&mut self.said).unwrap();
        let status = self.process.wait().unwrap();
        let said = String::from_utf8_lossy(&self.said);
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}: {said}");
        self.said.last().copied().and_then(Step::of).unwrap_or_else(|| panic!("{said}"))
    }
}

/// Times between 60 microseconds and 30 milliseconds: short ones as often as long ones.
struct Times(u64);

impl Iterator for Times {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // Knuth's generator; its upper bits are good.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (power, part) = (self.0 >> 61, self.0 >> 40 & 0xff);
        Some(Duration::from_nanos((60_000 << power) * (256 + part) / 256))
    }
}

fn kills() -> usize {
    OTHER_KILLS.map_or(KILLS, |kills| kills.parse().expect("a number"))
}

/// The pages that anybody has pinned.
pub fn pinned() -> u64 {
    // Each processor counts for itself for a while.
    fs::write("/proc/sys/vm/stat_refresh", "1").expect("root");
    let counters = fs::read_to_string("/proc/vmstat").unwrap();
    let counter = |name: &str| {
        let value = counters.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect(name).parse::<u64>().unwrap()
    };
    counter("nr_foll_pin_acquired") - counter("nr_foll_pin_released")
}

fn assert_pinned(expected: u64, killed: Step) {
    assert_pinned_again(expected, &format!("killed in {killed:?}"));
}

/// Waits until the kernel has released what a process had that has ended.
pub fn assert_pinned_again(expected: u64, what: &str) {
    let start = Instant::now();
    while pinned() != expected {
        let now = pinned();
        assert!(start.elapsed() < RELEASED_WITHIN, "{what}: {now} pages pinned, not {expected}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// How many were killed in each step.
fn print(killed: &[Step]) {
    let times = |step: &Step| killed.iter().filter(|one| *one == step).count();
    let counts: Vec<_> = Step::ALL.iter().map(|step| (step, times(step))).filter(|(_, n)| *n > 0).collect();
    println!("{} killed: {counts:?}", killed.len());
}

/// Kills processes in each of their steps. No page stays pinned, the next process can have the device, and in the end
/// nothing is counted for the user, and the device can be used.
pub fn processes_leave_nothing(driver: Driver) {
    let before = pinned();
    let steps = if driver == Driver::Type1 { &Step::ALONE[..] } else { &Step::ALONE[..4] };
    let kill = |(step, time): (&Step, Duration)| {
        let killed = Victim::start("a_process_that_is_killed", &format!("{driver:?}")).kill(*step, time);
        assert_pinned(before, killed);
        killed
    };
    let killed: Vec<_> = steps.iter().cycle().zip(Times(1)).take(kills()).map(kill).collect();
    print(&killed);
    for step in steps {
        assert!(killed.contains(step), "none was killed in {step:?}");
    }
    if driver == Driver::Iommufd {
        refused::nothing_is_counted();
    }
    let memory = RealMemory::new();
    kernel::with_edu(driver, |backend, edu, _| {
        let engine = engine(backend);
        engine.map_region(ram(START, 1, 0, LENGTH)).unwrap();
        assert!(edu.reaches(START, hva_of(1, 0)));
        engine.close().unwrap();
    });
    drop(memory);
    assert_pinned(before, Step::Close);
}

fn entries() -> impl Iterator<Item = Region> {
    // There is a gap after each.
    (0..ENTRIES).map(|n| Region { exact: true, ..ram(START + 2 * n * ENTRY, 1, n * ENTRY, ENTRY) })
}

/// A victim that adopts the entries of another process, whose container it has inherited.
pub fn adopt() {
    let memory = RealMemory::new();
    memory.small_pages();
    let number = uses().parse().expect("a descriptor");
    // SAFETY: the other process has passed this descriptor, and nothing else here uses it.
    let container = unsafe { OwnedFd::from_raw_fd(number) };
    let engine = engine(Box::new(Type1::open(container.as_fd()).unwrap()));
    engine.begin().unwrap();
    entries().for_each(|region| engine.map_region(region).unwrap());
    Step::Adopt.begin();
    engine.adopt(entries().map(|region| (region.range, region.perm))).unwrap();
    Step::Adopted.begin();
    // Until it is killed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Kills processes that adopt the entries of this one. The device keeps its access throughout, and this process gets
/// every entry back, whichever of them the other one had adopted.
pub fn adopters_lose_nothing() {
    let before = pinned();
    let memory = RealMemory::new();
    memory.small_pages();
    kernel::sharing(Driver::Type1, |backend, container, edu, _| {
        let inherit = |fd: BorrowedFd<'_>| {
            // SAFETY: this sets a flag of a descriptor that is open.
            assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }, 0);
            fd.as_raw_fd().to_string()
        };
        let container = inherit(container);
        let engine = engine(backend);
        let unmapped = pinned();
        engine.begin().unwrap();
        entries().for_each(|region| engine.map_region(region).unwrap());
        engine.commit().unwrap();
        let (held, all) = (unmapped + ENTRIES * ENTRY / PAGE, engine.entries());
        assert_eq!((pinned(), all.len() as u64), (held, ENTRIES));
        let reached = |n: u64| edu.reaches(START + 2 * n * ENTRY, hva_of(1, 0) + n * ENTRY);
        let mut killed = Vec::new();
        for (n, time) in (0..).zip(Times(2)).take(kills()) {
            engine.suspend().unwrap();
            let last = Victim::start("a_process_that_adopts", &container).kill(Step::Adopt, time);
            assert!(reached(n % ENTRIES), "killed in {last:?}: a device has lost its access");
            engine.resume().unwrap_or_else(|error| panic!("killed in {last:?}: {error}"));
            assert!(reached(ENTRIES - 1 - n % ENTRIES), "killed in {last:?}: resumed without access");
            assert_pinned(held, last);
            killed.push(last);
        }
        print(&killed);
        assert!(killed.contains(&Step::Adopt), "none was killed while it adopted");
        // They are this engine's again: it can cut them and map other memory there.
        for region in entries().take(3) {
            assert_eq!(engine.unmap(region.range).unwrap(), ENTRY);
            assert_pinned(held - ENTRY / PAGE, Step::Unmap);
            engine.map_region(region).unwrap();
        }
        let mappings = |entries: &[Entry]| entries.iter().map(Entry::mapping).collect::<Vec<_>>();
        assert!(mappings(&engine.entries()) == mappings(&all), "other entries than before");
        engine.close().unwrap();
        assert_pinned(unmapped, Step::Close);
    });
    drop(memory);
    assert_pinned(before, Step::Close);
}
