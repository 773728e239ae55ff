//! Files in /proc and /sys that some hosts do not let this process read: those of a program with file capabilities
//! belong to root, AppArmor profiles deny them, and a chroot has none.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};

/// Files of this process, and what is lost without each.
const FILES: [(&str, &str); 3] = [
    ("/proc/self/pagemap", "the size of pages is not reported"),
    ("/proc/self/maps", "iommufd maps files by address"),
    ("/proc/self/smaps", "device memory that is declared as RAM is not recognised"),
];

/// The same for files that not every kernel has.
const OPTIONAL: [(&str, &str); 2] = [
    ("/proc/self/cgroup", "a CPU quota does not reduce the number of threads"),
    ("/sys/devices/system/node/node0/cpulist", "NUMA policies do not bind threads to nodes"),
];

static DENIED: Denied = Denied(Mutex::new(BTreeSet::new()));

/// Paths that this process may not open. The reason does not pass, and a denied open can be an entry in the host's audit
/// log: none is tried twice.
struct Denied(Mutex<BTreeSet<String>>);

impl Denied {
    fn open(&self, path: &str, open: impl FnOnce(&str) -> io::Result<File>) -> Option<File> {
        if self.contains(path) {
            return None;
        }
        match open(path) {
            Ok(file) => Some(file),
            Err(error) => {
                if error.kind() == ErrorKind::PermissionDenied {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
                }
                None
            }
        }
    }

    fn contains(&self, path: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }
}

/// Opens a file; `None` if this process may not read it, or if there is none.
pub(crate) fn open(path: &str) -> Option<File> {
    DENIED.open(path, |path| File::open(path))
}

/// The text of a file; `None` if this process may not read it, or if there is none.
pub(crate) fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Whether this process may not read that file.
pub(crate) fn is_denied(path: &str) -> bool {
    open(path).is_none() && DENIED.contains(path)
}

/// What is lost because files cannot be read, if anything is.
pub(crate) fn lost() -> Option<String> {
    let files = FILES.iter().filter(|(path, _)| open(path).is_none());
    let lost = files.chain(OPTIONAL.iter().filter(|(path, _)| is_denied(path)));
    let lost: Vec<String> = lost.map(|(path, loss)| format!("{path} cannot be read: {loss}")).collect();
    (!lost.is_empty()).then(|| lost.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_may_read_its_own() {
        assert!(FILES.iter().all(|(path, _)| open(path).is_some()));
        assert!(read("/proc/self/status").is_some_and(|text| text.contains("VmLck:")));
        assert!(!OPTIONAL.iter().any(|(path, _)| is_denied(path)) && !is_denied("/proc/self/nothing"));
        assert_eq!(lost(), None);
    }

    #[test]
    fn what_is_denied_is_not_tried_again() {
        let denied = Denied(Mutex::default());
        let tries = |kind: ErrorKind, path| {
            let mut tries = 0;
            for _ in 0..3 {
                let open = |_: &str| {
                    tries += 1;
                    Err(kind.into())
                };
                assert!(denied.open(path, open).is_none());
            }
            tries
        };
        assert_eq!(tries(ErrorKind::PermissionDenied, "/a"), 1);
        // A file that does not exist now can appear.
        assert_eq!(tries(ErrorKind::NotFound, "/b"), 3);
        assert!(denied.contains("/a") && !denied.contains("/b"));
        assert!(denied.open("/b", |_| File::open("/proc/self/status")).is_some());
    }
}
