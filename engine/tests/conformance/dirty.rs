//! type1's dirty tracking: one sequence of calls for the model and the kernel.

use super::cases::PAGE;
use super::run::Hva;
use super::{Memory, error};
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};

const START: u64 = 0x1000_0000;

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova(START + first * PAGE), count * PAGE).unwrap()
}

/// A vfio-pci device does not report its writes, so every mapped page is dirty each time.
pub fn assert_told(backend: &dyn Backend, memory: Memory) {
    let tracking = backend.dirty_tracking().expect("type1 has tracked dirty pages since Linux 5.8");
    assert!(tracking.max_bytes() >= 1 << 40, "{:#x}", tracking.max_bytes());
    let read = |range, words: usize| {
        let mut bitmap = vec![0; words];
        tracking.read_dirty(range, &mut bitmap).map(|()| bitmap)
    };
    let unmap = |range| {
        let mut bitmap = [0, 0];
        tracking.unmap_dirty(range, &mut bitmap).map(|bytes| (bytes, bitmap[0]))
    };
    for (entry, offset) in [(0, 0), (64, 2)] {
        let hva = memory.host(Hva::Writable(offset * PAGE));
        backend.map(&Mapping { range: pages(entry, 2), hva, perm: Perm::ReadWrite }, None).unwrap();
    }
    assert_eq!(read(pages(0, 66), 2), Err(Errno::EINVAL), "not tracked yet");
    assert_eq!(unmap(pages(0, 66)), Err(Errno::EINVAL), "not tracked yet");
    for _ in 0..2 {
        assert_eq!(tracking.track_dirty(true), Ok(()));
    }
    for _ in 0..2 {
        assert_eq!(read(pages(0, 66), 2), Ok(vec![0b11, 0b11]));
    }
    assert_eq!(read(pages(64, 2), 1), Ok(vec![0b11]));
    assert_eq!(read(pages(0, 200), 4), Ok(vec![0b11, 0b11, 0, 0]), "nothing is told of nothing");
    assert_eq!(read(pages(8, 4), 1), Ok(vec![0]));
    for cut in [pages(0, 1), pages(1, 1), pages(0, 65), pages(1, 65)] {
        assert_eq!(read(cut, 2), Err(Errno::EINVAL), "{cut} cuts an entry");
        assert_eq!(unmap(cut), Err(Errno::EINVAL), "{cut} cuts an entry");
    }
    assert_eq!(read(pages(0, 65), 1), Err(Errno::EINVAL), "more pages than bits");
    assert_eq!(unmap(pages(0, 2)), Ok((2 * PAGE, 0b11)));
    assert_eq!(unmap(pages(0, 2)), Ok((0, 0)));
    assert_eq!(read(pages(0, 66), 2), Ok(vec![0, 0b11]));
    // An entry that does not begin with a word of the bitmap: from the second time on, bits after its end are set. No
    // page is missed, and the engine never makes such a call.
    for _ in 0..2 {
        assert_eq!(read(pages(60, 6), 1).map(|bitmap| bitmap[0] & 0b11_1111), Ok(0b11_0000));
    }
    for _ in 0..2 {
        assert_eq!(tracking.track_dirty(false), Ok(()));
    }
    assert_eq!(read(pages(0, 66), 2), Err(Errno::EINVAL), "not tracked any more");
    assert_eq!(backend.unmap(pages(64, 2)), Ok(2 * PAGE));
}

/// The engine requests whole entries, whatever range its caller requests.
pub fn assert_told_by_section(backend: Box<dyn Backend>, memory: Memory) {
    let engine = Engine::new(
        backend,
        Config { huge_pages: false, threads: 8, oversubscribe: true, ..Config::default() },
    )
    .unwrap();
    let read = |range| -> Result<u64, error::Error> {
        let mut bitmap = [0];
        engine.read_dirty(range, &mut bitmap).map(|()| bitmap[0])
    };
    // One entry that consists of two sections.
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(1));
    engine.begin().unwrap();
    for section in [0, 4] {
        let hva = memory.host(Hva::Writable(section * PAGE));
        let range = pages(section, 4);
        engine.map_region(Region { range, hva, perm, kind, backing, join: true, exact: false }).unwrap();
    }
    assert_eq!(engine.commit().unwrap().executed.map_calls, 1);
    engine.track_dirty(true).unwrap();
    for section in [0, 4] {
        assert_eq!(read(pages(section, 4)).unwrap(), 0b1111);
    }
    assert_eq!(read(pages(3, 2)).unwrap(), 0b11);
    let mut bitmap = [0];
    assert_eq!(engine.unmap_dirty(pages(1, 3), &mut bitmap).unwrap(), 3 * PAGE);
    assert_eq!(bitmap, [0b111]);
    assert_eq!(engine.entries().len(), 2, "the rest of the entry is mapped again");
    assert_eq!(read(pages(0, 8)).unwrap(), 0b1111_0001);
    engine.close().unwrap();
}
