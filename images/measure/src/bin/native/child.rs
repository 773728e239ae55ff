//! Measures one case in a process of its own: no page of its memory was accessed before, and all of it is freed
//! afterwards.

use std::io::{BufRead, Write};
use std::mem::{size_of, zeroed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping, PopulatePolicy};
use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::populate::{self, HostRange, Method, PopulateOptions};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::stats::Stats;
use vfio_fast_engine::{Config, Engine};

use crate::mapper::Mapper;
use vfio_fast_measure::memory::Memory;
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_protocol::bench::host;
use vfio_fast_protocol::bench::native::{Case, Record, Sample};
use vfio_fast_protocol::memory::MemoryKind;

const PAGE: u64 = 4 << 10;
/// The address at which a q35 machine's RAM continues above the PCI hole, and the maximum amount of RAM below it.
const ABOVE_HOLE: u64 = 4 << 30;
const MOST_BELOW: u64 = 2 << 30;
/// The size of the engine's entries, also used by [`Case::Batch`].
const ENTRY: u64 = 1 << 30;

/// The parameters of one case.
#[derive(Clone, Debug)]
pub struct Job {
    pub case: Case,
    pub memory: MemoryKind,
    pub bytes: u64,
    pub threads: usize,
    pub pages_per_call: u64,
    pub round: u32,
    /// The device to map for; `None`: pin through io_uring.
    pub device: Option<String>,
    /// What maps for the device.
    pub driver: Driver,
}

/// The start and end of the work in a process of [`Case::Bare`], in nanoseconds of CLOCK_MONOTONIC, which all
/// processes share.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Worked {
    pub from: u64,
    pub to: u64,
    pub huge_bytes: u64,
}

/// Measures the case and prints its samples.
pub fn run(job: &Job) -> Result<()> {
    let memory = Memory::new(job.memory, job.bytes).context("Cannot map the guest's memory")?;
    match job.case {
        Case::Stock => stock(job, &memory),
        Case::Prealloc | Case::RegionByRegion => split(job, &memory),
        Case::Engine | Case::ByAddress => engine(job, &memory, None),
        Case::InTurn => engine(job, &memory, Some(PopulatePolicy::Upfront)),
        Case::MapsOnly => engine(job, &memory, Some(PopulatePolicy::Never)),
        Case::Batch => batch(job, &memory),
        Case::Bare => bare(job, &memory),
        case => Err(anyhow!("{case:?} is measured as a part of another case")),
    }
}

/// Measures cold memory, then the same memory again, then clearing it, which needs present memory.
fn stock(job: &Job, memory: &Memory) -> Result<()> {
    for case in [Case::Stock, Case::RemapStock] {
        let pins = job.mapper()?;
        let start = Instant::now();
        for region in regions(memory, job.bytes) {
            pin(&pins, region.range, region.hva)?;
        }
        let took = start.elapsed();
        job.tell(Sample { pin_seconds: Some(took.as_secs_f64()), ..job.sample(case, took, memory) });
        let start = Instant::now();
        for region in regions(memory, job.bytes) {
            let bytes = pins.unmap(region.range).map_err(|errno| anyhow!("Cannot unpin: {errno}"))?;
            ensure!(bytes == region.range.length(), "{bytes} bytes were unpinned");
        }
        if case == Case::Stock {
            job.tell(job.sample(Case::UnmapStock, start.elapsed(), memory));
        }
    }
    let threads = host::cpus();
    let cleared = memory.clear(threads);
    job.tell(Sample { threads, ..job.sample(Case::Clear, cleared, memory) });
    Ok(())
}

