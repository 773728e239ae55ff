//! The results of test programs that print them in the TAP format.

use std::collections::BTreeMap;
use std::fmt;

/// The result of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
        })
    }
}

/// The outcome of each test, by name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// What a program's output says.
pub fn outcomes(output: &str) -> Outcomes {
    output.lines().filter_map(outcome).collect()
}

/// What a line says of a test, as in `ok 3 fixture.variant.test # SKIP why`.
fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (_number, rest) = rest.split_once(' ')?;
    let (test, remark) = rest.split_once(" # ").unwrap_or((rest, ""));
    // A failure says why after the name.
    let test = test.split_once(" - ").map_or(test, |(test, _)| test).trim_start_matches("- ").trim();
    let outcome = match (passed, remark.to_ascii_uppercase().starts_with("SKIP")) {
        (true, true) => Outcome::Skipped,
        (true, false) => Outcome::Passed,
        (false, _) => Outcome::Failed,
    };
    Some((test.to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_results_are_understood() {
        let of = |line| outcome(line).map(|(test, outcome)| format!("{test}: {outcome:?}"));
        assert_eq!(of("ok 1 iommufd.simple_close").as_deref(), Some("iommufd.simple_close: Passed"));
        assert_eq!(of("not ok 2 a.b.c").as_deref(), Some("a.b.c: Failed"));
        assert_eq!(of("ok 3 a.b.c # SKIP no huge pages").as_deref(), Some("a.b.c: Skipped"));
        assert_eq!(of("#  RUN           iommufd.simple_close ..."), None);
        assert_eq!(of("# PASSED: 3 / 3 tests passed."), None);
    }

    #[test]
    fn each_line_of_a_program_is_a_result() {
        let output = "TAP version 14\n1..4\nok 1 /x86_64/pc/a\n# a comment\nok 2 /b # SKIP needs KVM\n\
            not ok 3 /c - ERROR:d.c\nok 4 test_e.F.test_g\nok\n";
        let wanted = [
            ("/x86_64/pc/a", Outcome::Passed),
            ("/b", Outcome::Skipped),
            ("/c", Outcome::Failed),
            ("test_e.F.test_g", Outcome::Passed),
        ];
        assert_eq!(outcomes(output), wanted.map(|(test, outcome)| (test.to_owned(), outcome)).into());
    }
}
