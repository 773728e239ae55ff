//! What cases run on besides the kernel's ioctls: the model's, and a backend.

use std::os::fd::BorrowedFd;

use super::Memory;
use super::cases::{AFTER_INTERRUPTS, INTERRUPTS, MEMORY, PAGE};
use super::run::{Answer, Case, Hva, Kernel, Op, Target};
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::{Iova, IovaRange, PageSizes};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::object::{Object, ObjectKind};
use vfio_fast_engine::region::Perm;

/// The end of user space addresses.
const USER_END: u64 = 0x8000_0000_0000;

fn perm(writable: bool) -> Perm {
    if writable { Perm::ReadWrite } else { Perm::Read }
}

/// A model with the properties that the case needs, and the IOVAs and pages of this kind of machine.
pub fn model(case: &Case, kernel: Kernel) -> Sim {
    let range = |start, last| IovaRange::from_bounds(start, last).unwrap();
    let Memory { nothing, read_only, .. } = Memory::IMAGINED;
    Sim::new(SimConfig {
        rules: match kernel {
            Kernel::Type1 => Rules::Type1,
            Kernel::Iommufd => Rules::Iommufd,
        },
        attached: !case.needs.no_device,
        iova_ranges: vec![range(0, INTERRUPTS - 1), range(AFTER_INTERRUPTS, (1 << 48) - 1)],
        dma_avail: case.needs.entries.unwrap_or(65_535),
        memlock_limit: case.needs.memlock_pages.map(|pages| pages * PAGE),
        page_sizes: PageSizes::from_bitmap(PAGE | 1 << 30),
        unmappable: vec![(nothing, nothing + MEMORY - 1), (USER_END, u64::MAX)],
        read_only: vec![(read_only, read_only + MEMORY - 1)],
        ..SimConfig::default()
    })
}

/// The model's results for raw ioctls.
pub struct Ioctls(pub Sim);

impl Target for Ioctls {
    fn map(&self, iova: u64, length: u64, memory: Hva, writable: bool) -> Result<(), i32> {
        self.0
            .ask_to_map(iova, length, Memory::IMAGINED.host(memory), perm(writable))
            .map_err(|errno| errno.0)
    }

    fn map_file(&self, iova: u64, length: u64, offset: u64, writable: bool) -> Result<(), i32> {
        self.0.ask_to_map_file(iova, length, offset, MEMORY, perm(writable)).map_err(|errno| errno.0)
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<u64, i32> {
        self.0.ask_to_unmap(iova, length).map_err(|errno| errno.0)
    }

    fn unmap_all(&self) -> Result<u64, i32> {
        self.0.ask_to_unmap_all().map_err(|errno| errno.0)
    }

    fn attach(&self) -> Result<(), i32> {
        self.0.attach().map_err(|errno| errno.0)
    }
}

/// A backend's results. It can only be called with what an [`IovaRange`] can express.
pub struct Through<'a> {
    pub backend: &'a dyn Backend,
    pub attach: &'a dyn Fn() -> Result<(), Errno>,
    pub memory: Memory,
}

impl Target for Through<'_> {
    fn map(&self, iova: u64, length: u64, memory: Hva, writable: bool) -> Result<(), i32> {
        let range = IovaRange::new(Iova(iova), length).expect("an expressible case");
        let mapping = Mapping { range, hva: self.memory.host(memory), perm: perm(writable) };
        self.backend.map(&mapping, None).map_err(|errno| errno.0)
    }

    fn map_file(&self, iova: u64, length: u64, offset: u64, writable: bool) -> Result<(), i32> {
        let range = IovaRange::new(Iova(iova), length).expect("an expressible case");
        let hva = self.memory.host(Hva::At(self.memory.file + offset));
        // SAFETY: the file is open as long as the memory exists.
        let fd = unsafe { BorrowedFd::borrow_raw(self.memory.fd) };
        let object = Object { fd, kind: ObjectKind::Memory, offset };
        let mapping = Mapping { range, hva, perm: perm(writable) };
        self.backend.map(&mapping, Some(object)).map_err(|errno| errno.0)
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<u64, i32> {
        let range = IovaRange::new(Iova(iova), length).expect("an expressible case");
        self.backend.unmap(range).map_err(|errno| errno.0)
    }

    fn unmap_all(&self) -> Result<u64, i32> {
        self.backend.unmap_all().map_err(|errno| errno.0)
    }

    fn attach(&self) -> Result<(), i32> {
        (self.attach)().map_err(|errno| errno.0)
    }
}

/// Whether the engine can express this call. The maximum length is that of `IovaRange::ALL` only.
pub fn is_expressible(case: &Case) -> bool {
    case.steps.iter().all(|step| match step.op {
        Op::Map { iova, length, .. } | Op::Unmap { iova, length } => {
            length != u64::MAX && IovaRange::new(Iova(iova), length).is_some()
        }
        Op::MapFile { length, offset, .. } => {
            // The memory must be mapped in this process, and the engine checks alignment itself.
            length > 0 && (length | offset) & (PAGE - 1) == 0 && offset.saturating_add(length) <= MEMORY
        }
        Op::UnmapAll | Op::Attach => true,
    })
}

/// Replaces iommufd's ENOENT by 0 bytes, as the backend does.
pub fn as_backend(mut case: Case) -> Case {
    for step in &mut case.steps {
        if let (Op::Unmap { .. }, Answer::No([libc::ENOENT])) = (step.op, step.iommufd) {
            step.iommufd = Answer::Bytes(0);
        }
    }
    case
}
