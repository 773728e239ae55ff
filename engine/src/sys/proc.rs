//! The files of this process in /proc that some hosts do not let it read: those of a program with file capabilities
//! belong to root, AppArmor profiles deny them, and a chroot has none.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU8, Ordering};

/// The files, and what is lost without each.
const FILES: [(&str, &str); 3] = [
    ("pagemap", "the size of pages is not reported"),
    ("maps", "iommufd maps files by address"),
    ("smaps", "device memory that is declared as RAM is not recognised"),
];

/// One bit for each file that could not be opened. The reason does not pass, and a denied open can be an entry in the
/// host's audit log: none is tried twice.
static DENIED: AtomicU8 = AtomicU8::new(0);

/// Opens a file of [`FILES`] in /proc/self; `None` if this process may not read it.
pub(crate) fn open(name: &str) -> Option<File> {
    let bit = FILES.iter().position(|(file, _)| *file == name).map_or(0, |index| 1 << index);
    if DENIED.load(Ordering::Relaxed) & bit != 0 {
        return None;
    }
    match File::open(format!("/proc/self/{name}")) {
        Ok(file) => Some(file),
        Err(error) => {
            if [ErrorKind::PermissionDenied, ErrorKind::NotFound].contains(&error.kind()) {
                DENIED.fetch_or(bit, Ordering::Relaxed);
            }
            None
        }
    }
}

/// What is lost because files cannot be read, if anything is.
pub(crate) fn lost() -> Option<String> {
    let lost = |name: &&(&str, &str)| open(name.0).is_none();
    let lost: Vec<String> = FILES
        .iter()
        .filter(lost)
        .map(|(name, loss)| format!("/proc/self/{name} cannot be read: {loss}"))
        .collect();
    (!lost.is_empty()).then(|| lost.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_may_read_its_own() {
        assert!(FILES.iter().all(|(name, _)| open(name).is_some()));
        assert_eq!(lost(), None);
    }
}
