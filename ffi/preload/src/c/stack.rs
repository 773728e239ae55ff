//! Memory of the calling thread's own stack, which can be read without asking the kernel.

#![allow(unsafe_code)] // asks the C library for the stack, and reads it

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

thread_local! {
    /// The stack of this thread as the C library knows it; `None`: not looked up yet.
    static STACK: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Copies the bytes at `address` if they lie in the frames of this thread's callers. Returns whether it did: arguments
/// elsewhere, and those of code that runs on a stack of its own, must be read in another way.
pub fn read(address: u64, buffer: &mut [u8]) -> bool {
    let here = MaybeUninit::<u8>::uninit();
    let frames = callers(own(), here.as_ptr() as u64);
    if !contains(&frames, address, buffer.len() as u64) {
        return false;
    }
    // SAFETY: the bytes lie between this frame and the end of this thread's stack. This memory is in use by the
    // functions that have not returned yet, so it is mapped and readable. Only this thread writes its frames, but for
    // what the program shares with others; the kernel would read that in the same way.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, buffer.as_mut_ptr(), buffer.len()) };
    true
}

/// What lies between a place on the stack and the stack's end; nothing if the place is on another stack.
fn callers((start, end): (u64, u64), here: u64) -> Range<u64> {
    if (start..end).contains(&here) { here..end } else { 0..0 }
}

fn contains(range: &Range<u64>, address: u64, bytes: u64) -> bool {
    range.contains(&address) && address.checked_add(bytes).is_some_and(|end| end <= range.end)
}

/// First and last address of this thread's stack, which the C library reads in /proc once for the main thread.
fn own() -> (u64, u64) {
    STACK.get().unwrap_or_else(|| {
        let stack = look_up().unwrap_or_default();
        STACK.set(Some(stack));
        stack
    })
}

fn look_up() -> Option<(u64, u64)> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the function has no requirements.
    let thread = unsafe { libc::pthread_self() };
    // SAFETY: there is room for what the call initialises.
    if unsafe { libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut start, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes were initialised above, and there is room for both answers.
    let found = unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut bytes) };
    // SAFETY: they were initialised above and are not used any more.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    (found == 0).then(|| (start as u64, (start as u64).saturating_add(bytes as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_frames_are_read_and_nothing_else() {
        let value = [7u8; 32];
        let mut buffer = [0; 32];
        let address = value.as_ptr() as u64;
        assert!(read(address, &mut buffer) && buffer == value);
        let elsewhere = Box::new(value);
        let (start, end) = own();
        assert!((start..end).contains(&address));
        for address in [0, elsewhere.as_ptr() as u64, start, end - 31, end, u64::MAX - 3] {
            assert!(!read(address, &mut buffer), "{address:#x}");
        }
        let on_its_own = move || {
            let (value, mut buffer) = ([9u8; 32], [0; 32]);
            (read(value.as_ptr() as u64, &mut buffer) && buffer == value, read(address, &mut buffer))
        };
        let thread = std::thread::spawn(on_its_own).join().unwrap();
        assert_eq!(thread, (true, false), "each thread has its own");
    }

    #[test]
    fn a_place_on_another_stack_has_no_callers() {
        assert_eq!(callers((100, 200), 150), 150..200);
        assert_eq!(callers((100, 200), 99), 0..0);
        assert_eq!(callers((100, 200), 200), 0..0);
        assert!(contains(&(150..200), 150, 50) && !contains(&(150..200), 150, 51));
        assert!(!contains(&(150..200), 149, 1) && !contains(&(150..u64::MAX), u64::MAX - 1, 8));
    }
}
