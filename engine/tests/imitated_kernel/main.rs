//! The backends of real kernels, type1 and iommufd, on a kernel that this program imitates: what they ask of it, and
//! what they make of its answers. A real kernel with a device answers the same requests in the conformance tests.
#![allow(unsafe_code, reason = "takes the place of the C library's ioctl")]

mod kernel;

use std::os::fd::AsFd;

use common::{RAM, hva, range};
use kernel::{IOAS, Kind, Opened, Request, shared_memory};
use proptest::prelude::*;
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::{IovaRange, PageSizes};
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping, PopulatePolicy};
use vfio_fast_engine::error::{ErrorKind, KernelResult};
use vfio_fast_engine::limits::MemlockScope;
use vfio_fast_engine::object::{Object, ObjectKind};
use vfio_fast_engine::region::Perm;
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const TOP: u64 = u64::MAX - (PAGE - 1);
const BAR: ObjectKind = ObjectKind::Bar { region_index: 2 };

fn rules_of(kind: Kind) -> Rules {
    if kind == Kind::Type1 { Rules::Type1 } else { Rules::Iommufd }
}

fn open_with(kind: Kind, config: SimConfig) -> (Opened, Box<dyn Backend>) {
    let opened = Opened::new(kind, SimConfig { rules: rules_of(kind), ..config });
    let backend: Box<dyn Backend> = match kind {
        Kind::Iommufd => Box::new(Iommufd::open(opened.fd(), IOAS).unwrap()),
        _ => Box::new(Type1::open(opened.fd()).unwrap()),
    };
    (opened, backend)
}

fn open(kind: Kind) -> (Opened, Box<dyn Backend>) {
    open_with(kind, SimConfig { all_dirty: false, ..SimConfig::default() })
}

fn mapping(start: u64, length: u64) -> Mapping {
    Mapping { range: range(start, length), hva: hva(RAM + (start & 0xffff_ffff)), perm: Perm::ReadWrite }
}

#[test]
fn the_imitation_of_type1_in_an_iommufd_is_not_exclusive() {
    let expected =
        |populate, parallel, objects, exclusive| Capabilities { populate, parallel, objects, exclusive };
    for (kind, capabilities) in [
        (Kind::Type1, expected(PopulatePolicy::Upfront, false, false, true)),
        // Its mappings can be those of other users of the IOAS.
        (Kind::Compat, expected(PopulatePolicy::Upfront, true, false, false)),
        (Kind::Iommufd, expected(PopulatePolicy::Overlapped, true, true, false)),
    ] {
        let (_opened, backend) = open(kind);
        assert_eq!(backend.capabilities(), capabilities, "{kind:?}");
        assert_eq!(backend.name(), if kind == Kind::Iommufd { "iommufd" } else { "type1" });
        assert_eq!(backend.dirty_tracking().is_some(), kind == Kind::Type1);
        assert_eq!(backend.handover().is_some(), kind != Kind::Compat);
    }
}

#[test]
fn limits_are_those_of_the_kernel() {
    let ranges = vec![range(0, 0xfee0_0000), IovaRange::from_bounds(1 << 32, u64::MAX).unwrap()];
    for bitmap in [0x4020_1000, 1 << 14 | 1 << 25, 1 << 16 | 1 << 29] {
        let page_sizes = PageSizes::from_bitmap(bitmap);
        let page = page_sizes.smallest();
        for kind in [Kind::Type1, Kind::Compat, Kind::Iommufd] {
            let config =
                SimConfig { page_sizes, dma_avail: 9, iova_ranges: ranges.clone(), ..SimConfig::default() };
            let (_opened, backend) = open_with(kind, config);
            let is_type1 = kind == Kind::Type1;
            backend.map(&mapping(0, page), None).unwrap();
            let limits = backend.limits().unwrap();
            assert_eq!(limits.page_sizes.smallest(), page);
            assert_eq!(limits.entries, is_type1.then_some(8));
            assert_eq!(limits.entries_at_open, is_type1.then_some(9));
            // type1 maps the last page, and does not unmap it.
            let last = if is_type1 { u64::MAX - page } else { u64::MAX };
            let expected = [ranges[0], IovaRange::from_bounds(1 << 32, last).unwrap()];
            assert_eq!(limits.iova_ranges, expected, "{kind:?}");
            let tracked = backend.dirty_tracking().map(|tracking| tracking.max_bytes());
            assert_eq!(tracked, is_type1.then_some((256 << 20) * 8 * page));
        }
    }
}

