//! Measures what mapping real guest memory costs: the engine compared with stock QEMU and with the machine's limits.
//!
//! Prints JSON lines ([`vfio_fast_protocol::bench::native`]) on stdout and its progress on stderr; `cargo xtask
//! bench` makes tables and plots of them. io_uring's pins stand in for the map ioctl ([`vfio_fast_measure::pins`]).
//! Every case runs in a process of its own. The cases of one round run in succession, so that other load on the
//! machine affects all of them alike.
#![allow(unsafe_code, reason = "the memory that is measured is mapped by hand")]

mod child;
mod huge_pages;
mod mapper;

use std::env::current_exe;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio, exit};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use child::{Job, Worked, tell};
use mapper::Mapper;
use vfio_fast_measure::memory::Memory;
use vfio_fast_measure::pins::PinStandIn;
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_protocol::bench::host::{self, Busy};
use vfio_fast_protocol::bench::native::{Case, LeftOut, Others, Record, Sample};
use vfio_fast_protocol::memory::MemoryKind;

/// `EX_UNAVAILABLE`, the exit status of every tool here that cannot run on a machine.
const UNAVAILABLE: i32 = 69;
const GIB: u64 = 1 << 30;
/// Maximum guest size for [`Case::Batch`]: in larger guests the cost of a call is the same.
const MOST_FOR_BATCHES: u64 = 4 * GIB;
/// A number of threads to compare with the number of CPUs, as a multiple of that. The engine does not start so many.
const CROWD: usize = 32;
/// Memory left free for everything else.
const SPARE: u64 = 2 * GIB;

/// Measures what mapping guest memory costs.
#[derive(Parser)]
struct Args {
    /// Guest sizes in GiB; fractions are allowed
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 2.0, 4.0, 8.0, 16.0])]
    sizes: Vec<f64>,
    /// Kinds of memory
    #[arg(long, value_delimiter = ',', value_parser = kind, default_values = MemoryKind::ALL.map(MemoryKind::name))]
    kinds: Vec<MemoryKind>,
    /// Threads of the engine [default: powers of two up to the CPUs, and those; on guests of up to 4 GiB also 2, 4 and 32
    /// times as many]
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// 4 KiB pages per populate call to compare the engine's chunks with, on guests of up to 4 GiB
    #[arg(long, value_delimiter = ',', default_values_t = [1, 512, 16384])]
    batches: Vec<u64>,
    /// Rounds per case
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Map for this device, bound to vfio-pci, instead of pinning through io_uring
    #[arg(long, value_name = "PCI ADDRESS")]
    device: Option<String>,
    /// What maps for the device
    #[arg(long, default_value_t = Driver::Iommufd)]
    driver: Driver,
    /// The case that this process measures, if it is a child
    #[arg(long, hide = true, value_parser = case)]
    child: Option<Case>,
    #[arg(long, hide = true, default_value_t = 0)]
    bytes: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(case) = args.child {
        return child::run(&Job {
            case,
            memory: args.kinds[0],
            bytes: args.bytes,
            threads: args.threads[0],
            pages_per_call: args.batches[0],
            round: args.rounds,
            device: args.device,
            driver: args.driver,
        });
    }
    measure(&args)
}

fn measure(args: &Args) -> Result<()> {
    if args.device.is_none()
        && let Err(error) = PinStandIn::new(0)
    {
        eprintln!("This machine allows no io_uring, which stands in for VFIO here: {error}");
        exit(UNAVAILABLE);
    }
    tell(&Record::Machine(host::machine(Mapper::name(args.device.as_deref(), args.driver))));
    let mut sizes: Vec<u64> =
        args.sizes.iter().map(|gib| (gib * GIB as f64) as u64 & !((2 << 20) - 1)).collect();
    ensure!(sizes.iter().all(|bytes| *bytes > 0), "A size is below 2 MiB");
    sizes.sort_unstable();
    for &bytes in &sizes {
        for &memory in &args.kinds {
            if let Some(why) = obstacle(memory, bytes) {
                eprintln!("{} of {}: left out: {why}", gib(bytes), memory.name());
                tell(&Record::LeftOut(LeftOut { memory, bytes, why }));
                continue;
            }
            for round in 0..args.rounds {
                eprintln!("{} of {}: round {} of {}", gib(bytes), memory.name(), round + 1, args.rounds);
                let mut jobs = jobs(args, memory, bytes, round);
                if round % 2 == 1 {
                    // Alternate the order, so that a drift within a round does not favour one case.
                    jobs.reverse();
                }
                let before = Busy::now();
                for job in &jobs {
                    run(job).with_context(|| format!("{job:?}"))?;
                }
                let share = Busy::now().others_since(&before);
                tell(&Record::Others(Others { round, memory, bytes, share }));
            }
        }
    }
    Ok(())
}

