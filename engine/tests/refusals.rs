//! Every refusal that docs/QEMU.md lists, as the library prints it: the table and the code cannot differ.
#![allow(unsafe_code, reason = "maps memory and names host addresses")]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use common::files::{file_ram, mount, run_in_own_mounts};
use common::memory::time_data;
use common::seccomp::Kernel;
use common::{hva, keeping, ram, range};
use memfd::MemfdOptions;
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::error::{Error, ErrorKind, Op, PageFault};
use vfio_fast_engine::limits::UserCharges;
use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Descriptor, DiscardMode, Engine, Errno, discard_range};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// The page with the table.
const PAGE_OF_ERRORS: &str = include_str!("../../docs/QEMU.md");
/// The highest errno of Linux for programs (EHWPOISON).
const LAST_ERRNO: i32 = 133;
/// The marks of lines that are a kind of refusal and a refusal, in what a test of another process prints.
const KIND: &str = "kind: ";
const MARK: &str = "refusal: ";

/// The names of the variants of an enum, and the one that a value has. A variant that is not listed does not compile.
macro_rules! variants {
    ($names:ident, $name_of:ident, $type:ty, $($pattern:pat),+ $(,)?) => {
        const $names: &[&str] = &[$(stringify!($pattern)),+];

        fn $name_of(value: &$type) -> &'static str {
            match value {
                $($pattern => stringify!($pattern)),+
            }
        }
    };
}

variants!(
    KINDS,
    name_of_kind,
    ErrorKind,
    ErrorKind::Kernel,
    ErrorKind::Misaligned { .. },
    ErrorKind::BadRange,
    ErrorKind::Overlap { .. },
    ErrorKind::CutsExact { .. },
    ErrorKind::Memlock { .. },
    ErrorKind::UserMemlock { .. },
    ErrorKind::NoMemory { user_limit: None, .. },
    ErrorKind::NoMemory { user_limit: Some(_), .. },
    ErrorKind::Entries(_),
    ErrorKind::OutsideIova { .. },
    ErrorKind::Foreign,
    ErrorKind::ByteCount { .. },
    ErrorKind::Transaction { open: true },
    ErrorKind::Transaction { open: false },
    ErrorKind::OtherThread,
    ErrorKind::Suspended,
    ErrorKind::NoHandover,
    ErrorKind::NotHandedOver,
    ErrorKind::Poisoned { .. },
    ErrorKind::FileSystemFull { system: "hugetlbfs", .. },
    ErrorKind::FileSystemFull { .. },
    ErrorKind::NoHugePages { .. },
    ErrorKind::DiskFile { .. },
    ErrorKind::Page { fault: PageFault::Hole, .. },
    ErrorKind::Page { fault: PageFault::NoAccess { write: true }, .. },
    ErrorKind::Page { fault: PageFault::NoAccess { write: false }, .. },
    ErrorKind::Page { fault: PageFault::Device, .. },
    ErrorKind::Page { fault: PageFault::Poisoned, .. },
    ErrorKind::Page { fault: PageFault::Bus, .. },
    ErrorKind::Malformed(_),
    ErrorKind::Other(_),
);

/// The operations. One that is not listed does not compile.
const OPS: [Op; 7] = [Op::Open, Op::Check, Op::Map, Op::Unmap, Op::Info, Op::Dirty, Op::Discard];
const _: fn(Op) = |op| match op {
    Op::Open | Op::Check | Op::Map | Op::Unmap | Op::Info | Op::Dirty | Op::Discard => {}
};

fn print(error: &Error) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    println!("\n{KIND}{}\n{MARK}{text}", name_of_kind(&error.kind));
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) {
    print(&answer.unwrap_err());
}

fn engine(config: SimConfig) -> (Engine, Sim) {
    common::engine_with(1, config)
}

