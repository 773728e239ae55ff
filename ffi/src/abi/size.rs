//! Structs that begin with their own size.

/// The maximum size of a struct, now and in later releases. A larger size is one the caller forgot to set.
pub(crate) const MAX_SIZE: usize = 4096;

/// A struct whose first field is its size.
///
/// # Safety
/// The type is `repr(C)`, begins with `size: u32` and has no padding. All zeros, and any value a C program can store in
/// its fields, are valid values of the type.
#[expect(unsafe_code, reason = "an unsafe trait: the size rule relies on the layout")]
pub(crate) unsafe trait Sized32: Copy {
    /// The C name, for messages.
    const NAME: &'static str;
    /// Size in bytes in the first release: the minimum a caller may pass.
    const FIRST_RELEASE: usize;
}

/// Implements [`Sized32`] for a struct of the given size in its first release.
macro_rules! sized32 {
    ($name:ident, $first_release:literal) => {
        const _: () = assert!(std::mem::offset_of!($name, size) == 0);
        const _: () = assert!(
            $first_release <= std::mem::size_of::<$name>()
                && std::mem::size_of::<$name>() <= crate::abi::size::MAX_SIZE
        );
        #[expect(unsafe_code, reason = "the promise is made where the fields are in sight")]
        // SAFETY: a repr(C) struct of integers, raw pointers and nullable function pointers that begins with its size;
        // a C compiler checks that it has no padding (layout.c with -Wpadded).
        unsafe impl crate::abi::size::Sized32 for $name {
            const NAME: &'static str = stringify!($name);
            const FIRST_RELEASE: usize = $first_release;
        }
    };
}
pub(crate) use sized32;
