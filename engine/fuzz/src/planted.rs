//! A deliberate bug: reads a byte past the end of the input, if that begins with a certain text.
//!
//! The fuzzer finds the text only if the code is instrumented for coverage, and AddressSanitizer the byte.
#![allow(unsafe_code)]

pub fn run(input: &[u8]) {
    let copy = input.to_vec();
    if copy.starts_with(b"bug") {
        let end = copy.as_ptr().wrapping_add(copy.len());
        // SAFETY: none, because this is the bug.
        let beyond = unsafe { std::ptr::read_volatile(end) };
        std::hint::black_box(beyond);
    }
}