/// Maps a region in a container in which call `nth` fails.
fn kernel_refuses(rules: Rules, errno: Errno) {
    refused(engine(SimConfig { failures: vec![(1, errno)], ..keeping(rules) }).0.map_region(ram(0, PAGE)));
}

/// Memory of `bytes` bytes, never unmapped.
fn mapped(bytes: u64, protection: libc::c_int, flags: libc::c_int, file: Option<&File>) -> u64 {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: without MAP_FIXED a mapping replaces nothing.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes as usize, protection, flags, fd, 0) };
    assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    address as u64
}

/// Maps memory that the kernel cannot pin.
fn unpinnable(address: u64, bytes: u64, kind: Kind) {
    let (engine, _) = engine(SimConfig { unmappable: vec![(address, address)], ..SimConfig::default() });
    refused(engine.map_region(Region { hva: hva(address), kind, ..ram(0, bytes) }));
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

fn limits() {
    let limit = Some(6 * MIB);
    let (type1, _) = engine(SimConfig { memlock_limit: limit, ..SimConfig::default() });
    type1.map_region(ram(0, 4 * MIB)).unwrap();
    refused(type1.map_region(ram(1 << 32, 4 * MIB)));
    // A single page is compared with the limit after the kernel has refused it.
    for bytes in [PAGE, 2 * MIB, 8 * MIB] {
        let charges = UserCharges {
            user: 1000,
            others: 6 * MIB,
            processes: 1,
            largest: Some((7, "qemu".into(), 6 * MIB)),
            own: 0,
        };
        let (iommufd, _) = engine(SimConfig { memlock_limit: limit, charges, ..keeping(Rules::Iommufd) });
        let error = iommufd.map_region(ram(0, bytes)).unwrap_err();
        assert_eq!(error.needed_and_available(), Some((6 * MIB + bytes, 6 * MIB)));
        print(&error);
    }
    kernel_refuses(Rules::Type1, Errno::ENOMEM);
    let unseen =
        SimConfig { memlock_limit: limit, failures: vec![(1, Errno::ENOMEM)], ..keeping(Rules::Iommufd) };
    refused(engine(unseen).0.map_region(ram(0, PAGE)));

    entries();

    let ranges = vec![range(0, 0xfee0_0000), range(0xfef0_0000, (1 << 39) - 0xfef0_0000)];
    let (narrow, _) = engine(SimConfig { iova_ranges: ranges, ..SimConfig::default() });
    let error = narrow.map_region(ram(1 << 39, PAGE)).unwrap_err();
    let valid = "39-bit addresses, only [0x0, 0xfedfffff] [0xfef00000, 0x7fffffffff]";
    assert!(error.to_string().contains(valid), "{error}");
    print(&error);
    // A BAR is left to the kernel, and its refusal has the same reason.
    refused(narrow.map_region(Region { kind: Kind::Device, ..ram(1 << 39, PAGE) }));
    // The container changed after its limits were read.
    let (moved, sim) = engine(SimConfig::default());
    sim.reconfigure(|config| config.iova_ranges = vec![range(0, PAGE)]);
    refused(moved.map_region(Region { exact: true, ..ram(MIB, PAGE) }));
}

/// A container with room for `dma_avail` entries, two of which hold RAM and an exact region.
fn used(dma_avail: u64) -> (Engine, Sim) {
    let (engine, sim) = engine(SimConfig { dma_avail, ..SimConfig::default() });
    engine.map_region(ram(0, PAGE)).unwrap();
    engine.map_region(Region { exact: true, ..ram(2 * PAGE, PAGE) }).unwrap();
    (engine, sim)
}

fn entries() {
    let bar = |iova| Region { kind: Kind::Device, ..ram(iova, PAGE) };
    let of = |error: &Error, numbers, held: &str| {
        assert_eq!((error.errno, error.needed_and_available()), (Errno::ENOSPC, Some(numbers)));
        assert!(error.to_string().contains(held), "{error}");
        print(error);
    };
    let (full, _) = used(3);
    full.map_region(bar(4 * PAGE)).unwrap();
    let held = "left: 0 of 3 (RAM 1, exact regions 1, device memory 1, not the library's 0)";
    of(&full.map_region(ram(6 * PAGE, PAGE)).unwrap_err(), (1, 0), held);
    // Another user of the container has one since the limits were read: the kernel refuses a BAR, and the second of two
    // exact regions.
    let shared = |dma_avail| {
        let (shared, sim) = used(dma_avail);
        sim.ask_to_map(MIB, PAGE, hva(PAGE), Perm::ReadWrite).unwrap();
        shared
    };
    let held = "left: 0 of 3 (RAM 1, exact regions 1, device memory 0, not the library's 1)";
    of(&shared(3).map_region(bar(4 * PAGE)).unwrap_err(), (1, 0), held);
    let two = shared(4);
    two.begin().unwrap();
    (0..2).for_each(|n| two.map_region(Region { exact: true, ..ram((8 + 2 * n) * PAGE, PAGE) }).unwrap());
    let held = "left: 0 of 4 (RAM 1, exact regions 2, device memory 0, not the library's 1)";
    of(&two.commit().unwrap_err(), (1, 0), held);
    // Without numbers, the setting is named at least.
    kernel_refuses(Rules::Iommufd, Errno::ENOSPC);
}

fn ranges() {
    let (engine, sim) = engine(SimConfig::default());
    sim.ask_to_map(0, PAGE, hva(PAGE), Perm::ReadWrite).unwrap();
    refused(engine.map_region(ram(0, PAGE)));
    engine.map_region(Region { exact: true, ..ram(MIB, 2 * PAGE) }).unwrap();
    refused(engine.map_region(ram(MIB, PAGE)));
    refused(engine.unmap(range(MIB, PAGE)));
    refused(engine.map_region(ram(1, PAGE)));
    refused(engine.map_region(Region { hva: hva(u64::MAX - (PAGE - 1)), ..ram(0, 2 * PAGE) }));
    refused(engine.commit());
    engine.begin().unwrap();
    refused(engine.begin());
    refused(std::thread::scope(|scope| scope.spawn(|| engine.begin()).join().unwrap()));
}

fn memory() {
    unpinnable(mapped(2 * PAGE, libc::PROT_READ, ANONYMOUS, None), PAGE, Kind::Ram);
    unpinnable(mapped(2 * PAGE, libc::PROT_NONE, ANONYMOUS, None), PAGE, Kind::Ram);
    // Nothing is mapped there.
    unpinnable(0, PAGE, Kind::Ram);
    unpinnable(time_data().0, PAGE, Kind::Ram);
    unpinnable(mapped(PAGE, READ_WRITE, ANONYMOUS, None), PAGE, Kind::Device);
    let file = MemfdOptions::default().create("vfio-fast-refusals").unwrap().into_file();
    file.set_len(PAGE).unwrap();
    let address = mapped(2 * PAGE, READ_WRITE, libc::MAP_SHARED, Some(&file));
    unpinnable(address, 2 * PAGE, Kind::Ram);
    // Nothing is wrong with it.
    unpinnable(mapped(PAGE, READ_WRITE, ANONYMOUS, None), PAGE, Kind::Ram);
    let (page, free) = (2 * MIB, free_huge_pages());
    if free == 0 {
        unpinnable(mapped(page, READ_WRITE, ANONYMOUS | libc::MAP_HUGETLB, None), page, Kind::Ram);
    } else {
        let error = Error::kernel(Op::Map, Errno::EFAULT);
        print(&Error { kind: ErrorKind::NoHugePages { page, size: page, free: 0 }, ..error });
    }
}

/// Bytes of huge pages that are free.
fn free_huge_pages() -> u64 {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
    free.trim().parse::<u64>().unwrap() * 2 * MIB
}

fn file_systems() {
    let folder = std::env::temp_dir();
    mount("none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
    let ahead = || {
        let sim = Sim::new(SimConfig { populate: PopulatePolicy::Upfront, ..SimConfig::default() });
        Engine::new(Box::new(sim), Config::default()).unwrap()
    };
    mount("tmpfs", &folder, 0, "size=16m");
    let (_file, large) = file_ram(&folder.join("ram"), 64 * MIB, 1 << 32);
    refused(ahead().map_region(large));
    let (file, page) = file_ram(&folder.join("full"), PAGE, 1 << 32);
    fs::write(folder.join("rest"), vec![1; 17 << 20]).unwrap_err();
    unpinnable(page.hva.raw(), PAGE, Kind::Ram);
    drop(file);
    mount("hugetlbfs", &folder, 0, "");
    let (_file, huge) = file_ram(&folder.join("huge"), free_huge_pages() + 8 * MIB, 1 << 32);
    refused(ahead().map_region(huge));
    // Which file system the tests' folder has, nobody knows.
    let (file, system) = ("/var/lib/vm/ram".to_owned(), "ext4");
    let error = Error::kernel(Op::Map, Errno::EFAULT);
    print(&Error { kind: ErrorKind::DiskFile { file, system }, ..error });
}

fn errnos() {
    let by_map = [
        Errno::EPERM,
        Errno::EMFILE,
        Errno::EINTR,
        Errno::ENOENT,
        Errno::EHWPOISON,
        Errno::EBUSY,
        Errno::EINVAL,
        Errno::EOVERFLOW,
    ];
    by_map.into_iter().for_each(|errno| kernel_refuses(Rules::Type1, errno));
    let bar = Region { kind: Kind::Device, exact: true, ..ram(0, PAGE) };
    for errno in [Errno::ENODEV, Errno::ENOTTY, Errno::EOPNOTSUPP] {
        let (engine, _) = engine(SimConfig { failures: vec![(1, errno)], ..keeping(Rules::Iommufd) });
        let file = File::open("/dev/null").unwrap();
        let object =
            ObjectRef { fd: file.as_fd().into(), kind: ObjectKind::Bar { region_index: 0 }, offset: 0 };
        refused(engine.map_object(bar, &object));
    }
    descriptors(bar);
    for errno in [Errno::EBUSY, Errno::EINVAL, Errno::ENOENT] {
        let (engine, _) = engine(SimConfig { failures: vec![(2, errno)], ..SimConfig::default() });
        engine.map_region(ram(0, PAGE)).unwrap();
        refused(engine.unmap(range(0, PAGE)));
    }
    let (stolen, sim) = engine(SimConfig::default());
    stolen.map_region(ram(0, PAGE)).unwrap();
    assert!(sim.steal(0));
    refused(stolen.unmap(range(0, PAGE)));
    stolen.poison("a test");
    refused(stolen.begin());

    refused(engine(keeping(Rules::Iommufd)).0.track_dirty(true));
    refused(engine(SimConfig::default()).0.read_dirty(range(0, PAGE), &mut [0]));
    refused(engine(SimConfig::default()).0.read_dirty(range(0, PAGE), &mut []));
    print(&Error::malformed("a test"));

    let (used, _) = engine(SimConfig::default());
    let address = mapped(PAGE, READ_WRITE, ANONYMOUS, None);
    used.map_region(Region { hva: hva(address), backing: Backing::UNKNOWN, ..ram(0, PAGE) }).unwrap();
    for address in [address, 0] {
        // SAFETY: the memory is this function's, and nothing depends on its contents.
        let memory = unsafe { discard_range(address, PAGE, DiscardMode::Private) }.unwrap();
        refused(used.discard(&memory));
    }
}

/// A number that is not open, as a C program can name it.
fn closed() -> Descriptor<'static> {
    // SAFETY: no file gets a negative number.
    unsafe { Descriptor::from_raw(-1) }
}

fn descriptors(bar: Region) {
    let (engine, _) = engine(keeping(Rules::Iommufd));
    let file = File::open("/dev/null").unwrap();
    fn object(fd: Descriptor<'_>) -> ObjectRef<'_> {
        ObjectRef { fd, kind: ObjectKind::Bar { region_index: 0 }, offset: 0 }
    }
    refused(engine.map_object(bar, &object(closed())));
    refused(engine.map_object(Region { backing: Backing::UNKNOWN, ..bar }, &object(file.as_fd().into())));
    // This process has one thread, and opens nothing until the limit is back.
    let limit = |soft| libc::rlimit { rlim_cur: soft, rlim_max: 1024 };
    for (soft, full) in [(u64::try_from(file.as_raw_fd()).unwrap() + 1, true), (1024, false)] {
        // SAFETY: the struct outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit(soft)) }, 0);
        let answer = engine.map_object(bar, &object(file.as_fd().into()));
        assert_eq!(answer.as_ref().err().map(|error| error.errno), full.then_some(Errno::EMFILE));
        answer.err().iter().for_each(print);
    }
    let other = Region { range: range(MIB, PAGE), ..bar };
    refused(engine.map_object(other, &ObjectRef { offset: MIB, ..object(file.as_fd().into()) }));
}

fn handovers() {
    // A list that no machine can hold.
    let (new, _) = engine(SimConfig::default());
    new.begin().unwrap();
    refused(new.adopt((0..1 << 50).map(|page| (range(page * PAGE, PAGE), Perm::Read))));
    let (old, sim) = engine(SimConfig::default());
    old.map_region(ram(0, PAGE)).unwrap();
    refused(old.resume());
    old.track_dirty(true).unwrap();
    refused(old.suspend());
    old.track_dirty(false).unwrap();
    let adopt = |engine: &Engine| {
        engine.begin().unwrap();
        engine.map_region(ram(2 * PAGE, PAGE)).unwrap();
        engine.adopt([(range(2 * PAGE, PAGE), Perm::ReadWrite)])
    };
    refused(adopt(&old));
    refused(adopt(&Engine::new(Box::new(sim), Config::default()).unwrap()));
    old.suspend().unwrap();
    refused(old.begin());
    print(&Error::check(Errno::EOPNOTSUPP, ErrorKind::NoHandover));

    let failing = SimConfig { failures: vec![(1, Errno::ENOMEM)], ..SimConfig::default() };
    let background = Arc::new(engine(failing).0);
    background.begin().unwrap();
    background.map_region(ram(0, PAGE)).unwrap();
    background.commit_background().unwrap();
    background.wait(None, None).unwrap_err();
    refused(background.suspend());
}

fn open() {
    let file = File::open("/dev/null").unwrap();
    refused(Type1::open(file.as_fd()));
    refused(Iommufd::open(file.as_fd(), 1));
    refused(Type1::open(closed()));
}

#[test]
#[ignore = "mounts file systems, for which another test makes a mount namespace"]
fn in_own_mounts() {
    limits();
    ranges();
    memory();
    file_systems();
    errnos();
    handovers();
    open();
}

#[test]
#[ignore = "needs memory errors, which another test imitates"]
fn with_memory_errors() {
    let address = mapped(2 * PAGE, READ_WRITE, ANONYMOUS, None);
    unpinnable(address, PAGE, Kind::Ram);
    // Where the kernel itself names the reason, the page is looked for too.
    for errno in [Errno::EFAULT, Errno::EHWPOISON] {
        let (engine, _) = engine(SimConfig { failures: vec![(1, errno)], ..SimConfig::default() });
        let region = Region { hva: hva(address), backing: Backing::UNKNOWN, ..ram(0, 2 * PAGE) };
        let error = engine.map_region(region).unwrap_err();
        let page = ErrorKind::Page { at: hva(address), fault: PageFault::Poisoned };
        assert_eq!((error.errno, &error.kind), (errno, &page), "{error}");
        print(&error);
    }
}

#[test]
#[ignore = "needs containers, which another test imitates"]
fn with_empty_containers() {
    let file = File::open("/dev/null").unwrap();
    refused(Type1::open(file.as_fd()));
    refused(Iommufd::open(file.as_fd(), 1));
}

/// What follows the errno's own text.
fn reason(text: &str) -> &str {
    text.split_once(" failed: ")
        .and_then(|(_, rest)| rest.split_once("): "))
        .map_or(text, |(_, reason)| reason)
}

/// Whether `text` is `row`, in which `…` stands for anything.
fn matches(row: &str, text: &str) -> bool {
    let mut parts = row.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut last = "";
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        (rest, last) = (after, part);
    }
    rest.is_empty() || (row.contains('…') && last.is_empty())
}

/// What the kernel's errnos mean for each operation.
fn hints() -> Vec<String> {
    let errors = OPS.iter().flat_map(|op| (1..=LAST_ERRNO).map(|errno| Error::kernel(*op, Errno(errno))));
    errors.map(|error| error.to_string()).filter(|text| text.contains("): ")).collect()
}

/// The texts of rules, which stand in the engine's source: `ErrorKind::Other("...")`, or `refused("...")` where a
/// closure of that name makes it.
fn rules() -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                rules_of(&fs::read_to_string(&path).unwrap(), &mut texts);
            }
        }
    }
    texts
}

