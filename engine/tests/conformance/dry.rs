//! Memory that runs out while it is mapped: a pool of huge pages, and a cgroup's limits of memory and of huge pages.

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
use vfio_fast_engine::{Config, Engine, Errno, Result};

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
/// The limit of its group.
const LIMIT: &str = "VFIO_FAST_CGROUP_LIMIT";
/// The limits in MiB. The process maps 24 MiB.
const LIMITS: [u64; 6] = [6, 10, 14, 18, 22, 64];
const LENGTH: u64 = 8 << 20;

/// A cgroup with one controller, in a file system of its own.
struct Cgroup {
    root: PathBuf,
}

impl Cgroup {
    /// `None` if the kernel does not have the controller.
    fn new(controller: &str) -> Option<Self> {
        let root = std::env::temp_dir().join(format!("vfio-fast-cgroup-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let target = std::ffi::CString::new(root.to_str().unwrap()).unwrap();
        // SAFETY: the strings end with a zero byte, and the file system takes no data.
        let result = unsafe {
            libc::mount(c"cgroup2".as_ptr(), target.as_ptr(), c"cgroup2".as_ptr(), 0, std::ptr::null())
        };
        assert_eq!(result, 0, "{}", IoError::last_os_error());
        fs::create_dir(root.join("limited")).unwrap();
        let cgroup = Self { root };
        let all = fs::read_to_string(cgroup.root.join("cgroup.controllers")).unwrap();
        if !all.split_whitespace().any(|one| one == controller) {
            return None;
        }
        fs::write(cgroup.root.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        Some(cgroup)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join("limited").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// Runs one of this program's tests as a process with a limit. Returns how it ended.
    fn run(&self, test: &str, driver: Driver, file: &str, limit: u64) -> ExitStatus {
        fs::write(self.file(file), limit.to_string()).unwrap();
        let mut process = running(test)
            .env(USES, format!("{driver:?}"))
            .env(LIMIT, limit.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        fs::write(self.file("cgroup.procs"), process.id().to_string()).unwrap();
        process.stdin.take().unwrap().write_all(b"go").unwrap();
        process.wait().unwrap()
    }

    /// How often that has happened to the group.
    fn count(&self, events: &str, what: &str) -> u64 {
        let events = self.read(events);
        let value = events.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        value.expect("a counter").parse().unwrap()
    }

    fn killed(&self) -> u64 {
        self.count("memory.events", "oom_kill")
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
    let cgroup = Cgroup::new("memory").expect("every kernel has it");
    for mib in LIMITS {
        let killed = cgroup.killed();
        let status = cgroup.run("a_process_that_a_cgroup_limits", driver, "memory.max", mib << 20);
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

/// What the process uses, as soon as it is in the cgroup.
fn entered() -> Driver {
    let driver = Driver::named(&std::env::var(USES).expect("another test's process"));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    driver
}

/// The process in the cgroup.
pub fn in_cgroup() {
    let driver = entered();
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

/// Limits of huge pages up to what the transaction needs, in a cgroup whose process could have more from the pool. With
/// less, the kernel has no page for it, which is an error and no signal.
pub fn cgroup_of_huge_pages(driver: Driver) {
    let Some(cgroup) = Cgroup::new("hugetlb") else {
        // Debian's kernels have the controller.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(!release.contains("deb"), "{release}");
        return println!("{driver:?}: this kernel has no limits of huge pages");
    };
    let (pinned, pool) = (pinned(), read_pool("nr_hugepages"));
    set_pool(PAGES + 1);
    for pages in 0..=PAGES + 1 {
        let refused = || cgroup.count("hugetlb.2MB.events", "max");
        let before = refused();
        let test = "a_process_that_a_cgroup_limits_in_huge_pages";
        let status = cgroup.run(test, driver, "hugetlb.2MB.max", pages * HUGE);
        let what = format!("{driver:?}, {pages} huge pages: {status}");
        assert!(status.success(), "{what}");
        assert_eq!(refused() > before, pages < PAGES, "{what}: refused by the cgroup");
        assert_eq!(cgroup.read("hugetlb.2MB.current").trim(), "0", "{what}: counted and gone");
        assert_eq!(read_pool("free_hugepages"), PAGES + 1, "{what}: pages are missing in the pool");
        assert_pinned_again(pinned, &what);
    }
    set_pool(pool);
}

/// The process in that cgroup.
pub fn in_cgroup_of_huge_pages() {
    let driver = entered();
    let limit: u64 = std::env::var(LIMIT).unwrap().parse().unwrap();
    for threads in [1, 4] {
        let what = format!("{driver:?}, {threads} threads, {limit} bytes of huge pages");
        match in_huge_pages(driver, threads, &what) {
            Ok(()) => assert!(limit >= PAGES * HUGE, "{what}: sufficed for {PAGES}"),
            Err(error) => {
                assert!(limit < PAGES * HUGE, "{what}: {error}");
                assert_eq!(error.errno, Errno::EFAULT, "{what}: {error}");
                assert!(error.to_string().contains("(hugetlb.*.max)"), "{what}: {error}");
            }
        }
    }
}
