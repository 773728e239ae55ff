//! Recognises file memory that its file system cannot hold, or that the kernel does not pin, before it is filled.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{HostRange, MIN_PARALLEL_BYTES};
use crate::addr::HostVa;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::reconcile::table::Entry;
use crate::sys::file_system::{self, Kind, Space};
use crate::sys::procmap::{Maps, SharedFile};

/// A file behind host memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    /// Its name.
    pub file: String,
    /// Its file system.
    pub kind: Kind,
    device: u64,
    inode: u64,
    /// Bytes that the file has; `None` if it has no name any more, so that the kernel does not say.
    held: Option<u64>,
}

/// What is to be faulted in of one file system.
#[derive(Debug)]
struct Demand {
    file: String,
    /// The first memory of it.
    hva: HostVa,
    /// The type of the file system.
    system: &'static str,
    bytes: u64,
    space: Space,
    /// What each file has.
    held: BTreeMap<u64, Option<u64>>,
}

/// Whether the memory of `pieces` should be faulted in ahead. An error if its file system has too little space: the map
/// call would fail with the same errno, after it had filled the file system.
///
/// Costs one or two system calls for each mapping of 4 MiB or more, and two more for shared files that have a name. On
/// kernels before 6.11 nothing is known, and everything is faulted in.
pub(crate) fn can_hold(pieces: &[HostRange]) -> Result<bool> {
    let large = || pieces.iter().filter(|piece| piece.bytes >= MIN_PARALLEL_BYTES);
    if large().next().is_none() {
        return Ok(true);
    }
    let Some(mappings) = Maps::open() else { return Ok(true) };
    let mut systems: BTreeMap<u64, Demand> = BTreeMap::new();
    let mut last: Option<(HostVa, Option<Backing>)> = None;
    for piece in large() {
        // Pieces are ascending in most mappings, and a mapping has many of them.
        if last.as_ref().is_none_or(|(end, _)| piece.hva >= *end) {
            last = mappings.shared_file(piece.hva).map(|file| (file.end, backing(&file)));
        }
        let Some((_, Some(backing))) = &last else { continue };
        let (system, space) = match backing.kind {
            Kind::Disk(_) => return Ok(false),
            Kind::Tmpfs(Some(space)) => ("tmpfs", space),
            Kind::Hugetlbfs(space) => ("hugetlbfs", space),
            Kind::Tmpfs(None) | Kind::Other => continue,
        };
        let demand = systems.entry(backing.device).or_insert_with(|| {
            let (file, held) = (backing.file.clone(), BTreeMap::new());
            Demand { file, hva: piece.hva, system, bytes: 0, space, held }
        });
        demand.bytes = demand.bytes.saturating_add(piece.bytes);
        demand.held.insert(backing.inode, backing.held);
    }
    let mut fits = true;
    for demand in systems.into_values() {
        fits &= demand.fits()?;
    }
    Ok(fits)
}

/// An error if the file system of the memory that `entries` map has too little space left, or if the kernel does not
/// pin its pages. Nothing is faulted in.
pub(crate) fn check(entries: &[&Entry]) -> Result<()> {
    // Small entries that are adjacent in host memory count as one.
    let mut pieces: Vec<HostRange> = Vec::new();
    for entry in entries {
        let (hva, bytes, writable) = (entry.hva, entry.range.length(), entry.perm.is_writable());
        match pieces.last_mut() {
            Some(last) if last.writable == writable && last.hva.checked_add(last.bytes) == Some(hva) => {
                last.bytes = last.bytes.saturating_add(bytes);
            }
            _ => pieces.push(HostRange { hva, bytes, writable }),
        }
    }
    can_hold(&pieces)?;
    let Some(mappings) = Maps::open() else { return Ok(()) };
    for piece in pieces.iter().filter(|piece| piece.writable) {
        let found = mappings.shared_file(piece.hva).and_then(|file| backing(&file));
        if let Some(Backing { file, kind: Kind::Disk(system), .. }) = found {
            return Err(Error::check(Errno::EFAULT, ErrorKind::DiskFile { file, system }).at_hva(piece.hva));
        }
    }
    Ok(())
}

impl Demand {
    /// Whether there is space enough; an error if there certainly is not.
    fn fits(self) -> Result<bool> {
        let Self { file, hva, system, bytes, space: Space { size, free }, held } = self;
        if bytes <= free {
            return Ok(true);
        }
        let Some(held) = held.into_values().sum::<Option<u64>>() else {
            // A file without a name may be there already. The map calls find out, in order.
            return Ok(false);
        };
        let needed = bytes.saturating_sub(held);
        if needed <= free {
            return Ok(true);
        }
        Err(Error::check(Errno::EFAULT, ErrorKind::FileSystemFull { file, system, size, needed, free })
            .at_hva(hva))
    }
}

/// The backing of a shared file; `None` for memory without a name (memfd, shared anonymous memory), for devices, and if
/// another file has the name now.
pub(crate) fn backing(shared: &SharedFile) -> Option<Backing> {
    const DELETED: &[u8] = b" (deleted)";
    let named = Path::new(OsStr::from_bytes(&shared.name));
    let of_mapping = |found: &fs::Metadata| {
        let device = found.dev();
        (libc::major(device), libc::minor(device)) == (shared.identity.major, shared.identity.minor)
    };
    if let Ok(found) = fs::symlink_metadata(named) {
        let same = of_mapping(&found) && found.ino() == shared.identity.inode && found.is_file();
        return same.then(|| {
            let (device, inode, held) = (found.dev(), found.ino(), Some(found.blocks().saturating_mul(512)));
            let file = named.display().to_string();
            Some(Backing { file, kind: file_system::of(named)?, device, inode, held })
        })?;
    }
    // The folder that the file was in is on the same file system, if it is still there.
    let path = Path::new(OsStr::from_bytes(shared.name.strip_suffix(DELETED)?));
    let folder = path.parent().filter(|folder| *folder != Path::new("/dev"))?;
    let found = fs::metadata(folder).ok().filter(of_mapping)?;
    let (device, inode) = (found.dev(), shared.identity.inode);
    let file = path.display().to_string();
    Some(Backing { file, kind: file_system::of(folder)?, device, inode, held: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(bytes: u64, free: u64, held: &[Option<u64>]) -> Result<bool> {
        let held = (0..).zip(held.iter().copied()).collect();
        let (file, space) = ("/dev/shm/ram".to_owned(), Space { size: 200, free });
        Demand { file, hva: HostVa::from_raw(0), system: "tmpfs", bytes, space, held }.fits()
    }

    #[test]
    fn only_what_is_missing_needs_space() {
        assert_eq!(demand(100, 100, &[Some(0)]), Ok(true));
        assert_eq!(demand(100, 40, &[Some(30), Some(30)]), Ok(true));
        let error = demand(100, 39, &[Some(30), Some(30)]).unwrap_err();
        assert_eq!(error.errno, Errno::EFAULT);
        let text = error.to_string();
        let reason = "the file system of /dev/shm/ram (tmpfs of 200 bytes) has 39 bytes free, 40 bytes more are needed";
        assert!(text.contains(reason), "{text}");
        assert_eq!(demand(100, 99, &[None]), Ok(false), "what it has is not known");
        assert_eq!(demand(100, 100, &[None]), Ok(true));
    }
}
