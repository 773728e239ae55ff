//! Explains why memory is backed by base pages, and which setting of the host changes that.

use super::Report;
use crate::sys::proc;

const KNOBS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Minimum number of bytes to report: firmware, tables and the ends of regions use base pages anyway.
const WORTH_TELLING: u64 = 64 << 20;

/// The advice for an administrator about the base pages in `report`, if there is any.
///
/// Mapping base pages takes about ten times as long as mapping huge ones, and unmapping six times.
pub fn hint(report: &Report) -> Option<String> {
    let knob = |name: &str| proc::read(&format!("{KNOBS}/{name}"));
    let anonymous = report.small_anonymous_bytes >= WORTH_TELLING;
    let file = report.small_file_bytes >= WORTH_TELLING;
    anonymous
        .then(|| refusal("enabled", &knob("enabled")?, "madvise", report.small_anonymous_bytes))
        .flatten()
        .or_else(|| {
            file.then(|| {
                refusal("shmem_enabled", &knob("shmem_enabled")?, "advise", report.small_file_bytes)
            })?
        })
}

/// The advice, if the bracketed value of the setting disables huge pages.
fn refusal(knob: &str, text: &str, better: &str, bytes: u64) -> Option<String> {
    let value = text.split_once('[')?.1.split_once(']')?.0;
    ["never", "deny"].contains(&value).then(|| {
        format!(
            "{bytes} bytes are backed by base pages because {KNOBS}/{knob} is {value}: mapping them takes about ten times \
             as long as mapping huge pages; write {better} to it, or use hugetlbfs"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_knob_that_refuses_is_named() {
        let text =
            refusal("shmem_enabled", "always within_size advise [never] deny force\n", "advise", 1 << 30);
        let text = text.unwrap();
        assert!(
            text.contains("1073741824 bytes")
                && text.contains("shmem_enabled is never")
                && text.contains("write advise")
        );
        assert!(
            refusal("shmem_enabled", "always within_size advise never [deny] force\n", "advise", 1).is_some()
        );
        assert_eq!(refusal("enabled", "always [madvise] never\n", "madvise", 1), None);
        assert_eq!(refusal("enabled", "gibberish", "madvise", 1), None);
    }

    #[test]
    fn a_few_base_pages_are_no_matter() {
        let report = Report { small_anonymous_bytes: WORTH_TELLING - 1, ..Report::default() };
        assert_eq!(hint(&report), None);
    }
}
