//! The amount of memory that this process has locked, and its limit.
#![allow(unsafe_code)]

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;

use crate::limits::{Memlock, MemlockScope};

/// Bit of the effective capability set that lifts RLIMIT_MEMLOCK (CAP_IPC_LOCK in `linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;

/// Inode number of the user namespace that everything starts in (PROC_USER_INIT_INO in the kernel, never changed).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Reads the locked memory of this process and its limit, with the calling thread's capabilities.
///
/// A value that cannot be read counts as "nothing locked" or "no limit": the kernel enforces the limit anyway, and a
/// guess here must not refuse what the kernel would allow.
pub fn memlock() -> Memlock {
    // Capabilities and namespaces belong to threads, so this reads those of the calling thread, which makes the map
    // calls.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let namespace = fs::metadata("/proc/thread-self/ns/user").ok().map(|namespace| namespace.ino());
    let status = Status::parse(&status);
    let limit = if status.may_lock_any(namespace) { None } else { memlock_limit() };
    Memlock { locked: status.locked, limit, scope: MemlockScope::Process }
}

/// RLIMIT_MEMLOCK in bytes, `None` for infinity.
fn memlock_limit() -> Option<u64> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` is writable for one rlimit, which is all the call writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, limit.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has written the struct.
    let limit = unsafe { limit.assume_init() };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The relevant lines of /proc/.../status.
#[derive(PartialEq, Eq, Debug)]
struct Status {
    /// VmLck in bytes.
    locked: u64,
    /// The effective capabilities; all of them if they cannot be read.
    capabilities: u64,
}

impl Status {
    /// Whether a thread in the user namespace with this inode number is exempt from RLIMIT_MEMLOCK.
    fn may_lock_any(&self, namespace: Option<u64>) -> bool {
        // The kernel checks the capability in the initial namespace; root in another user namespace has it only
        // there.
        let on_the_host = namespace.is_none_or(|inode| inode == INITIAL_USER_NAMESPACE);
        on_the_host && self.capabilities >> CAP_IPC_LOCK & 1 == 1
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let locked = field("VmLck:")
            .and_then(|value| value.strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024));
        let capabilities = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        Self { locked, capabilities: capabilities.unwrap_or(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_in_kib_and_hex() {
        let text = "Name:\tx\nVmPeak:\t 9 kB\nVmLck:\t    1028 kB\nCapInh:\t0000000000004000\nCapEff:\t0000000000003fff\n";
        assert_eq!(Status::parse(text), Status { locked: 1028 * 1024, capabilities: 0x3fff });
    }

    #[test]
    fn what_cannot_be_read_refuses_nothing() {
        let unknown = Status { locked: 0, capabilities: u64::MAX };
        assert_eq!(Status::parse(""), unknown);
        assert_eq!(Status::parse("VmLck: many\nCapEff: zz\n"), unknown);
        assert_eq!(Status::parse("VmLck:\t-1 kB\n"), unknown);
        assert_eq!(Status::parse("VmLck:\t18446744073709551615 kB\n").locked, u64::MAX);
        assert!(unknown.may_lock_any(None));
    }

    #[test]
    fn only_the_hosts_capability_lifts_the_limit() {
        let may = |capabilities, namespace| Status { locked: 0, capabilities }.may_lock_any(namespace);
        assert!(may(1 << 14, Some(INITIAL_USER_NAMESPACE)));
        assert!(!may(!(1 << 14), Some(INITIAL_USER_NAMESPACE)));
        assert!(!may(1 << 14, Some(0xf000_0000)));
    }
}
