//! Where the library's threads run, with which policies, and what is logged about it. The threads of a commit report
//! this themselves, from map calls that all of them make at the same time.
#![allow(unsafe_code, reason = "the tests bind threads and give them policies")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping, PopulatePolicy};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::log::{Level, Log};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, CpuSet, Engine};
use vfio_fast_testing::hooked::{Hooked, Hooks};
use vfio_fast_testing::memory::RealMemory;
use vfio_fast_testing::{UNIT, UNITS, hva, hva_of, keeping, ram};

const GIB: u64 = 1 << 30;

/// What a thread reports about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    cpus: Vec<usize>,
    policy: libc::c_int,
    nice: libc::c_int,
    memory_policy: libc::c_int,
}

/// The CPUs that a thread may run on; 0 is the calling thread.
fn cpus_of(tid: libc::pid_t) -> Vec<usize> {
    // SAFETY: a plain bit set, for which all zeros is the empty set.
    let mut set = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
    // SAFETY: the call writes at most the size of the set.
    assert_eq!(unsafe { libc::sched_getaffinity(tid, size_of_val(&set), &raw mut set) }, 0);
    // SAFETY: the number is less than the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

fn set_of(cpus: &[usize]) -> libc::cpu_set_t {
    // SAFETY: a plain bit set, for which all zeros is the empty set.
    let mut set = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
    // SAFETY: the number is less than the size of the set.
    cpus.iter().for_each(|&cpu| unsafe { libc::CPU_SET(cpu, &mut set) });
    set
}

/// Binds the calling thread.
fn bind(cpus: &[usize]) -> std::io::Result<()> {
    let set = set_of(cpus);
    // SAFETY: the call reads the size of the set.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The CPUs of the process: those of its main thread.
fn process_cpus() -> Vec<usize> {
    cpus_of(std::process::id() as libc::pid_t)
}

fn look() -> Seen {
    let mut memory_policy = -1;
    // SAFETY: the call writes one number.
    let answer = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut memory_policy, 0, 0, 0, 0) };
    assert_eq!(answer, 0);
    // The function of this name in musl always fails.
    // SAFETY: the call has no pointer arguments; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    let policy = libc::c_int::try_from(policy).unwrap();
    // SAFETY: likewise.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    Seen { cpus: cpus_of(0), policy, nice, memory_policy }
}

/// Threads that wait until all of them are there, again and again.
#[derive(Debug)]
struct Meeting {
    expected: usize,
    came: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    /// Fails if the others do not come.
    fn wait(&self) {
        let mut came = self.came.lock().unwrap();
        let all = (*came / self.expected + 1) * self.expected;
        *came += 1;
        self.changed.notify_all();
        let (came, timeout) =
            self.changed.wait_timeout_while(came, Duration::from_secs(60), |came| *came < all).unwrap();
        assert!(!timeout.timed_out(), "{came} threads of {all}");
    }
}

/// Makes map calls wait for each other, and notes which thread makes them.
struct Together {
    all: Meeting,
    seen: Arc<Mutex<Vec<(String, Seen)>>>,
}

impl Hooks for Together {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        self.all.wait();
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap().trim().to_owned();
        self.seen.lock().unwrap().push((name, look()));
        kernel.map(mapping, object)
    }
}

/// The library's threads in a commit of the calling thread on `expected` threads, the lines that it logs, and the
/// calling thread. Commits twice, because some lines are logged once.
fn commit(expected: usize, threads: usize, cpu_set: Option<CpuSet>) -> (Vec<Seen>, Vec<String>, Seen) {
    let (seen, lines) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
    let sim = Sim::new(keeping(Rules::Iommufd));
    let all = Meeting { expected, came: Mutex::default(), changed: Condvar::new() };
    let backend = Hooked { kernel: Box::new(sim), hooks: Together { all, seen: seen.clone() } };
    let log = Log::to({
        let lines = lines.clone();
        move |level, line| {
            assert_eq!(level, Level::Info, "{line}");
            lines.lock().unwrap().push(line.to_owned());
        }
    });
    let config =
        Config { threads, oversubscribe: true, cpu_set, huge_pages: false, log, ..Config::default() };
    let engine = Engine::new(Box::new(backend), config).unwrap();
    for start in [0, 1 << 40] {
        engine.map_region(ram(start, expected as u64 * GIB)).unwrap();
    }
    let own = look();
    let mut seen = seen.lock().unwrap();
    let (workers, caller): (Vec<_>, Vec<_>) =
        seen.drain(..).partition(|(name, _)| name.starts_with("vfio-fast-"));
    assert!(caller.iter().all(|(_, seen)| *seen == own), "the calling thread stays as it is: {caller:?}");
    assert_eq!((workers.len(), caller.len()), (2 * (expected - 1), 2));
    let workers = workers.into_iter().map(|(_, seen)| seen).collect();
    (workers, lines.lock().unwrap().clone(), own)
}