#[test]
fn type1_is_not_asked_to_map_the_last_page() {
    for kind in [Kind::Type1, Kind::Compat] {
        let (opened, backend) = open(kind);
        let answer = backend.map(&mapping(TOP, PAGE), None);
        if kind == Kind::Type1 {
            assert_eq!((answer, opened.requests()), (Err(Errno::EINVAL), vec![]));
        } else {
            assert_eq!((answer, opened.requests()), (Ok(()), vec![Request::Map]));
            assert_eq!(backend.unmap(range(TOP, PAGE)), Ok(PAGE));
        }
        backend.map(&mapping(TOP - PAGE, PAGE), None).unwrap();
        assert_eq!(opened.sim().mappings(), [mapping(TOP - PAGE, PAGE)]);
    }
}

/// Where nothing is mapped, iommufd answers ENOENT, and so does its imitation of type1.
#[test]
fn unmapping_nothing_is_0_bytes() {
    for kind in [Kind::Type1, Kind::Compat, Kind::Iommufd] {
        let (opened, backend) = open(kind);
        assert_eq!(backend.unmap(range(0, PAGE)), Ok(0));
        assert_eq!(backend.unmap_all(), Ok(0));
        backend.map(&mapping(0, 4 * PAGE), None).unwrap();
        let cut = backend.unmap(range(0, PAGE));
        assert_eq!(cut, if kind == Kind::Type1 { Err(Errno::EINVAL) } else { Ok(0) });
        assert_eq!(opened.sim().mappings(), [mapping(0, 4 * PAGE)]);
        backend.map(&mapping(1 << 63, PAGE), None).unwrap();
        opened.requests();
        assert_eq!(backend.unmap_all(), Ok(5 * PAGE));
        assert_eq!(opened.requests(), [Request::Unmap]);
        assert!(opened.sim().mappings().is_empty());
    }
}

#[test]
fn a_kernel_that_cannot_unmap_all_is_asked_for_each_half() {
    for kind in [Kind::Type1, Kind::Compat] {
        let (opened, backend) = open(kind);
        opened.set(|settings| settings.unmaps_all = false);
        for start in [0, 1 << 63] {
            backend.map(&mapping(start, PAGE), None).unwrap();
        }
        opened.requests();
        assert_eq!(backend.unmap_all(), Ok(2 * PAGE));
        assert_eq!(opened.requests(), [Request::Unmap; 3]);
        assert!(opened.sim().mappings().is_empty());
    }
}

#[test]
fn only_a_container_without_an_iommu_is_emptied() {
    for kind in [Kind::Type1, Kind::Compat, Kind::Iommufd] {
        let (opened, backend) = open(kind);
        backend.map(&mapping(0, PAGE), None).unwrap();
        assert!(!backend.is_emptied());
        opened.sim().detach();
        assert_eq!(backend.is_emptied(), kind == Kind::Type1, "{kind:?}");
    }
}

#[test]
fn what_is_no_usable_container_or_ioas_cannot_be_opened() {
    let opened = Opened::new(Kind::Type1, SimConfig::default());
    opened.set(|settings| settings.api_version = 1);
    let error = Type1::open(opened.fd()).unwrap_err();
    assert!(error.errno == Errno::EINVAL && error.to_string().contains("unknown version"), "{error}");
    opened.set(|settings| settings.api_version = 0);
    opened.sim().detach();
    let error = Type1::open(opened.fd()).unwrap_err();
    assert!(error.errno == Errno::EINVAL && error.to_string().contains("VFIO_SET_IOMMU"), "{error}");
    let opened = Opened::new(Kind::Iommufd, SimConfig { rules: Rules::Iommufd, ..SimConfig::default() });
    let error = Iommufd::open(opened.fd(), IOAS + 1).unwrap_err();
    assert!(error.errno == Errno::ENOENT && matches!(error.kind, ErrorKind::Other(_)), "{error}");
}

