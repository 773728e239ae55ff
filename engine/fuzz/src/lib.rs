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

use std::process::ExitCode;

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