/// Measures cold memory in the order of calls that other programs use: every thread faults in one part, then there is
/// one map per region.
fn split(job: &Job, memory: &Memory) -> Result<()> {
    let pins = job.mapper()?;
    let regions = regions(memory, job.bytes);
    let offset = |region: &Region| region.hva.raw() - memory.hva().raw();
    let parts: Vec<(u64, u64)> = match job.case {
        Case::Prealloc => vec![(0, job.bytes)],
        _ => regions.iter().map(|region| (offset(region), region.range.length())).collect(),
    };
    let start = Instant::now();
    for (offset, length) in parts {
        memory.populate_split(offset, length, job.threads).context("Cannot fault in")?;
    }
    let populated = start.elapsed();
    for region in &regions {
        pin(&pins, region.range, region.hva)?;
    }
    let took = start.elapsed();
    pins.unmap_all().map_err(|errno| anyhow!("Cannot unpin: {errno}"))?;
    job.tell(Sample {
        populate_seconds: Some(populated.as_secs_f64()),
        pin_seconds: Some((took - populated).as_secs_f64()),
        ..job.sample(job.case, took, memory)
    });
    Ok(())
}

/// Measures cold memory, then the same memory again in a second container. `populates` replaces the backend's policy.
fn engine(job: &Job, memory: &Memory, populates: Option<PopulatePolicy>) -> Result<()> {
    let again = (job.case == Case::Engine).then_some(Case::RemapEngine);
    for case in [Some(job.case), again].into_iter().flatten() {
        let config =
            Config { threads: job.threads, huge_pages: job.memory.may_be_huge(), ..Config::default() };
        let mut mapper = job.mapper()?;
        mapper.populates = populates.unwrap_or(mapper.populates);
        mapper.objects &= job.case != Case::ByAddress;
        let engine = Engine::new(Box::new(mapper), config)?;
        let start = Instant::now();
        engine.begin()?;
        for region in regions(memory, job.bytes) {
            let offset = region.hva.raw() - memory.hva().raw();
            match memory.file() {
                Some(fd) => {
                    let object = ObjectRef { fd: fd.into(), kind: ObjectKind::Memory, offset };
                    engine.map_object(region, &object)?
                }
                None => engine.map_region(region)?,
            }
        }
        engine.commit()?;
        let took = start.elapsed();
        let stats = engine.stats();
        ensure!(stats.mapped_bytes == job.bytes, "{} bytes are mapped", stats.mapped_bytes);
        job.tell(Sample { ..parts(&stats, job.sample(case, took, memory)) });
        let start = Instant::now();
        ensure!(engine.unmap(IovaRange::ALL)? == job.bytes, "Not all was wanted");
        if case == Case::Engine {
            job.tell(job.sample(Case::UnmapEngine, start.elapsed(), memory));
        }
        engine.close()?;
    }
    Ok(())
}

fn parts(stats: &Stats, sample: Sample) -> Sample {
    let seconds = |nanoseconds| Some(Duration::from_nanos(nanoseconds).as_secs_f64());
    Sample { populate_seconds: seconds(stats.populate_ns), pin_seconds: seconds(stats.map_ns), ..sample }
}

/// Measures cold memory with the engine's own fault-in, but another number of bytes per call.
fn batch(job: &Job, memory: &Memory) -> Result<()> {
    let pins = job.mapper()?;
    let piece = HostRange { hva: memory.hva(), bytes: job.bytes, writable: true };
    let start = Instant::now();
    let (threads, huge_pages) = (job.threads, job.memory.may_be_huge());
    let how = PopulateOptions {
        threads,
        cpus: None,
        method: Method::Advice,
        huge_pages,
        chunk: job.pages_per_call * PAGE,
        control: None,
    };
    let report = populate::populate(&[piece], how);
    let populated = start.elapsed();
    for region in regions(memory, job.bytes) {
        let length = region.range.length();
        for offset in (0..length).step_by(ENTRY as usize) {
            let hva = region.hva.checked_add(offset).context("The memory's end")?;
            pin(&pins, range(region.range.start() + offset, ENTRY.min(length - offset))?, hva)?;
        }
    }
    let took = start.elapsed();
    pins.unmap_all().map_err(|errno| anyhow!("Cannot unpin: {errno}"))?;
    ensure!(report.skipped_bytes == 0, "{report:?}");
    job.tell(Sample {
        pages_per_call: Some(job.pages_per_call),
        populate_seconds: Some(populated.as_secs_f64()),
        pin_seconds: Some((took - populated).as_secs_f64()),
        ..job.sample(Case::Batch, took, memory)
    });
    Ok(())
}