#[test]
fn dirty_pages_are_those_that_were_written_to() {
    for page in [PAGE, 16 << 10] {
        let page_sizes = PageSizes::from_bitmap(page | 1 << 30);
        let config = SimConfig { page_sizes, all_dirty: false, ..SimConfig::default() };
        let (opened, backend) = open_with(Kind::Type1, config);
        let tracking = backend.dirty_tracking().unwrap();
        assert_eq!(tracking.read_dirty(range(0, page), &mut [0]), Err(Errno::EINVAL), "not tracked yet");
        tracking.track_dirty(true).unwrap();
        backend.map(&mapping(0, 70 * page), None).unwrap();
        let write = |numbers: &[u64]| numbers.iter().for_each(|number| opened.sim().write(number * page));
        write(&[3, 69]);
        let mut bitmap = [0; 2];
        tracking.read_dirty(range(0, 70 * page), &mut bitmap).unwrap();
        assert_eq!(bitmap, [1 << 3, 1 << 5]);
        write(&[0, 64]);
        let mut bitmap = [0; 2];
        assert_eq!(tracking.unmap_dirty(range(0, 70 * page), &mut bitmap), Ok(70 * page));
        assert_eq!(bitmap, [1, 1]);
        assert!(opened.sim().mappings().is_empty());
        tracking.track_dirty(false).unwrap();
        assert_eq!(tracking.read_dirty(range(0, page), &mut [0]), Err(Errno::EINVAL), "not tracked any more");
    }
}

#[test]
fn dirty_pages_of_another_size_are_not_tracked() {
    let opened = Opened::new(Kind::Type1, SimConfig::default());
    opened.set(|settings| settings.tracks_smallest = false);
    assert!(Type1::open(opened.fd()).unwrap().dirty_tracking().is_none());
}

#[test]
fn addresses_are_dropped_and_set() {
    let (opened, backend) = open(Kind::Type1);
    for start in [0, MIB, 2 * MIB] {
        backend.map(&mapping(start, PAGE), None).unwrap();
    }
    let handover = backend.handover().unwrap();
    handover.drop_addresses(Some(range(MIB, PAGE))).unwrap();
    assert_eq!(opened.sim().without_address(), [MIB]);
    let moved = Mapping { hva: hva(1 << 45), ..mapping(MIB, PAGE) };
    handover.set_address(&moved).unwrap();
    assert_eq!(opened.sim().without_address(), []);
    assert_eq!(opened.sim().mappings()[1], moved);
    handover.drop_addresses(None).unwrap();
    assert_eq!(opened.sim().without_address(), [0, MIB, 2 * MIB]);
    opened.set(|settings| settings.updates_vaddr = false);
    assert!(backend.handover().is_none());
}

fn locked(backend: &dyn Backend) -> u64 {
    let memlock = backend.memlock();
    assert_eq!(memlock.scope, MemlockScope::User);
    memlock.locked
}

#[test]
fn what_the_user_has_locked_is_what_was_mapped() {
    let (opened, backend) = open(Kind::Iommufd);
    assert_eq!(locked(&*backend), 0);
    backend.map(&mapping(0, 4 * PAGE), None).unwrap();
    backend.map(&mapping(MIB, 2 * PAGE), None).unwrap();
    assert_eq!(backend.map(&mapping(MIB, PAGE), None), Err(Errno::EEXIST));
    assert_eq!(locked(&*backend), 6 * PAGE);
    assert_eq!(backend.unmap(range(MIB, 2 * PAGE)), Ok(2 * PAGE));
    assert_eq!(locked(&*backend), 4 * PAGE);
    // Of another user of the IOAS.
    opened.sim().ask_to_map(MIB, 8 * PAGE, hva(RAM), Perm::Read).unwrap();
    assert_eq!(backend.unmap(range(MIB, 8 * PAGE)), Ok(8 * PAGE));
    assert_eq!(locked(&*backend), 0, "not below zero");
    // Handed over by another process.
    backend.handover().unwrap().set_address(&mapping(0, 4 * PAGE)).unwrap();
    assert_eq!(locked(&*backend), 4 * PAGE);
    backend.handover().unwrap().drop_addresses(None).unwrap();
    assert_eq!(opened.sim().mappings().len(), 1);
}

