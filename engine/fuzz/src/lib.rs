//! What a fuzzer looks for: operations that it makes up are executed on the engine, on the C interface and on the
//! parsers, and compared with what must hold.
//!
//! `cargo xtask fuzz` links each program of `src/bin` with libFuzzer. Compiled without it, they execute the inputs in
//! the files that they are given, for a debugger.

pub mod c_interface;
pub mod engine;
#[cfg(vfio_fast_fuzzing)]
pub mod parsers;
pub mod planted;

use std::fmt::Debug;
use std::process::ExitCode;

use arbitrary::{Arbitrary, Unstructured};

/// What an input of bytes stands for: how something is opened, and what is then done with it.
#[derive(Arbitrary, Debug)]
struct Input<S, O> {
    setup: S,
    operations: Vec<O>,
}

impl<'a, S: Arbitrary<'a> + Debug, O: Arbitrary<'a> + Debug> Input<S, O> {
    /// The input with at most that many operations; `None` if it stands for nothing. Printed where no fuzzer runs.
    fn read(bytes: &'a [u8], operations: usize) -> Option<Self> {
        let mut input = Self::arbitrary_take_rest(Unstructured::new(bytes)).ok()?;
        if cfg!(not(vfio_fast_fuzzing)) {
            println!("{:?}\n{:#?}", input.setup, input.operations);
        }
        input.operations.truncate(operations);
        Some(input)
    }
}

/// Executes the inputs in the files named on the command line.
pub fn replay(target: fn(&[u8])) -> ExitCode {
    let mut files = std::env::args_os().skip(1).peekable();
    if files.peek().is_none() {
        eprintln!("name files with inputs, or use `cargo xtask fuzz`");
        return ExitCode::FAILURE;
    }
    for file in files {
        match std::fs::read(&file) {
            Ok(input) => target(&input),
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// The main function of a target: libFuzzer's, or [`replay`].
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(vfio_fast_fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $run(input));

        #[cfg(not(vfio_fast_fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($run)
        }
    };
}
