//! Memory that runs out while it is mapped: a pool of huge pages, and a cgroup's limit.

use std::fs;
use std::io::{Error as IoError, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use super::common::memory::RealMemory;
use super::kernel::{self, Driver};
use super::killed::{assert_pinned_again, pinned};
use super::plan::{PREPARED, assert_left, mapping, pages, prepare, table};
use super::process::{ram, running};
use super::refused;
use super::run::Needs;
use super::superpages::HugePages;
use vfio_fast_engine::{Config, Engine, Result};

const HUGE: u64 = 2 << 20;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// The huge pages of the region.
const PAGES: u64 = 3;
/// Beyond what [`prepare`] maps.
const START: u64 = 0x10_0000_0000;

fn read_pool(name: &str) -> u64 {
    fs::read_to_string(format!("{POOL}/{name}")).unwrap().trim().parse().unwrap()
}

fn set_pool(pages: u64) {
    fs::write(format!("{POOL}/nr_hugepages"), pages.to_string()).unwrap();
    assert_eq!(read_pool("nr_hugepages"), pages, "the machine has no such memory");
}

/// A transaction with pools of each size up to what it needs, with one and with several threads. With less it says so,
/// adds nothing, and keeps no huge page.
pub fn pool_of_huge_pages(driver: Driver) {
    let before = read_pool("nr_hugepages");
    for threads in [1, 4] {
        for pool in 0..=PAGES + 1 {
            set_pool(pool);
            let what = format!("{driver:?}, {threads} threads, {pool} huge pages");
            match in_huge_pages(driver, threads, &what) {
                Ok(()) => assert!(pool >= PAGES, "{what}: sufficed for {PAGES}"),
                Err(error) => {
                    assert!(pool < PAGES, "{what}: {error}");
                    assert_eq!(error.needed_and_available(), Some((HUGE, 0)), "{what}: {error}");
                    assert!(error.to_string().contains("vm.nr_hugepages"), "{what}: {error}");
                }
            }
            assert_eq!(read_pool("free_hugepages"), pool, "{what}: pages are missing in the pool");
        }
    }
    set_pool(before);
}

/// The result of a transaction with a region of huge pages.
fn in_huge_pages(driver: Driver, threads: usize, what: &str) -> Result<()> {
    let memory = RealMemory::new();
    memory.small_pages();
    let pinned_before = pinned();
    let mut result = None;
    kernel::owned_with(Needs::default(), driver, |backend, _| {
        // Each is taken from the pool when it is touched first.
        let huge = HugePages::map(HUGE, PAGES, libc::MAP_NORESERVE).expect("it takes none from the pool");
        let config = Config { threads, oversubscribe: true, ..Config::default() };
        let engine = Engine::new(backend, config).unwrap();
        prepare(&engine).unwrap();
        let mut expected = pages(&table(&engine));
        assert_eq!(expected.len() as u64, PREPARED);
        engine.begin().unwrap();
        engine.map_region(huge.region(START)).unwrap();
        let transacted = engine.commit().map(drop);
        if transacted.is_ok() {
            expected.extend(pages(&[mapping(&huge.region(START))]));
        }
        assert_left(&format!("{what}: {transacted:?}"), &engine, &expected);
        engine.close().unwrap();
        result = Some(transacted);
    });
    drop(memory);
    assert_eq!(pinned(), pinned_before, "{what}: pages stay pinned");
    result.expect("it was run")
}

/// What the process in a cgroup uses: a [`Driver`].
const USES: &str = "VFIO_FAST_CGROUP_USES";
/// The limits in MiB. The process maps 24 MiB.
const LIMITS: [u64; 6] = [6, 10, 14, 18, 22, 64];
const LENGTH: u64 = 8 << 20;

/// A cgroup, in a file system of its own.
struct Cgroup {
    root: PathBuf,
}

impl Cgroup {
    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("vfio-fast-cgroup-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let target = std::ffi::CString::new(root.to_str().unwrap()).unwrap();
        // SAFETY: the strings end with a zero byte, and the file system takes no data.
        let result = unsafe {
            libc::mount(c"cgroup2".as_ptr(), target.as_ptr(), c"cgroup2".as_ptr(), 0, std::ptr::null())
        };
        assert_eq!(result, 0, "{}", IoError::last_os_error());
        fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
        fs::create_dir(root.join("limited")).unwrap();
        Self { root }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join("limited").join(name)
    }

    /// Runs the process with a limit. Returns how it ended.
    fn run(&self, driver: Driver, mib: u64) -> ExitStatus {
        fs::write(self.file("memory.max"), (mib << 20).to_string()).unwrap();
        let mut process = running("a_process_that_a_cgroup_limits")
            .env(USES, format!("{driver:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        fs::write(self.file("cgroup.procs"), process.id().to_string()).unwrap();
        process.stdin.take().unwrap().write_all(b"go").unwrap();
        process.wait().unwrap()
    }

    fn killed(&self) -> u64 {
        let events = fs::read_to_string(self.file("memory.events")).unwrap();
        let line = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a counter");
        line.parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(self.root.join("limited")).unwrap();
        let target = std::ffi::CString::new(self.root.to_str().unwrap()).unwrap();
        // SAFETY: the string ends with a zero byte.
        let result = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(result, 0, "{}", IoError::last_os_error());
    }
}

/// The kernel kills a process that exceeds the limit of its cgroup, whoever faults its memory in. Nothing is left of it,
/// and a process with enough memory then maps it.
pub fn cgroup(driver: Driver) {
    let before = pinned();
    let cgroup = Cgroup::new();
    for mib in LIMITS {
        let killed = cgroup.killed();
        let status = cgroup.run(driver, mib);
        let what = format!("{driver:?}, {mib} MiB: {status}");
        if (mib << 20) < 3 * LENGTH {
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{what}");
            assert!(cgroup.killed() > killed, "{what}: not by the cgroup");
        } else {
            assert!(status.success(), "{what}");
        }
        assert_pinned_again(before, &what);
    }
    if driver == Driver::Iommufd {
        refused::nothing_is_counted();
    }
}

/// The process in the cgroup.
pub fn in_cgroup() {
    let driver = Driver::named(&std::env::var(USES).expect("another test's process"));
    // Until it is in the cgroup.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let memory = RealMemory::new();
    memory.small_pages();
    kernel::owned_with(Needs::default(), driver, |backend, _| {
        let config = Config { threads: 3, oversubscribe: true, huge_pages: false, ..Config::default() };
        let engine = Engine::new(backend, config).unwrap();
        engine.begin().unwrap();
        for object in 1..4 {
            engine.map_region(ram(START + object * LENGTH, object, 0, LENGTH)).unwrap();
        }
        engine.commit().unwrap();
        engine.close().unwrap();
    });
    drop(memory);
}
