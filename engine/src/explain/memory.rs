//! Why memory cannot be pinned: its mapping, its file, the pool of its huge pages, or one of its pages.

use crate::addr::HostVa;
use crate::error::{Errno, ErrorKind, KernelResult, PageFault};
use crate::populate::files::{self, Backing};
use crate::sys::file_system::{self, Kind, Space};
use crate::sys::madvise::{self, Access};
use crate::sys::mincore;
use crate::sys::page::base_page;
use crate::sys::procmap::{Maps, Vma};
use crate::sys::vma;

/// Why the kernel cannot pin all of the `bytes` bytes at `hva`, if that can be found out.
pub(super) fn reason(hva: HostVa, bytes: u64, writable: bool) -> Option<ErrorKind> {
    // Before Linux 6.11, the pages are all that can be asked.
    if let Some(maps) = Maps::open() {
        let end = hva.raw().checked_add(bytes)?;
        let mut next = hva.raw();
        while next < end {
            let at = HostVa::from_raw(next);
            let Some(vma) = maps.at(next) else {
                return Some(ErrorKind::Page { at, fault: PageFault::Hole });
            };
            let reason = of_mapping(&maps, at, vma.end.min(end) - next, &vma, writable);
            if reason.is_some() {
                return reason;
            }
            next = vma.end;
        }
    }
    // The kernel pins pages in order: before the one that it cannot pin, all are present.
    let present = mincore::present(hva, bytes).ok()?;
    let page = base_page();
    let (at, fault) = first_fault(hva, present.saturating_add(page).min(bytes), page, |hva, bytes| {
        madvise::populate(hva, bytes, Access::Read)
    })?;
    Some(ErrorKind::Page { at, fault })
}

/// Why none of a mapping can be pinned.
fn of_mapping(maps: &Maps, at: HostVa, bytes: u64, vma: &Vma, writable: bool) -> Option<ErrorKind> {
    // Device memory is never faulted in: this asks for the list of mappings only if it may be that.
    let odd = madvise::populate(at, base_page(), Access::Read) == Err(Errno::EINVAL);
    if odd && vma::is_device(at, bytes).unwrap_or(false) {
        return Some(ErrorKind::Page { at, fault: PageFault::Device });
    }
    if !vma.readable || (writable && !vma.writable) {
        let fault = PageFault::NoAccess { write: vma.readable };
        return Some(ErrorKind::Page { at, fault });
    }
    let shared = maps.shared_file(at).and_then(|file| files::backing(&file));
    let full = |page| move |space: &Space| space.free < page;
    match shared {
        Some(Backing { file, kind: Kind::Disk(system), .. }) => {
            return Some(ErrorKind::DiskFile { file, system });
        }
        Some(Backing { file, kind: Kind::Tmpfs(space), .. }) => {
            let needed = base_page();
            let Space { size, free } = space.filter(full(needed))?;
            let system = "tmpfs";
            return Some(ErrorKind::FileSystemFull { file, system, size, needed, free });
        }
        _ => {}
    }
    if vma.page > base_page() {
        let page = vma.page;
        let Space { size, free } = file_system::pool(page).filter(full(page))?;
        return Some(ErrorKind::NoHugePages { page, size, free });
    }
    None
}

/// The first page, of `page` bytes, that `populate` cannot make present because of what is behind it.
fn first_fault(
    hva: HostVa,
    bytes: u64,
    page: u64,
    populate: impl Fn(HostVa, u64) -> KernelResult<()>,
) -> Option<(HostVa, PageFault)> {
    let fault = match populate(hva, bytes) {
        Err(Errno::EHWPOISON) => PageFault::Poisoned,
        Err(Errno::EFAULT) => PageFault::Bus,
        _ => return None,
    };
    // Each call stops at the page, so nothing after it is made present.
    let (mut at, mut pages) = (hva, bytes / page);
    while pages > 1 {
        let half = pages / 2;
        if populate(at, half * page).is_err() {
            pages = half;
        } else {
            at = at.checked_add(half * page)?;
            pages -= half;
        }
    }
    Some((at, fault))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_page_with_the_error_is_found_and_none_after_it_is_touched() {
        for page in [4 << 10, 16 << 10, 64 << 10] {
            one_page_is_found(page);
        }
    }

    fn one_page_is_found(page: u64) {
        const START: u64 = 1 << 32;
        for pages in [1, 2, 3, 512, 1000] {
            for bad in [0, pages / 3, pages / 2, pages - 1] {
                for (errno, fault) in
                    [(Errno::EHWPOISON, PageFault::Poisoned), (Errno::EFAULT, PageFault::Bus)]
                {
                    let calls = Cell::new(0);
                    let populate = |hva: HostVa, bytes: u64| {
                        calls.set(calls.get() + 1);
                        assert_eq!(hva.raw() % page, 0, "the kernel takes only whole pages");
                        let first = (hva.raw() - START) / page;
                        assert!(first <= bad, "begins after it");
                        if (first..first + bytes / page).contains(&bad) { Err(errno) } else { Ok(()) }
                    };
                    let found = first_fault(HostVa::from_raw(START), pages * page, page, populate);
                    assert_eq!(found, Some((HostVa::from_raw(START + bad * page), fault)));
                    assert!(calls.get() <= 11, "{} calls", calls.get());
                }
            }
        }
        for answer in [Ok(()), Err(Errno::ENOMEM), Err(Errno::EINVAL)] {
            assert_eq!(first_fault(HostVa::from_raw(START), 8 * page, page, |_, _| answer), None);
        }
    }

    #[test]
    fn memory_in_order_has_no_reason() {
        let page = base_page();
        let pages = vec![1u8; 4 * page as usize];
        let inside = HostVa::from_raw((pages.as_ptr() as u64).next_multiple_of(page));
        assert_eq!(reason(inside, 2 * page, true), None);
        assert_eq!(reason(HostVa::from_raw(u64::MAX - (page - 1)), 2 * page, true), None, "wraps");
    }
}