#[test]
fn an_iommufd_counts_as_it_says() {
    for (mode, scope) in [
        (Ok(0), MemlockScope::User),
        (Ok(1), MemlockScope::Process),
        (Err(libc::EOPNOTSUPP), MemlockScope::User),
    ] {
        let opened = Opened::new(Kind::Iommufd, SimConfig { rules: Rules::Iommufd, ..SimConfig::default() });
        opened.set(|settings| settings.rlimit_mode = mode);
        let backend = Iommufd::open(opened.fd(), IOAS).unwrap();
        assert_eq!(backend.memlock().scope, scope);
        let (_opened, type1) = open(Kind::Type1);
        assert_eq!(type1.memlock().scope, MemlockScope::Process);
    }
}

#[test]
fn bars_are_exported_and_not_counted() {
    let (opened, backend) = open(Kind::Iommufd);
    let device = Opened::new(Kind::Device, SimConfig::default());
    let bar = Object { fd: device.fd(), kind: BAR, offset: 3 * PAGE };
    let map = |start, length| backend.map(&mapping(start, length), Some(bar));
    backend.map(&mapping(0, PAGE), None).unwrap();
    map(MIB, 2 * PAGE).unwrap();
    map(2 * MIB, 4 * PAGE).unwrap();
    let exports = [Request::Export(2, 3 * PAGE, 2 * PAGE), Request::Export(2, 3 * PAGE, 4 * PAGE)];
    assert_eq!(device.requests(), exports);
    assert_eq!(opened.requests(), [Request::Map, Request::MapFile, Request::MapFile]);
    // The whole dma-buf is mapped.
    assert_eq!(opened.sim().mappings()[1].hva.raw(), 0);
    assert_eq!(locked(&*backend), PAGE);
    // A refused one is not recorded.
    assert_eq!(map(2 * MIB, PAGE), Err(Errno::EEXIST));
    assert_eq!(backend.unmap(range(MIB, 2 * PAGE)), Ok(2 * PAGE));
    assert_eq!(locked(&*backend), PAGE);
    // RAM where a BAR was.
    backend.map(&mapping(MIB, 2 * PAGE), None).unwrap();
    assert_eq!(locked(&*backend), 3 * PAGE);
    assert_eq!(backend.unmap(range(MIB, 4 * MIB)), Ok(6 * PAGE));
    assert_eq!(locked(&*backend), PAGE);
    assert_eq!(backend.unmap_all(), Ok(PAGE));
    assert_eq!(locked(&*backend), 0);
}

#[test]
fn shared_memory_is_mapped_by_its_file() {
    let (file, hva) = shared_memory(MIB);
    let (other, _) = shared_memory(MIB);
    let (opened, backend) = open(Kind::Iommufd);
    let object = |fd, offset| Some(Object { fd, kind: ObjectKind::Memory, offset });
    let at = |start| Mapping { hva: hva.checked_add(PAGE).unwrap(), ..mapping(start, PAGE) };
    backend.map(&at(0), object(file.as_fd(), PAGE)).unwrap();
    // Another file, another offset, and no file.
    backend.map(&at(MIB), object(other.as_fd(), PAGE)).unwrap();
    backend.map(&at(2 * MIB), object(file.as_fd(), 0)).unwrap();
    backend.map(&at(3 * MIB), None).unwrap();
    assert_eq!(opened.requests(), [Request::MapFile, Request::Map, Request::Map, Request::Map]);
    assert_eq!(opened.sim().mappings()[0].hva.raw(), PAGE, "the offset in the file");
    assert_eq!(locked(&*backend), 4 * PAGE);
}

