//! The model and the kernel return the same results: one table of cases, run on the model everywhere and on real
//! kernels where there is a device.
#![allow(unsafe_code, reason = "naming host addresses is unsafe")]

mod allocations;
mod attacks;
mod boundaries;
mod canaries;
mod cases;
mod dirty;
mod dry;
mod edu;
mod handover;
mod hostile;
mod kernel;
mod killed;
mod left;
mod limits;
mod memory;
mod plan;
mod process;
mod refused;
mod replaced;
mod rest;
mod run;
mod stale;
mod superpages;
mod targets;
mod witness;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::BorrowedFd;

use cases::{AFTER_INTERRUPTS, INTERRUPTS, MEMORY, PAGE};
use common::memory::RealMemory;
use common::{THREADS, callers};
use kernel::Driver;
use memory::Memory;
use refused::Counts;
use run::{Answer, Case, Difference, Hva, Kernel};
use targets::{Ioctls, Through, as_backend, is_expressible, model};
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::limits::MemlockScope;
use vfio_fast_engine::object::{Object, ObjectKind};
use vfio_fast_engine::region::Perm;
use vfio_fast_engine::{Config, Engine, Errno, error};
use vfio_fast_testing::{self as common, ioas};
use witness::{PageTables, Translations};

fn assert_same(differences: &[Difference]) {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} differences\n{}", lines.len(), lines.join("\n"));
}

fn cases_for(kernel: Kernel) -> Vec<Case> {
    cases::all().into_iter().filter(|case| case.is_for(kernel)).collect()
}

#[test]
fn the_model_answers_as_type1() {
    on_the_model(Kernel::Type1);
}

#[test]
fn the_model_answers_as_iommufd() {
    on_the_model(Kernel::Iommufd);
}

fn on_the_model(kernel: Kernel) {
    let run = |case: &Case| {
        let sim = model(case, kernel);
        let differences = run::run(case, kernel, &Ioctls(sim.clone()));
        assert_eq!(sim.locked(), 0, "{}: memory stays locked", case.name);
        differences
    };
    assert_same(&cases_for(kernel).iter().flat_map(run).collect::<Vec<_>>());
}

#[test]
fn the_models_backend_answers_as_type1() {
    on_the_models_backend(Kernel::Type1);
}

#[test]
fn the_models_backend_answers_as_iommufd() {
    on_the_models_backend(Kernel::Iommufd);
}

fn on_the_models_backend(kernel: Kernel) {
    let (expressible, not): (Vec<Case>, Vec<Case>) = cases_for(kernel).into_iter().partition(is_expressible);
    let names: Vec<&str> = not.iter().map(|case| case.name).collect();
    let inexpressible = [
        "no length",
        "map around the end",
        "unmap around the end",
        "the largest IOVA",
        "the largest length",
        "the largest length from 0",
    ];
    let files = ["past the end of a file", "a file, misaligned", "a file, around the end"];
    let inexpressible: Vec<&str> = match kernel {
        Kernel::Type1 => inexpressible.to_vec(),
        Kernel::Iommufd => [&inexpressible[..], &files].concat(),
    };
    assert_eq!(names, inexpressible);
    let run = |case: Case| {
        let sim = model(&case, kernel);
        let target = Through { backend: &sim, attach: &|| sim.attach(), memory: Memory::IMAGINED };
        run::run(&as_backend(case), kernel, &target)
    };
    assert_same(&expressible.into_iter().flat_map(run).collect::<Vec<_>>());
}

