//! The memory objects that regions are parts of, as file descriptors. A kernel can map these without using this
//! process's addresses.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::error::{Errno, Error, ErrorKind, Result};
use crate::reconcile::table::Entry;
use crate::region::{Backing, Kind, Region};
use crate::sys::fd::{self, Descriptor, FileId};

/// The kind of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectKind {
    /// A memory file (memfd, shmem, hugetlbfs) that is mapped shared at the region's host address.
    Memory,
    /// A VFIO device with a BAR that contains the region.
    Bar {
        /// VFIO's number of the BAR's region.
        region_index: u32,
    },
}

impl ObjectKind {
    fn is_of(self, kind: Kind) -> bool {
        match self {
            Self::Memory => kind == Kind::Ram,
            Self::Bar { .. } => kind == Kind::Device,
        }
    }
}

/// An object, and the offset in it at which an entry begins.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The file or the device.
    pub fd: BorrowedFd<'a>,
    /// The kind of the descriptor.
    pub kind: ObjectKind,
    /// The offset in bytes.
    pub offset: u64,
}

/// An object as the caller names it, and the offset in it at which the region begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRef<'a> {
    /// The file or the device. It is duplicated, so it may be closed when the call has returned.
    pub fd: Descriptor<'a>,
    /// The kind of the descriptor.
    pub kind: ObjectKind,
    /// The offset in bytes.
    pub offset: u64,
}

/// An object, and the offset in it that host address 0 would have.
#[derive(Clone, Debug)]
struct ObjectEntry {
    fd: Arc<OwnedFd>,
    /// The file or the device. Its number cannot be reused while `fd` is open.
    id: FileId,
    kind: ObjectKind,
    base: u64,
}

impl ObjectEntry {
    /// Whether a descriptor of the same file is also of the same device, if this is a BAR, as far as the kernel says.
    fn is_of_device(&self, other: Descriptor<'_>) -> bool {
        self.kind == ObjectKind::Memory || fd::is_same_opening(self.fd.as_fd().into(), other) != Some(false)
    }
}

/// A checked object, to be passed to [`Objects::insert`].
#[derive(Debug)]
pub struct PendingObject {
    backing: Backing,
    /// `None` if the object is already held.
    held: Option<ObjectEntry>,
}

/// The objects of the backings of regions.
#[derive(Debug, Default)]
pub struct Objects {
    held: BTreeMap<Backing, ObjectEntry>,
}

impl Objects {
    /// Checks the object that the caller names for the region, and duplicates its descriptor if the object is new.
    /// `page` is the smallest IOMMU page.
    pub fn check(&self, region: &Region, object: &ObjectRef<'_>, page: u64) -> Result<PendingObject> {
        let &ObjectRef { fd: named, kind, offset } = object;
        let refused = |errno, kind| Err(Error::check(errno, kind).at(region.range).at_hva(region.hva));
        if offset & (page - 1) != 0 {
            return refused(Errno::EINVAL, ErrorKind::Misaligned { value: offset, page });
        }
        if offset.checked_add(region.range.length()).is_none() {
            return refused(Errno::EINVAL, ErrorKind::BadRange);
        }
        let backing = region.backing;
        if backing == Backing::UNKNOWN {
            return refused(Errno::EINVAL, ErrorKind::Other("a region with a descriptor needs a backing"));
        }
        let base = offset.wrapping_sub(region.hva.raw());
        let Some(held) = self.held.get(&backing) else {
            let opened = fd::duplicate(named).and_then(|fd| Ok((fd::file_id(fd.as_fd().into())?, fd)));
            return match opened {
                Ok((id, fd)) => {
                    let held = ObjectEntry { fd: Arc::new(fd), id, kind, base };
                    Ok(PendingObject { backing, held: Some(held) })
                }
                Err(errno) => refused(errno, unusable(errno)),
            };
        };
        match fd::file_id(named) {
            Ok(id) if (held.id, held.kind, held.base) == (id, kind, base) && held.is_of_device(named) => {
                Ok(PendingObject { backing, held: None })
            }
            Ok(_) => refused(
                Errno::EINVAL,
                ErrorKind::Other(
                    "other regions with this backing have another object, or other offsets in it",
                ),
            ),
            Err(errno) => refused(errno, unusable(errno)),
        }
    }

    /// Adds a checked object.
    pub fn insert(&mut self, accepted: PendingObject) {
        if let Some(held) = accepted.held {
            self.held.insert(accepted.backing, held);
        }
    }

    /// The object that the entry is a part of, if one was named.
    pub fn object_of(&self, entry: &Entry) -> Option<Object<'_>> {
        let held = self.held.get(&entry.backing).filter(|held| held.kind.is_of(entry.kind))?;
        let offset = held.base.wrapping_add(entry.hva.raw());
        Some(Object { fd: held.fd.as_fd(), kind: held.kind, offset })
    }

    /// The objects of these entries, for calls that are made while other objects come and go. Their descriptors stay
    /// open until the last copy is gone.
    pub fn of_entries(&self, entries: &[Entry]) -> Self {
        let mut held: BTreeMap<Backing, ObjectEntry> = BTreeMap::new();
        for entry in entries {
            if let Some(object) = self.held.get(&entry.backing) {
                held.entry(entry.backing).or_insert_with(|| object.clone());
            }
        }
        Self { held }
    }

    /// Closes the object of `backing`, if one is held.
    pub fn remove(&mut self, backing: Backing) {
        self.held.remove(&backing);
    }

    /// Closes the objects of all backings that are not `wanted`.
    pub fn retain(&mut self, mut wanted: impl FnMut(Backing) -> bool) {
        self.held.retain(|backing, _| wanted(*backing));
    }
}