fn rules_of(source: &str, texts: &mut Vec<String>) {
    let arguments = |call| source.split(call).skip(1).map(str::trim_start);
    let (literals, others): (Vec<&str>, Vec<&str>) =
        arguments("ErrorKind::Other(").partition(|argument| argument.starts_with('"'));
    let of_closure: Vec<&str> = if others.is_empty() { Vec::new() } else { arguments("refused(").collect() };
    assert!(others.iter().all(|argument| argument.starts_with("text)")), "{others:?}");
    for argument in literals.into_iter().chain(of_closure) {
        let literal = argument.strip_prefix('"').expect("a literal").split('"').next().unwrap();
        texts.push(literal.split("\\\n").map(str::trim_start).collect());
    }
}

#[test]
fn the_table_is_what_the_code_prints() {
    let output = [
        run_in_own_mounts("in_own_mounts"),
        Kernel::MemoryErrors.run_tests(&["--exact", "with_memory_errors", "--nocapture"]),
        Kernel::EmptyContainers.run_tests(&["--exact", "with_empty_containers", "--nocapture"]),
    ]
    .concat();
    let of = |mark: &'static str| output.lines().filter_map(move |line| line.strip_prefix(mark));
    let kinds: Vec<&str> = of(KIND).collect();
    let (hints, rules) = (hints(), rules());
    let texts = of(MARK).chain(hints.iter().map(String::as_str)).chain(rules.iter().map(String::as_str));
    let said: Vec<&str> = texts.map(reason).collect();
    let section = PAGE_OF_ERRORS.split_once("### Refusals").expect("the section of the table").1;
    let section = section.split("\n#").next().unwrap();
    let rows: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(row, _)| row)
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    let mut problems = Vec::new();
    for kind in KINDS.iter().filter(|kind| !kinds.contains(kind)) {
        problems.push(format!("this test provokes no error of the kind `{kind}`"));
    }
    for row in &rows {
        if !said.iter().any(|text| matches(row, text)) {
            problems.push(format!("the code prints nothing like the row `{row}`"));
        }
    }
    for text in said {
        let of = rows.iter().filter(|row| matches(row, text)).count();
        if of != 1 {
            problems.push(format!("{of} rows are `{text}`"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn rows_match_what_they_say() {
    assert!(matches("a … b", "a 1 b") && matches("a …", "a 1 b") && matches("a", "a"));
    assert!(!matches("a", "a b") && !matches("a … b", "a 1 b 2") && !matches("b …", "a b"));
}