#[test]
fn the_model_tells_of_dirty_pages() {
    let sim = model(&cases::all()[0], Kernel::Type1);
    dirty::assert_told(&sim, Memory::IMAGINED);
    dirty::assert_told_by_section(Box::new(sim), Memory::IMAGINED);
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_tells_of_dirty_pages() {
    kernel::attached(Driver::Type1, dirty::assert_told);
    kernel::owned(Driver::Type1, |backend, _, memory| dirty::assert_told_by_section(backend, memory));
}

#[test]
fn the_model_hands_entries_over() {
    handover::assert_handed_over(&model(&cases::all()[0], Kernel::Type1), Memory::IMAGINED);
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_hands_entries_over() {
    kernel::attached(Driver::Type1, handover::assert_handed_over);
}

const ROUNDS: u64 = 200;

/// Threads that map and unmap in separate ranges do not affect each other: no EBUSY, and the right number of bytes.
fn assert_undisturbed(backend: &dyn Backend, memory: Memory) {
    for threads in THREADS {
        assert_undisturbed_by(threads as u64, backend, memory);
    }
}

fn assert_undisturbed_by(threads: u64, backend: &dyn Backend, memory: Memory) {
    let range = |thread: u64| IovaRange::new(Iova(0x1000_0000 + thread * 2 * PAGE), 2 * PAGE).unwrap();
    let work = |thread| {
        for round in 0..ROUNDS {
            let hva = memory.host(Hva::Writable(2 * PAGE * ((thread + round) % (MEMORY / (2 * PAGE)))));
            backend.map(&Mapping { range: range(thread), hva, perm: Perm::ReadWrite }, None)?;
            match backend.unmap(range(thread)) {
                Ok(bytes) => assert_eq!(bytes, 2 * PAGE),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    });
    assert_eq!(backend.unmap_all(), Ok(0));
}

#[test]
fn threads_on_the_model_are_undisturbed() {
    for kernel in [Kernel::Type1, Kernel::Iommufd] {
        let case = &cases::all()[0];
        assert_undisturbed(&model(case, kernel), Memory::IMAGINED);
    }
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_answers_as_type1() {
    kernel::attached(Driver::Type1, |backend, memory| {
        assert!(!backend.capabilities().parallel && backend.limits().unwrap().entries.is_some());
        assert_undisturbed(backend, memory);
    });
    on_the_kernel(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_answers_as_iommufd() {
    assert_is_iommufd(Driver::Iommufd);
    let wrong = kernel::open_wrong_ioas();
    assert_eq!((wrong.op, wrong.errno), (error::Op::Open, Errno::ENOENT), "{wrong}");
    files_are_told_from_copies();
    kernel::attached(Driver::Iommufd, |backend, memory| {
        let range = IovaRange::new(Iova(0x1000_0000), 2 * PAGE).unwrap();
        let locked = || (backend.memlock().locked, backend.memlock().scope);
        assert_eq!(locked(), (0, MemlockScope::User));
        let mapping = Mapping { range, hva: memory.host(Hva::Writable(0)), perm: Perm::Read };
        backend.map(&mapping, None).unwrap();
        assert_eq!(locked(), (2 * PAGE, MemlockScope::User));
        backend.unmap(range).unwrap();
        assert_eq!(locked(), (0, MemlockScope::User));
    });
    on_the_kernel(Driver::Iommufd);
}

/// A map by address faults the pages in, a map by file does not.
fn files_are_told_from_copies() {
    const NONE: libc::c_int = libc::PROT_NONE;
    const READ: libc::c_int = libc::PROT_READ;
    const WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    const BY_FILE: Result<bool, Errno> = Ok(true);
    const BY_ADDRESS: Result<bool, Errno> = Ok(false);
    const REFUSED: Result<bool, Errno> = Err(Errno::EFAULT);
    kernel::attached(Driver::Iommufd, |backend, memory| {
        let range = IovaRange::new(Iova(0x1000_0000), 2 * PAGE).unwrap();
        let hva = memory.host(Hva::At(memory.file));
        for (flags, protection, perm, offset, expected) in [
            (libc::MAP_SHARED, WRITE, Perm::ReadWrite, 0, BY_FILE),
            (libc::MAP_SHARED, WRITE, Perm::Read, 0, BY_FILE),
            (libc::MAP_SHARED, READ, Perm::Read, 0, BY_FILE),
            // The device gets no more than the process may do itself.
            (libc::MAP_SHARED, READ, Perm::ReadWrite, 0, REFUSED),
            (libc::MAP_SHARED, NONE, Perm::Read, 0, REFUSED),
            // Another part of the file, and copies of its pages.
            (libc::MAP_SHARED, WRITE, Perm::ReadWrite, PAGE, BY_ADDRESS),
            (libc::MAP_PRIVATE, WRITE, Perm::ReadWrite, 0, BY_ADDRESS),
        ] {
            kernel::map_file_anew(memory, flags, protection);
            // SAFETY: the file is open as long as the memory exists.
            let fd = unsafe { BorrowedFd::borrow_raw(memory.fd) };
            let object = Object { fd, kind: ObjectKind::Memory, offset };
            let mapped = backend.map(&Mapping { range, hva, perm }, Some(object));
            let by_file = mapped.map(|()| !kernel::is_present(memory.file));
            assert_eq!(by_file, expected, "{flags} {protection} {perm:?} {offset}");
            assert_eq!(backend.unmap(range), Ok(if mapped.is_ok() { 2 * PAGE } else { 0 }));
        }
        // The kernel refuses a file that is too short. The errno is that of a map by address.
        kernel::map_file_anew(memory, libc::MAP_SHARED, WRITE);
        // SAFETY: the file is open as long as the memory exists.
        let fd = unsafe { BorrowedFd::borrow_raw(memory.fd) };
        let file = File::from(fd.try_clone_to_owned().unwrap());
        file.set_len(PAGE).unwrap();
        let object = Object { fd, kind: ObjectKind::Memory, offset: 0 };
        assert_eq!(backend.map(&Mapping { range, hva, perm: Perm::Read }, Some(object)), Err(Errno::EFAULT));
    });
}

#[test]
#[ignore = "needs a kernel with dma-bufs of BARs and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn a_bar_is_mapped_while_it_decodes() {
    kernel::with_bar(|backend, bar| {
        let range = IovaRange::new(Iova(0x1000_0000), 2 * PAGE).unwrap();
        let hva = Memory::IMAGINED.host(Hva::Nothing);
        let mapping = Mapping { range, hva, perm: Perm::ReadWrite };
        let object = |region_index, offset| Object {
            fd: bar.device(),
            kind: ObjectKind::Bar { region_index },
            offset,
        };
        let map = |object| backend.map(&mapping, Some(object));
        bar.decode(false);
        assert_eq!(map(object(0, 0)), Err(Errno(libc::ENODEV)), "it does not decode");
        bar.decode(true);
        assert_eq!(map(object(0, PAGE)), Ok(()));
        assert_eq!(map(object(0, 0)), Err(Errno::EEXIST));
        assert_eq!(backend.memlock().locked, 0, "a BAR is not counted");
        assert_eq!(backend.unmap(range), Ok(2 * PAGE));
        assert_eq!(map(object(0, bar.bytes() - PAGE)), Err(Errno::EINVAL), "past its end");
        assert!(map(object(1, 0)).is_err(), "it has no such BAR");
        // A BAR that the kernel has unmapped in between is still an entry, and can be unmapped.
        assert_eq!(map(object(0, 0)), Ok(()));
        bar.decode(false);
        assert_eq!(backend.unmap(range), Ok(2 * PAGE));
        assert_eq!(backend.unmap_all(), Ok(0));
    });
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn callers_of_iommufd_never_see_each_other() {
    let memory = RealMemory::new();
    let tables = PageTables::of(&kernel::device_name());
    kernel::owned(Driver::Iommufd, |backend, _, _| {
        let config = Config {
            entry_size: common::ENTRY,
            huge_pages: false,
            threads: 8,
            oversubscribe: true,
            ..Config::default()
        };
        let engine = Engine::new(backend, config).unwrap();
        let left = callers::keep_to_their_own(&engine, 4);
        if let Some(tables) = tables {
            witness::assert_same("what callers leave", &witness::wanted(&left), &tables.read());
            engine.close().unwrap();
            witness::assert_same("closed", &Translations::new(), &tables.read());
        }
    });
    drop(memory);
}

#[test]
#[ignore = "needs VT-d, a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_holds_nothing_stale_after_a_failure() {
    stale::nothing_is_left_by(Driver::Iommufd);
}

#[test]
#[ignore = "needs VT-d and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_holds_nothing_stale_after_a_failure() {
    stale::nothing_is_left_by(Driver::Type1);
}

#[test]
#[ignore = "needs VT-d, a kernel that injects faults and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn allocations_for_type1_may_fail() {
    allocations::may_fail(Driver::Type1);
}

#[test]
#[ignore = "needs VT-d, a kernel that injects faults and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn allocations_for_iommufd_may_fail() {
    allocations::may_fail(Driver::Iommufd);
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_is_closed_after_its_last_group_has_left() {
    left::is_closed_after_its_last_group();
}

#[test]
#[ignore = "needs an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn a_device_of_type1_loses_only_what_is_cut() {
    rest::only_what_is_cut_is_out_of_reach(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn a_device_of_iommufd_loses_only_what_is_cut() {
    rest::only_what_is_cut_is_out_of_reach(Driver::Iommufd);
}

#[test]
#[ignore = "needs an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn devices_of_type1_reach_only_what_is_mapped() {
    attacks::reach_only_what_is_mapped(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn devices_of_iommufd_reach_only_what_is_mapped() {
    attacks::reach_only_what_is_mapped(Driver::Iommufd);
}

#[test]
#[ignore = "needs VT-d, a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn superpages_at_zero_are_one_entry() {
    superpages::at_zero_are_one_entry(Driver::Type1);
    superpages::at_zero_are_one_entry(Driver::Iommufd);
}

#[test]
#[ignore = "needs VT-d, a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn replaced_pages_are_mapped_again() {
    replaced::are_mapped_again(Driver::Type1);
    replaced::are_mapped_again(Driver::Iommufd);
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE, and a kernel with MEMORY_FAILURE"]
fn type1_names_a_broken_page() {
    refused::broken_pages_are_named(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and MEMORY_FAILURE and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_names_a_broken_page() {
    refused::broken_pages_are_named(Driver::Iommufd);
}

#[test]
#[ignore = "works until it is killed, for the next tests"]
fn a_process_that_is_killed() {
    killed::work();
}

#[test]
#[ignore = "needs an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn processes_killed_on_type1_leave_nothing() {
    killed::processes_leave_nothing(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn processes_killed_on_iommufd_leave_nothing() {
    killed::processes_leave_nothing(Driver::Iommufd);
}

#[test]
#[ignore = "adopts the entries of another process until it is killed, for the next test"]
fn a_process_that_adopts() {
    killed::adopt();
}

#[test]
#[ignore = "needs an edu bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn killed_adopters_lose_nothing() {
    killed::adopters_lose_nothing();
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_names_its_limits() {
    refused::ranges_are_named(Driver::Type1);
    refused::entries_are_named();
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_is_exact_at_each_boundary() {
    boundaries::of_locked_memory(Driver::Type1);
    boundaries::of_entries();
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_is_exact_at_each_boundary() {
    boundaries::of_locked_memory(Driver::Iommufd);
}

#[test]
#[ignore = "needs a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn type1_leaves_nothing_when_memory_runs_out() {
    dry::pool_of_huge_pages(Driver::Type1);
    dry::cgroup(Driver::Type1);
    dry::cgroup_of_huge_pages(Driver::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_leaves_nothing_when_memory_runs_out() {
    dry::pool_of_huge_pages(Driver::Iommufd);
    dry::cgroup(Driver::Iommufd);
    dry::cgroup_of_huge_pages(Driver::Iommufd);
}

#[test]
#[ignore = "another test starts it as a process"]
fn a_process_that_a_cgroup_limits() {
    dry::in_cgroup();
}

#[test]
#[ignore = "another test starts it as a process"]
fn a_process_that_a_cgroup_limits_in_huge_pages() {
    dry::in_cgroup_of_huge_pages();
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn iommufd_names_its_ranges() {
    refused::ranges_are_named(Driver::Iommufd);
}

#[test]
#[ignore = "holds a mapping until its standard input ends, for the next tests"]
fn a_process_that_maps() {
    refused::hold();
}

#[test]
#[ignore = "needs two devices bound to vfio-pci, named by VFIO_FAST_DEVICE and VFIO_FAST_SECOND_DEVICE"]
fn type1_counts_each_process() {
    refused::each_process_is_counted_alone(Counts::Type1);
}

#[test]
#[ignore = "needs a kernel with iommufd and two devices bound to vfio-pci"]
fn iommufd_counts_all_processes_of_a_user() {
    refused::processes_are_counted_together();
}

#[test]
#[ignore = "needs a kernel with iommufd and two devices bound to vfio-pci"]
fn iommufd_can_count_each_process() {
    refused::each_process_is_counted_alone(Counts::Process);
}

#[test]
#[ignore = "needs a kernel with iommufd and a device bound to vfio-pci, named by VFIO_FAST_DEVICE"]
fn the_imitation_answers_as_iommufd() {
    assert_is_iommufd(Driver::Imitation);
    on_the_kernel(Driver::Imitation);
}

/// Checks what a backend for iommufd reports.
fn assert_is_iommufd(driver: Driver) {
    kernel::attached(driver, |backend, memory| {
        let limits = backend.limits().unwrap();
        assert!(backend.capabilities().parallel);
        assert_eq!((limits.entries, limits.page_sizes.smallest()), (None, PAGE));
        let interrupts = IovaRange::from_bounds(INTERRUPTS, AFTER_INTERRUPTS - 1).unwrap();
        assert!(!limits.iova_ranges.iter().any(|range| range.overlaps(interrupts)), "{limits:?}");
        assert!(limits.iova_ranges.iter().any(|range| range.start() == 0), "{limits:?}");
        assert_undisturbed(backend, memory);
    });
}

fn on_the_kernel(driver: Driver) {
    let kernel = driver.answers_as();
    let mut differences = Vec::new();
    for case in cases_for(kernel) {
        if driver != Driver::Imitation {
            kernel::on_ioctls(&case, driver, |target| differences.extend(run::run(&case, kernel, target)));
        }
        if is_expressible(&case) && !(driver == Driver::Imitation && case.needs.no_device) {
            let case = as_backend(case);
            kernel::on_backend(&case, driver, |target| differences.extend(run::run(&case, kernel, target)));
        }
    }
    assert_same(&differences);
}

/// A wrong table must be noticed: a change to any expected result causes a difference.
#[test]
fn every_answer_matters() {
    for kernel in [Kernel::Type1, Kernel::Iommufd] {
        for case in cases_for(kernel) {
            for wrong in 0..case.steps.len() {
                let mut case = case.clone();
                let step = &mut case.steps[wrong];
                let lie = match step.answer(kernel) {
                    Answer::Done => Answer::No(&[libc::EIO]),
                    _ => Answer::Done,
                };
                (step.type1, step.iommufd) = (lie, lie);
                assert_ne!(
                    run::run(&case, kernel, &Ioctls(model(&case, kernel))),
                    [],
                    "{} {wrong}",
                    case.name
                );
            }
            let mut less = case.clone();
            for left in &mut less.left {
                left.pop();
            }
            let has_left = !case.left(kernel).is_empty();
            let noticed = !run::run(&less, kernel, &Ioctls(model(&case, kernel))).is_empty();
            assert_eq!(noticed, has_left, "{}: what is left", case.name);
            let mut more = case.clone();
            for left in &mut more.left {
                left.push((1 << 40, PAGE));
            }
            assert_ne!(
                run::run(&more, kernel, &Ioctls(model(&case, kernel))),
                [],
                "{}: more left",
                case.name
            );
        }
    }
}

#[test]
fn names_are_unique() {
    let cases = cases::all();
    let names: HashSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
}
