//! Exit codes of the verbs: 0 for success, 1 for a failed check, 69 if the verb could not run.

use std::fmt;
use std::process::ExitCode;

use crate::progress::StepFailed;

/// `EX_UNAVAILABLE`: the machine lacks something, so nothing was tested.
pub const UNAVAILABLE: u8 = 69;

/// The error of a verb that could not run at all. The process exits with 69 instead of 1.
#[derive(Debug)]
pub struct CannotRun(pub String);

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotRun {}

/// The error of a verb that has already reported its failure. The process exits with this code.
#[derive(Debug)]
pub struct AlreadyReported(pub u8);

impl fmt::Display for AlreadyReported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}

impl std::error::Error for AlreadyReported {}

/// The exit code for an error, with any context around it.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(AlreadyReported(code)) = error.downcast_ref() {
        return *code;
    }
    if error.downcast_ref::<CannotRun>().is_some() { UNAVAILABLE } else { 1 }
}

/// Prints the error, if any, and converts the result of a verb to the exit code of the process.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let code = code_of(&error);
    let told =
        error.downcast_ref::<AlreadyReported>().is_some() || error.downcast_ref::<StepFailed>().is_some();
    if !told {
        let verdict = if code == UNAVAILABLE { "cannot run" } else { "error" };
        eprintln!("{verdict}: {error:#}");
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn cannot_run_survives_context() {
        let plain = anyhow!("a check failed");
        assert_eq!(code_of(&plain), 1);
        let wrapped = Err::<(), _>(CannotRun("no root".into())).context("Install packages").unwrap_err();
        assert_eq!(code_of(&wrapped), UNAVAILABLE);
    }
}