fn jobs(args: &Args, memory: MemoryKind, bytes: u64, round: u32) -> Vec<Job> {
    let cpus = host::cpus();
    let mut threads = args.threads.clone();
    if threads.is_empty() {
        threads = doubled(cpus);
        threads.extend((bytes <= MOST_FOR_BATCHES).then_some(CROWD * cpus));
    }
    let (device, driver) = (args.device.clone(), args.driver);
    let job = Job { case: Case::Stock, memory, bytes, threads: 1, pages_per_call: 0, round, device, driver };
    let mut jobs = vec![job.clone()];
    jobs.extend([Case::Prealloc, Case::RegionByRegion].map(|case| Job {
        case,
        threads: cpus,
        ..job.clone()
    }));
    jobs.extend(threads.into_iter().map(|threads| Job { case: Case::Engine, threads, ..job.clone() }));
    jobs.push(Job { case: Case::Bare, threads: cpus, ..job.clone() });
    if args.device.is_some() && driver == Driver::Type1 {
        // The engine itself maps after the fault-in here.
        return jobs;
    }
    jobs.push(Job { case: Case::InTurn, threads: cpus, ..job.clone() });
    if args.device.is_some() {
        // With iommufd, map calls run concurrently and by file.
        jobs.push(Job { case: Case::MapsOnly, threads: cpus, ..job.clone() });
        jobs.extend(memory.is_memfd().then(|| Job { case: Case::ByAddress, threads: cpus, ..job.clone() }));
        return jobs;
    }
    let batches = args.batches.iter().filter(|_| bytes <= MOST_FOR_BATCHES);
    jobs.extend(batches.map(|&pages_per_call| Job {
        case: Case::Batch,
        threads: cpus,
        pages_per_call,
        ..job.clone()
    }));
    jobs
}

/// Uses as much memory as the job will need, and frees it. If this machine is itself a guest, memory that it has not
/// used recently may cost an additional fault in its host, because the balloon returns free pages to the host after a
/// while.
fn warm(job: &Job) -> Result<()> {
    // Freed huge pages can serve any page size; hugetlb pages return to their own pools.
    let memory = if job.memory.reserved_page().is_some() { job.memory } else { MemoryKind::AnonThp };
    Memory::new(memory, job.bytes)?.clear(host::cpus());
    Ok(())
}

fn run(job: &Job) -> Result<()> {
    warm(job)?;
    if job.case == Case::Bare {
        let sample = bare(job.memory, job.bytes, job.threads, job.round)?;
        tell(&Record::Sample(sample));
        return Ok(());
    }
    let ended = command(job)?.status()?;
    ensure!(ended.success(), "The process that measured it ended with {ended}");
    Ok(())
}

