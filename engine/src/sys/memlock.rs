//! The amount of memory that this process has locked, and its limit.
#![allow(unsafe_code)]

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use super::proc;
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
    let limit = if may_lock_any(capabilities(), user_namespace()) { None } else { memlock_limit() };
    // The same in all threads. Profiles of AppArmor allow this file, but not the one in thread-self.
    let locked = limit.map_or(0, |_| locked(&proc::read("/proc/self/status").unwrap_or_default()));
    Memlock { locked, limit, scope: MemlockScope::Process }
}

/// The effective capabilities of the calling thread, which makes the map calls; all of them if they cannot be read.
fn capabilities() -> u64 {
    /// `struct __user_cap_header_struct`; process 0 is the calling thread.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// `struct __user_cap_data_struct`
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// _LINUX_CAPABILITY_VERSION_3, which has two words.
    const VERSION: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the call reads and writes the header, and writes two elements for this version.
    let answer = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if answer == 0 { u64::from(data[1].effective) << 32 | u64::from(data[0].effective) } else { u64::MAX }
}

/// The inode number of the user namespace, which a process with several threads cannot leave.
fn user_namespace() -> Option<u64> {
    static NAMESPACE: OnceLock<Option<u64>> = OnceLock::new();
    *NAMESPACE.get_or_init(|| fs::metadata("/proc/self/ns/user").ok().map(|namespace| namespace.ino()))
}

/// Whether a thread with these capabilities in the user namespace with this inode number is exempt from
/// RLIMIT_MEMLOCK.
fn may_lock_any(capabilities: u64, namespace: Option<u64>) -> bool {
    // The kernel checks the capability in the initial namespace; root in another user namespace has it only there.
    let on_the_host = namespace.is_none_or(|inode| inode == INITIAL_USER_NAMESPACE);
    on_the_host && capabilities >> CAP_IPC_LOCK & 1 == 1
}

/// VmLck of /proc/self/status in bytes.
fn locked(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    line.and_then(|value| value.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_read_in_kib() {
        assert_eq!(locked("Name:\tx\nVmPeak:\t 9 kB\nVmLck:\t    1028 kB\nCapInh:\t0\n"), 1028 * 1024);
    }

    #[test]
    fn what_cannot_be_read_refuses_nothing() {
        for text in ["", "VmLck: many\n", "VmLck:\t-1 kB\n"] {
            assert_eq!(locked(text), 0);
        }
        assert_eq!(locked("VmLck:\t18446744073709551615 kB\n"), u64::MAX);
        assert!(may_lock_any(u64::MAX, None));
    }

    #[test]
    fn only_the_hosts_capability_lifts_the_limit() {
        assert!(may_lock_any(1 << 14, Some(INITIAL_USER_NAMESPACE)));
        assert!(!may_lock_any(!(1 << 14), Some(INITIAL_USER_NAMESPACE)));
        assert!(!may_lock_any(1 << 14, Some(0xf000_0000)));
    }

    #[test]
    fn the_kernel_says_what_the_thread_may_do() {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(capabilities(), u64::from_str_radix(line.trim(), 16).unwrap());
    }
}
