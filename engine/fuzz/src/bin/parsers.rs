#![cfg_attr(vfio_fast_fuzzing, no_main)]

#[cfg(vfio_fast_fuzzing)]
vfio_fast_fuzz::target!(vfio_fast_fuzz::parsers::run);

/// The parsers are private to the engine, except for a fuzzer.
#[cfg(not(vfio_fast_fuzzing))]
fn main() {}
