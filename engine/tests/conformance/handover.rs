//! Handing entries over: one sequence of calls for the model and the kernel. Both processes are this one.

use super::Memory;
use super::cases::PAGE;
use super::run::Hva;
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::Perm;

const START: u64 = 0x2000_0000;

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova(START + first * PAGE), count * PAGE).unwrap()
}

/// type1: each entry has a host address or has none, and is handed over in its size.
pub fn assert_handed_over(backend: &dyn Backend, memory: Memory) {
    let handover = backend.handover().expect("type1 can do this since Linux 5.12");
    let mapping = |first, count, offset| {
        let hva = memory.host(Hva::Writable(offset * PAGE));
        Mapping { range: pages(first, count), hva, perm: Perm::ReadWrite }
    };
    let entries = [mapping(0, 2, 0), mapping(64, 4, 2)];
    for entry in &entries {
        backend.map(entry, None).unwrap();
    }
    let set = |mapping: Mapping| handover.set_address(&mapping);
    assert_eq!(set(entries[0]), Err(Errno::EINVAL), "it has one");
    assert_eq!(handover.drop_addresses(None), Ok(()));
    assert_eq!(handover.drop_addresses(None), Err(Errno::EINVAL), "they have none");
    assert_eq!(handover.drop_addresses(Some(pages(0, 2))), Err(Errno::EINVAL), "it has none");

    assert_eq!(set(mapping(8, 1, 0)), Err(Errno::ENOENT), "there is no entry");
    for other in [mapping(0, 1, 0), mapping(1, 1, 1), mapping(0, 4, 0), mapping(64, 2, 2)] {
        assert_eq!(set(other), Err(Errno::EINVAL), "{} is not an entry", other.range);
    }
    assert_eq!(set(entries[0]), Ok(()));
    assert_eq!(set(entries[0]), Err(Errno::EINVAL), "it has one again");
    assert_eq!(handover.drop_addresses(None), Err(Errno::EINVAL), "one of them has none");
    assert_eq!(set(entries[0]), Err(Errno::EINVAL), "a refused call has dropped nothing");
    assert_eq!(handover.drop_addresses(Some(pages(1, 4))), Err(Errno::EINVAL), "it cuts an entry");
    assert_eq!(handover.drop_addresses(Some(pages(0, 2))), Ok(()));
    assert_eq!(set(mapping(0, 2, 4)), Ok(()), "another address");

    // What nobody has taken over can be unmapped.
    assert_eq!(backend.unmap(pages(64, 4)), Ok(4 * PAGE));
    assert_eq!(backend.unmap(pages(0, 2)), Ok(2 * PAGE));
}
