//! The amount of memory that this process has locked, and its limit.
#![allow(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use super::proc;
use crate::limits::{Memlock, MemlockScope, UserCharges};

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
    let status = || proc::read("/proc/self/status").unwrap_or_default();
    let locked = limit.map_or(0, |_| kilobytes(&status(), "VmLck:"));
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

/// What this process and the others of its user have pinned, as far as /proc shows it. For messages: it reads a file
/// for each process.
pub fn user_charges() -> UserCharges {
    charges_in(Path::new("/proc"), std::process::id())
}

fn charges_in(proc: &Path, this: u32) -> UserCharges {
    let status = |process: u32| fs::read_to_string(proc.join(process.to_string()).join("status"));
    let own = status(this).unwrap_or_default();
    // The kernel charges the real user.
    let user = field(&own, "Uid:").and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    let mut charges = UserCharges { own: kilobytes(&own, "VmPin:"), ..UserCharges::default() };
    let Some(user) = user else { return charges };
    charges.user = user;
    let names = fs::read_dir(proc).into_iter().flatten().flatten();
    let processes = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for process in processes.filter(|process| *process != this) {
        let status = match status(process) {
            Ok(status) => status,
            // A sandbox forbids all of them, and each attempt can be an entry in the host's audit log.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => break,
            // The process has ended.
            Err(_) => continue,
        };
        let same =
            field(&status, "Uid:").and_then(|ids| ids.split_whitespace().next()?.parse().ok()) == Some(user);
        let bytes = kilobytes(&status, "VmPin:");
        if !same || bytes == 0 {
            continue;
        }
        charges.others = charges.others.saturating_add(bytes);
        charges.processes += 1;
        if charges.largest.as_ref().is_none_or(|(_, _, most)| bytes > *most) {
            let name = field(&status, "Name:").unwrap_or_default().to_owned();
            charges.largest = Some((process, name, bytes));
        }
    }
    charges
}

/// Bytes of memory that are available without swapping; `None` if the kernel does not say.
pub fn available_memory() -> Option<u64> {
    let meminfo = proc::read("/proc/meminfo")?;
    field(&meminfo, "MemAvailable:").map(|_| kilobytes(&meminfo, "MemAvailable:"))
}

/// The value of a line that begins with `name`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The value of a line in bytes; 0 if there is none.
pub(super) fn kilobytes(text: &str, name: &str) -> u64 {
    let line = field(text, name);
    line.and_then(|value| value.strip_suffix("kB"))
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
        let locked = |status| kilobytes(status, "VmLck:");
        assert_eq!(locked("Name:\tx\nVmPeak:\t 9 kB\nVmLck:\t    1028 kB\nCapInh:\t0\n"), 1028 * 1024);
    }

    #[test]
    fn what_cannot_be_read_refuses_nothing() {
        for text in ["", "VmLck: many\n", "VmLck:\t-1 kB\n"] {
            assert_eq!(kilobytes(text, "VmLck:"), 0);
        }
        assert_eq!(kilobytes("VmLck:\t18446744073709551615 kB\n", "VmLck:"), u64::MAX);
        assert!(may_lock_any(u64::MAX, None));
    }

    #[test]
    fn processes_of_the_user_are_added_up() {
        let proc = std::env::temp_dir().join(format!("vfio-fast-charges-{}", std::process::id()));
        let process = |number: &str, text: &str| {
            fs::create_dir_all(proc.join(number)).unwrap();
            fs::write(proc.join(number).join("status"), text).unwrap();
        };
        process("7", "Name:\tqemu\nUid:\t1000\t0\t0\t0\nVmLck:\t 9 kB\nVmPin:\t       4 kB\n");
        process("8", "Name:\tqemu-b\nUid:\t1000\t1000\t1000\t1000\nVmPin:\t      16 kB\n");
        process("9", "Name:\tring\nUid:\t1000\t1000\t1000\t1000\nVmPin:\t       8 kB\n");
        process("10", "Name:\tidle\nUid:\t1000\t1000\t1000\t1000\nVmPin:\t       0 kB\n");
        process("11", "Name:\tkthread\nUid:\t1000\t1000\t1000\t1000\n");
        process("12", "Name:\tother\nUid:\t1001\t1000\t1000\t1000\nVmPin:\t     400 kB\n");
        process("self", "Name:\tqemu\nUid:\t1000\t0\t0\t0\nVmPin:\t       4 kB\n");
        let charges = charges_in(&proc, 7);
        fs::remove_dir_all(&proc).unwrap();
        let largest = Some((8, "qemu-b".to_owned(), 16 << 10));
        assert_eq!(
            charges,
            UserCharges { user: 1000, own: 4 << 10, others: 24 << 10, processes: 2, largest }
        );
        assert_eq!(
            charges.to_string(),
            "the 4096 bytes (4 KiB) of this process and the 24576 bytes (24 KiB) of 2 other processes of user 1000, \
             most in qemu-b, process 8: 16384 bytes (16 KiB)"
        );
    }

    #[test]
    fn the_kernel_says_what_processes_have_pinned() {
        let charges = user_charges();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(
            field(&status, "VmPin:").is_some()
                && field(&status, "Uid:").unwrap().starts_with(&charges.user.to_string())
        );
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
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