/// Measures with one process per CPU, each with its own part of the memory: from the start of the first one to the
/// end of the last one.
fn bare(memory: MemoryKind, bytes: u64, processes: usize, round: u32) -> Result<Sample> {
    let part = part(memory, bytes, processes);
    let mut children = Vec::new();
    for number in 0..processes {
        let job = Job {
            case: Case::Bare,
            memory,
            bytes: part,
            threads: 1,
            pages_per_call: 0,
            round: number as u32,
            device: None,
            driver: Driver::Type1,
        };
        children.push(command(&job)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    }
    let worked = race(&mut children);
    for mut child in children {
        if worked.is_err() {
            // It may be waiting for input that will not arrive.
            let _ = child.kill();
        }
        child.wait()?;
    }
    let worked = worked?;
    let from = worked.iter().map(|worked| worked.from).min().unwrap_or(0);
    let to = worked.iter().map(|worked| worked.to).max().unwrap_or(0);
    // The parts can be larger in total than the memory requested.
    let scale = bytes as f64 / (part * processes as u64) as f64;
    Ok(Sample {
        round,
        case: Case::Bare,
        memory,
        bytes,
        threads: processes,
        pages_per_call: None,
        seconds: (to - from) as f64 / 1e9 * scale,
        populate_seconds: None,
        pin_seconds: None,
        huge_bytes: worked.iter().map(|worked| worked.huge_bytes).sum(),
    })
}

/// The memory of each of `processes` that share `bytes` of memory.
fn part(memory: MemoryKind, bytes: u64, processes: usize) -> u64 {
    (bytes / processes as u64).next_multiple_of(memory.reserved_page().unwrap_or(2 << 20))
}

/// Waits until every process is ready, starts all of them at once, and returns when each of them worked.
fn race(children: &mut [Child]) -> Result<Vec<Worked>> {
    let mut answers = Vec::new();
    for child in &mut *children {
        let mut answer = BufReader::new(child.stdout.take().context("No pipe")?);
        answer.read_line(&mut String::new())?;
        answers.push(answer);
    }
    for child in children {
        child.stdin.take().context("No pipe")?.write_all(b"\n")?;
    }
    let mut worked = Vec::new();
    for mut answer in answers {
        let mut text = String::new();
        answer.read_to_string(&mut text)?;
        worked.push(serde_json::from_str(&text).context("A process ended without an answer")?);
    }
    Ok(worked)
}

fn command(job: &Job) -> Result<Command> {
    let mut command = Command::new(current_exe()?);
    command.args(["--child", name_of(job.case), "--kinds", job.memory.name()]);
    for (name, value) in [
        ("--bytes", job.bytes),
        ("--threads", job.threads as u64),
        ("--batches", job.pages_per_call),
        ("--rounds", job.round.into()),
    ] {
        command.args([name.to_owned(), value.to_string()]);
    }
    command.args(job.device.iter().flat_map(|address| ["--device", address]));
    command.args(["--driver", &job.driver.to_string()]);
    Ok(command)
}

/// The reason why this case cannot be measured now, if it cannot.
fn obstacle(memory: MemoryKind, bytes: u64) -> Option<String> {
    if let Some(why) = huge_pages::refusal(memory) {
        return Some(why);
    }
    if memory.reserved_page().is_some_and(|page| !bytes.is_multiple_of(page)) {
        return Some("not a multiple of the page".into());
    }
    // The parts of several processes can be larger in total.
    let bytes = bytes.max(part(memory, bytes, host::cpus()) * host::cpus() as u64);
    // Reserved hugetlb pages are not included in the available memory.
    let set_aside = memory.reserved_page().is_some() && huge_pages::set_aside(memory) >= bytes;
    if !set_aside && !fits(bytes) {
        let available = gib(host::available());
        return Some(format!("only {available} of memory are available, and {} stay free", gib(SPARE)));
    }
    let reserved = Memory::new(memory, bytes);
    reserved.err().map(|error| format!("{error}; for hugetlb, see nr_hugepages in /sys/kernel/mm/hugepages/"))
}

fn fits(bytes: u64) -> bool {
    bytes + SPARE <= host::available()
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIB as f64)
}

/// The powers of two below `most`, and `most`.
fn doubled(most: usize) -> Vec<usize> {
    let mut threads: Vec<usize> =
        (0..).map(|power| 1 << power).take_while(|threads| *threads < most).collect();
    threads.push(most);
    threads
}

fn kind(name: &str) -> Result<MemoryKind> {
    let found = MemoryKind::ALL.into_iter().find(|kind| kind.name() == name);
    found.with_context(|| format!("One of {}", MemoryKind::ALL.map(MemoryKind::name).join(", ")))
}

const CHILDREN: [(&str, Case); 9] = [
    ("stock", Case::Stock),
    ("prealloc", Case::Prealloc),
    ("region-by-region", Case::RegionByRegion),
    ("engine", Case::Engine),
    ("in-turn", Case::InTurn),
    ("maps-only", Case::MapsOnly),
    ("by-address", Case::ByAddress),
    ("batch", Case::Batch),
    ("bare", Case::Bare),
];

fn case(name: &str) -> Result<Case> {
    match CHILDREN.iter().find(|(known, _)| *known == name) {
        Some((_, case)) => Ok(*case),
        None => bail!("No such case"),
    }
}

fn name_of(case: Case) -> &'static str {
    CHILDREN.iter().find(|(_, known)| *known == case).map_or("", |(name, _)| name)
}