/// Why the kernel does not accept the caller's descriptor. A limit, too little memory or a sandbox is not the descriptor's
/// fault; the errno's own text names those.
fn unusable(errno: Errno) -> ErrorKind {
    if errno == Errno::EBADF {
        ErrorKind::Other("the region's descriptor is not open")
    } else {
        ErrorKind::Kernel
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::addr::{HostVa, Iova, IovaRange};
    use crate::reconcile::table::Generation;
    use crate::region::Perm;

    fn region(hva: u64, backing: u64) -> Region {
        Region {
            range: IovaRange::new(Iova(0), 0x1000).unwrap(),
            hva: HostVa::from_raw(hva),
            perm: Perm::ReadWrite,
            kind: Kind::Ram,
            backing: Backing(backing),
            join: false,
            exact: false,
        }
    }

    fn entry(region: &Region) -> Entry {
        Entry::of(region, Generation::SHARED)
    }

    fn held_by(objects: &mut Objects, region: &Region, object: &ObjectRef) -> Result<()> {
        let accepted = objects.check(region, object, 0x1000)?;
        objects.insert(accepted);
        Ok(())
    }

    #[test]
    fn an_object_is_found_from_any_of_its_addresses() {
        let file = File::open("/dev/null").unwrap();
        let object = |offset| ObjectRef { fd: file.as_fd().into(), kind: ObjectKind::Memory, offset };
        let mut objects = Objects::default();
        // The object begins at a host address above 0.
        let first = region(0x9000, 1);
        held_by(&mut objects, &first, &object(0x1000)).unwrap();
        held_by(&mut objects, &region(0xb000, 1), &object(0x3000)).unwrap();
        assert_eq!(objects.held.len(), 1, "one descriptor for all regions of it");
        let other = held_by(&mut objects, &region(0xb000, 1), &object(0x4000));
        assert_eq!(other.unwrap_err().errno, Errno::EINVAL);
        // Another descriptor of the same file, and another file at the same place.
        let again = File::open("/dev/null").unwrap();
        let zero = File::open("/dev/zero").unwrap();
        let named = |fd| ObjectRef { fd, ..object(0x3000) };
        held_by(&mut objects, &region(0xb000, 1), &named(again.as_fd().into())).unwrap();
        let other = held_by(&mut objects, &region(0xb000, 1), &named(zero.as_fd().into()));
        assert_eq!(other.unwrap_err().errno, Errno::EINVAL);
        let offset = |region: Region| objects.object_of(&entry(&region)).map(|object| object.offset);
        assert_eq!(offset(first), Some(0x1000));
        assert_eq!(offset(region(0xc000, 1)), Some(0x4000));
        assert_eq!(offset(region(0xc000, 2)), None, "another backing");
        assert_eq!(offset(Region { kind: Kind::Device, ..first }), None, "turned out to be no memory");
        let copy = objects.of_entries(&[entry(&region(0, 2)), entry(&first)]);
        assert_eq!(copy.held.len(), 1);
        objects.retain(|backing| backing == Backing(2));
        assert!(objects.object_of(&entry(&first)).is_none());
        let fd = copy.object_of(&entry(&first)).expect("the copy keeps it open").fd;
        assert!(fd.try_clone_to_owned().is_ok());
    }

    #[test]
    fn a_bar_is_known_by_its_number() {
        let file = File::open("/dev/null").unwrap();
        let object = |region_index| {
            let kind = ObjectKind::Bar { region_index };
            ObjectRef { fd: file.as_fd().into(), kind, offset: 0 }
        };
        let bar = Region { kind: Kind::Device, ..region(0x9000, 1) };
        let mut objects = Objects::default();
        held_by(&mut objects, &bar, &object(2)).unwrap();
        assert!(objects.check(&bar, &object(2), 0x1000).is_ok());
        assert_eq!(objects.check(&bar, &object(4), 0x1000).unwrap_err().errno, Errno::EINVAL);
        // A device that is opened through its group has no file of its own, and cannot be told from others by name.
        let again = File::open("/dev/null").unwrap();
        let other = objects.check(&bar, &ObjectRef { fd: again.as_fd().into(), ..object(2) }, 0x1000);
        let told_apart = fd::is_same_opening(file.as_fd().into(), again.as_fd().into()).is_some();
        assert_eq!(other.err().map(|error| error.errno), told_apart.then_some(Errno::EINVAL));
        assert!(objects.object_of(&entry(&bar)).is_some());
        assert!(objects.object_of(&entry(&region(0x9000, 1))).is_none(), "memory at a BAR's addresses");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let object = ObjectRef { fd: file.as_fd().into(), kind: ObjectKind::Memory, offset: 0x1000 };
        let objects = Objects::default();
        let errno =
            |region: &Region, object: &ObjectRef| objects.check(region, object, 0x1000).unwrap_err().errno;
        let good = region(0x9000, 1);
        assert!(objects.check(&good, &object, 0x1000).is_ok());
        assert_eq!(errno(&region(0x9000, 0), &object), Errno::EINVAL);
        assert_eq!(errno(&good, &ObjectRef { offset: 0x1800, ..object }), Errno::EINVAL);
        assert_eq!(errno(&good, &ObjectRef { offset: 0u64.wrapping_sub(0x1000), ..object }), Errno::EINVAL);
    }
}
