//! A container of type1 whose last group leaves before the engine is closed.

use super::Memory;
use super::cases::PAGE;
use super::common::range;
use super::kernel;
use super::run::Hva;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};

/// The kernel has unmapped everything, so closing succeeds, whatever was tried in between.
pub fn is_closed_after_its_last_group() {
    for unmap_before in [false, true] {
        kernel::leaving(|backend, leave, memory| {
            let engine = Engine::new(backend, Config::default()).unwrap();
            for page in 0..3 {
                engine.map_region(region(memory, page)).unwrap();
            }
            leave();
            let error = engine.map_region(region(memory, 3)).unwrap_err();
            assert!(error.to_string().contains("its last group has left it"), "{error}");
            if unmap_before {
                assert_eq!(engine.unmap(region(memory, 0).range).unwrap_err().errno, Errno::EINVAL);
                assert!(engine.info().poisoned);
            }
            engine.close().unwrap();
        });
    }
}

/// One page of the memory, at an IOVA that is not adjacent to that of another one.
fn region(memory: Memory, page: u64) -> Region {
    let (range, hva) = (range(2 * page * PAGE, PAGE), memory.host(Hva::Writable(page * PAGE)));
    Region {
        range,
        hva,
        perm: Perm::ReadWrite,
        kind: Kind::Ram,
        backing: Backing::UNKNOWN,
        join: false,
        exact: true,
    }
}