/// Waits for a line on stdin, faults in, and prints start and end. The process is bound to one CPU, because the speed
/// at which the scheduler spreads processes is not a limit of the machine. [`Job::round`] is the number of the CPU
/// here.
fn bare(job: &Job, memory: &Memory) -> Result<()> {
    stay_on_allowed_cpu(job.round as usize);
    println!();
    let mut word = String::new();
    std::io::stdin().lock().read_line(&mut word)?;
    let from = monotonic();
    memory.populate().context("Cannot fault in")?;
    let to = monotonic();
    println!("{}", serde_json::to_string(&Worked { from, to, huge_bytes: memory.huge_bytes() })?);
    Ok(())
}

impl Job {
    fn mapper(&self) -> Result<Mapper> {
        Mapper::new(self.device.as_deref(), self.driver, self.bytes)
    }

    fn sample(&self, case: Case, took: Duration, memory: &Memory) -> Sample {
        Sample {
            round: self.round,
            case,
            memory: self.memory,
            bytes: self.bytes,
            threads: self.threads,
            pages_per_call: None,
            seconds: took.as_secs_f64(),
            populate_seconds: None,
            pin_seconds: None,
            huge_bytes: memory.huge_bytes(),
        }
    }

    fn tell(&self, sample: Sample) {
        tell(&Record::Sample(sample));
    }
}

/// Prints a record and flushes stdout.
pub fn tell(record: &Record) {
    let line = serde_json::to_string(record).expect("plain data");
    let mut out = std::io::stdout().lock();
    // An error means that the reader closed the pipe, so there is nothing to report to.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn pin(pins: &Mapper, range: IovaRange, hva: HostVa) -> Result<()> {
    pins.map(&Mapping { range, hva, perm: Perm::ReadWrite }, None).map_err(|errno| {
        anyhow!("Cannot pin {range}: {errno}. With ENOMEM, raise `ulimit -l` or run with CAP_IPC_LOCK.")
    })
}

/// The guest's RAM in the layout of a q35 machine: below the PCI hole and above.
fn regions(memory: &Memory, bytes: u64) -> Vec<Region> {
    let below = bytes.min(MOST_BELOW);
    let parts = [(0, 0, below), (ABOVE_HOLE, below, bytes - below)];
    let regions = parts.into_iter().filter(|(_, _, length)| *length > 0).map(|(iova, offset, length)| {
        let hva = memory.hva().checked_add(offset).expect("the memory is mapped to its end");
        let range = range(iova, length).expect("guests are smaller than the address space");
        Region {
            range,
            hva,
            perm: Perm::ReadWrite,
            kind: Kind::Ram,
            backing: Backing(1),
            join: false,
            exact: false,
        }
    });
    regions.collect()
}

fn range(iova: u64, length: u64) -> Result<IovaRange> {
    IovaRange::new(Iova(iova), length).context("Not a range")
}

/// Binds this process to one of the CPUs that it may run on, selected by number.
fn stay_on_allowed_cpu(number: usize) {
    let bytes = size_of::<libc::cpu_set_t>();
    // SAFETY: a plain set of bits, for which all zeroes is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: writes at most `bytes` bytes to the set.
    if unsafe { libc::sched_getaffinity(0, bytes, &mut allowed) } != 0 {
        return;
    }
    // SAFETY: the CPU's number is below what the set can hold.
    let may = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let Some(cpu) = (0..libc::CPU_SETSIZE as usize).filter(may).nth(number) else { return };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the CPU's number is below what the set can hold.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    // SAFETY: reads `bytes` bytes of the set. A refusal leaves the process where it was, which is no harm.
    let _ = unsafe { libc::sched_setaffinity(0, bytes, &one) };
}

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
