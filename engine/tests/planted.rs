//! Faults that a sanitizer has to report.

use std::hint::black_box;
use std::mem::forget;

#[test]
#[ignore = "a leak, which LeakSanitizer has to report"]
fn a_planted_leak_is_reported() {
    forget(black_box(vec![1u8; 100]));
}

#[test]
#[ignore = "a read behind an allocation, which AddressSanitizer has to report"]
#[allow(unsafe_code, reason = "wrong on purpose")]
fn a_planted_overrun_is_reported() {
    let bytes = black_box(vec![1u8; 100]);
    let end = black_box(bytes.as_ptr_range().end);
    // SAFETY: this is unsound on purpose: the allocation ends here.
    black_box(unsafe { *end });
}