/// A file that the kernel refuses is mapped by address. Only a kernel that maps no files is not asked again.
#[test]
fn a_file_that_the_kernel_refuses_is_mapped_by_address() {
    use Request::{Map, MapFile};
    let (file, hva) = shared_memory(MIB);
    let by_address = (Ok(()), vec![MapFile, Map]);
    for (errno, first, second) in [
        (libc::ENOTTY, by_address.clone(), (Ok(()), vec![Map])),
        (libc::EINVAL, by_address.clone(), (Ok(()), vec![MapFile])),
        (libc::EOPNOTSUPP, by_address, (Ok(()), vec![MapFile])),
        (libc::EFAULT, (Err(Errno::EFAULT), vec![MapFile]), (Ok(()), vec![MapFile])),
    ] {
        let (opened, backend) = open(Kind::Iommufd);
        let object = || Some(Object { fd: file.as_fd(), kind: ObjectKind::Memory, offset: 0 });
        let map = |start| {
            let answer = backend.map(&Mapping { hva, ..mapping(start, PAGE) }, object());
            (answer, opened.requests())
        };
        opened.set(|settings| settings.map_file = Some(errno));
        assert_eq!(map(0), first, "{errno}");
        opened.set(|settings| settings.map_file = None);
        assert_eq!(map(MIB), second, "{errno}");
    }
}

/// One call, in pages.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map(u64, u64, Perm),
    Unmap(u64, u64),
    UnmapDirty(u64, u64),
    UnmapAll,
}

const PAGES: u64 = 24;

fn step() -> impl Strategy<Value = Step> {
    let span = || (0..PAGES, 1..6u64).prop_map(|(first, count)| (first, count.min(PAGES - first)));
    let perm = prop_oneof![Just(Perm::Read), Just(Perm::ReadWrite)];
    prop_oneof![
        6 => (span(), perm).prop_map(|((first, count), perm)| Step::Map(first, count, perm)),
        4 => span().prop_map(|(first, count)| Step::Unmap(first, count)),
        1 => span().prop_map(|(first, count)| Step::UnmapDirty(first, count)),
        1 => Just(Step::UnmapAll),
    ]
}

fn make(step: Step, base: u64, backend: &dyn Backend) -> (KernelResult<u64>, u64) {
    let range = |first, count| range(base + first * PAGE, count * PAGE);
    let mut bitmap = [0];
    let answer = match step {
        Step::Map(first, count, perm) => {
            let range = range(first, count);
            backend.map(&Mapping { range, perm, hva: hva(RAM + first * PAGE) }, None).map(|()| 0)
        }
        Step::Unmap(first, count) => backend.unmap(range(first, count)),
        Step::UnmapDirty(first, count) => match backend.dirty_tracking() {
            Some(tracking) => tracking.unmap_dirty(range(first, count), &mut bitmap),
            None => Ok(0),
        },
        Step::UnmapAll => backend.unmap_all(),
    };
    (answer, bitmap[0])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The model is the kernel of one backend, and a backend itself: both return the same.
    #[test]
    fn backends_answer_as_the_model_does(
        kind in prop::sample::select(vec![Kind::Type1, Kind::Compat, Kind::Iommufd]),
        at_the_top in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        // Of type1, the last page is left out.
        let base = if at_the_top { TOP - PAGES * PAGE } else { 0 };
        let (opened, backend) = open(kind);
        let model = Sim::new(SimConfig { rules: rules_of(kind), all_dirty: false, ..SimConfig::default() });
        for tracked in [&*backend, &model as &dyn Backend] {
            if let Some(tracking) = tracked.dirty_tracking() {
                tracking.track_dirty(true).unwrap();
            }
        }
        for (number, step) in steps.into_iter().enumerate() {
            for sim in [opened.sim(), &model] {
                sim.write(base + number as u64 % PAGES * PAGE);
            }
            prop_assert_eq!(make(step, base, &*backend), make(step, base, &model), "{:?}", step);
            prop_assert_eq!(opened.sim().mappings(), model.mappings());
        }
    }
}
