//! Files of memory, and file systems to put them on.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use vfio_fast_engine::host_va;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};

use super::range;

/// Runs a test of this test binary in a process with a mount namespace of its own. Returns what it printed.
pub fn run_in_own_mounts(test: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"]);
    let unshare = || {
        // Only root may do so in its own user namespace. SAFETY: neither call takes a pointer.
        let root = unsafe { libc::geteuid() } == 0;
        let spaces = libc::CLONE_NEWNS | if root { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: this process has one thread, and the call takes no pointer.
        if unsafe { libc::unshare(spaces) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(unshare) };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

/// Mounts a file system of this type.
pub fn mount(kind: &str, folder: &Path, flags: libc::c_ulong, options: &str) {
    let [kind, folder, options] =
        [kind, folder.to_str().unwrap(), options].map(|text| CString::new(text).unwrap());
    // SAFETY: the strings end with a zero and outlive the call.
    let answer =
        unsafe { libc::mount(kind.as_ptr(), folder.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// A new file of `bytes` bytes without pages, mapped shared, as RAM at `iova`.
pub fn file_ram(path: &Path, bytes: u64, iova: u64) -> (File, Region) {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: without MAP_FIXED a mapping replaces nothing. It is never unmapped.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes as usize, protection, flags, file.as_raw_fd(), 0) };
    assert_ne!(address, libc::MAP_FAILED);
    // SAFETY: the mapping is never unmapped.
    let hva = unsafe { host_va(address as u64) };
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(iova));
    (file, Region { range: range(iova, bytes), hva, perm, kind, backing, join: false, exact: false })
}