/// Runs this test again, in a process of its own whose main thread is bound to these CPUs, and its threads with it.
fn in_a_process_bound_to(cpus: &[usize], name: &str) {
    let set = set_of(cpus);
    let mut child = Command::new(std::env::current_exe().unwrap());
    let bind = move || {
        // SAFETY: the call reads the size of the set.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    passes(unsafe { child.pre_exec(bind) }.env(CHILD, "1"), name);
}

/// Runs one test of this program, which `child` starts.
fn passes(child: &mut Command, name: &str) {
    let child = child.args(["--exact", name, "--test-threads=1"]).output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

const CHILD: &str = "PLACEMENT_TEST_IN_A_CHILD";

/// Runs a test on a thread of its own, which it may bind.
fn apart(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The line about few threads; none if all CPUs work.
fn line(threads: usize, why: &str) -> Vec<String> {
    // One line for all CPUs, and one for each that is online.
    let statistics = fs::read_to_string("/proc/stat").unwrap();
    let online = statistics.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    if threads < online { vec![format!("Commits use {threads} of {online} CPUs: {why}")] } else { vec![] }
}

#[test]
fn workers_of_a_bound_thread_run_where_the_process_may() {
    apart(|| {
        let process = process_cpus();
        let own = &process[..1];
        bind(own).unwrap();
        let (workers, lines, caller) = commit(3, 3, None);
        assert!(workers.iter().all(|worker| worker.cpus == process), "{workers:?}");
        assert_eq!((caller.cpus, lines), (own.to_vec(), line(3, "this number of threads is configured")));
        // Their number, too, is that of the process.
        let all = process.len();
        assert_eq!(commit(all, 0, None).1, line(all, "the affinity mask of the process has no more"));
    });
}

#[test]
fn a_bound_process_is_obeyed_and_told() {
    if std::env::var_os(CHILD).is_none() {
        return in_a_process_bound_to(&process_cpus()[..1], "a_bound_process_is_obeyed_and_told");
    }
    let one = process_cpus();
    let (workers, lines, _) = commit(1, 0, None);
    assert_eq!((workers.len(), lines), (0, line(1, "the affinity mask of the process has no more")));
    let (workers, ..) = commit(2, 2, None);
    assert!(workers.iter().all(|worker| worker.cpus == one), "{workers:?}");
}

/// A new cgroup that may use one CPU. With version 1, the CPUs have a hierarchy of their own.
struct OneCpu {
    group: PathBuf,
    version: u32,
}

impl OneCpu {
    /// `None` if this process may not make one.
    fn new() -> Option<Self> {
        let versions = [
            (2, "/sys/fs/cgroup", "cpu.max", "100000 100000"),
            (1, "/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "100000"),
        ];
        versions.into_iter().find_map(|(version, root, file, quota)| {
            let group = Path::new(root).join(format!("vfio-fast-test-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let new = Self { group, version };
            // The root has the file only in version 1, so this fails in a directory that is no cgroup of CPUs.
            let file = new.group.join(file);
            (file.exists() && fs::write(file, quota).is_ok()).then_some(new)
        })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.group);
    }
}

#[test]
fn a_quota_is_obeyed_and_told() {
    let why = "the CPU quota of the cgroup allows no more";
    if let Ok(version) = std::env::var(CHILD) {
        assert!(process_cpus().len() == 1 || commit(1, 0, None).1 == line(1, why));
        // The standard library counts no further than the mask of the thread; the engine itself reads version 2.
        if version == "2" {
            apart(move || {
                let process = process_cpus();
                bind(&process[..1]).unwrap();
                assert!(process.len() == 1 || commit(1, 0, None).1 == line(1, why));
            });
        }
        return;
    }
    let Some(group) = OneCpu::new() else {
        eprintln!("not tested: no cgroup can be made");
        return;
    };
    let own = std::env::current_exe().unwrap();
    let mut child = Command::new("sh");
    child.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&group.group).arg(own);
    passes(child.env(CHILD, group.version.to_string()), "a_quota_is_obeyed_and_told");
}

#[test]
fn a_thread_with_more_cpus_than_the_process_keeps_them() {
    let all = process_cpus();
    if std::env::var_os(CHILD).is_none() {
        return in_a_process_bound_to(&all[..1], "a_thread_with_more_cpus_than_the_process_keeps_them");
    }
    apart(move || {
        // As many CPUs as the machine allows.
        bind(&(0..libc::CPU_SETSIZE as usize).collect::<Vec<_>>()).unwrap();
        let own = cpus_of(0);
        assert!(own.len() >= all.len());
        let (workers, ..) = commit(own.len(), 0, None);
        assert!(workers.iter().all(|worker| worker.cpus == own), "{workers:?}");
    });
}

#[test]
fn a_configured_set_binds_the_workers_and_not_the_caller() {
    apart(|| {
        let process = process_cpus();
        let last = process[process.len() - 1];
        let mut bytes = vec![0; 128];
        bytes[last / 8] = 1 << (last % 8);
        // A CPU that the machine does not have.
        bytes[1000 / 8] |= 1 << (1000 % 8);
        let set = CpuSet::from_bytes(&bytes).unwrap();
        let (workers, ..) = commit(2, 2, Some(set));
        assert!(workers.iter().all(|worker| worker.cpus == [last]), "{workers:?}");
        bytes[1000 / 8] = 0;
        let (_, lines, _) = commit(1, 0, CpuSet::from_bytes(&bytes));
        assert_eq!(lines, line(1, "the configured CPU set has no more"));
        // Nothing of the set exists: the threads work where they are.
        let mut bytes = vec![0; 128];
        bytes[1000 / 8] = 1;
        let (workers, lines, caller) = commit(3, 3, CpuSet::from_bytes(&bytes));
        assert!(workers.iter().all(|worker| worker.cpus == caller.cpus), "{workers:?}");
        assert!(lines.iter().all(|line| line.starts_with("Commits use")), "{lines:?}");
    });
}

/// A sandbox and a cpuset refuse CPUs as the kernel refuses those that do not exist.
#[test]
fn refused_cpus_are_told_once() {
    let memory = RealMemory::new();
    let mut bytes = vec![0; 128];
    bytes[1000 / 8] = 1;
    let lines = Arc::<Mutex<Vec<String>>>::default();
    let log = Log::to({
        let lines = lines.clone();
        move |_, line| lines.lock().unwrap().push(line.to_owned())
    });
    let cpu_set = CpuSet::from_bytes(&bytes);
    let config =
        Config { threads: 3, oversubscribe: true, cpu_set, huge_pages: false, log, ..Config::default() };
    let sim = Sim::new(SimConfig { populate: PopulatePolicy::Upfront, ..keeping(Rules::Type1) });
    let engine = Engine::new(Box::new(sim), config).unwrap();
    for _ in 0..2 {
        memory.cool();
        let region = Region { hva: hva(hva_of(1, 0)), ..ram(0, 2 * UNITS * UNIT) };
        engine.map_region(region).unwrap();
        engine.unmap(region.range).unwrap();
    }
    assert!(engine.stats().threads_peak > 1);
    let lines = lines.lock().unwrap();
    let told = lines.iter().filter(|line| line.contains("may not leave the CPUs of the calling thread"));
    assert_eq!(told.count(), 1, "{lines:?}");
}

#[test]
fn workers_of_a_real_time_thread_are_ordinary() {
    apart(|| {
        let main = std::process::id();
        for policy in [libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK] {
            // `struct sched_param` of the kernel.
            let priority: libc::c_int = 1;
            // SAFETY: the call reads the parameter; 0 is the calling thread.
            if unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) } != 0 {
                eprintln!("not tested: {}", std::io::Error::last_os_error());
                return;
            }
            let (workers, _, caller) = commit(3, 3, None);
            assert_eq!(caller.policy, policy);
            // SAFETY: the call has no pointer arguments.
            let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, main) };
            // Where the policy is reset on fork, the kernel resets the nice value to 0, too.
            let ordinary =
                |worker: &Seen| worker.policy == libc::SCHED_OTHER && [nice, 0].contains(&worker.nice);
            assert!(workers.iter().all(ordinary), "{policy:#x}: {workers:?}");
        }
    });
}

#[test]
fn a_policy_for_memory_is_passed_on() {
    apart(|| {
        const INTERLEAVE: libc::c_int = 3;
        let nodes = 1u64;
        // SAFETY: the call reads a mask of 64 bits, less one.
        let answer = unsafe { libc::syscall(libc::SYS_set_mempolicy, INTERLEAVE, &raw const nodes, 64u64) };
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        let (workers, _, caller) = commit(3, 3, None);
        assert_eq!(caller.memory_policy, INTERLEAVE);
        assert!(workers.iter().all(|worker| worker.memory_policy == INTERLEAVE), "{workers:?}");
    });
}
