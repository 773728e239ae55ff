//! A real-time policy for a thread that must not miss what another one does.
#![allow(unsafe_code, reason = "no crate of this program sets a policy")]

use std::io;

/// Above that of a QEMU with a real-time policy, which has the lowest priority.
const PRIORITY: libc::c_int = 2;

/// Gives the calling thread a real-time policy.
pub fn begin() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the call reads the parameter; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
