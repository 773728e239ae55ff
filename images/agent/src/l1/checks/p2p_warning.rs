//! QEMU's warning about BARs that it could not map: that there is no peer-to-peer DMA.

use vfio_fast_protocol::checks::CheckName;

use crate::l1::lab::Lab;
use crate::l1::{devices, text_pattern};

/// What QEMU prints at each attempt on iommufd without the library.
const EACH: &str = "warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?";
/// The end of its hint, which names the device first.
const HINT: &str = "PCI peer-to-peer transactions on BARs are not supported.";

/// Checks that QEMU warns exactly once, about the first BAR that could not be mapped: it is of the device `n`, the reason
/// is `errno`, and the text and the hint are QEMU's own.
pub fn one_warning(lab: &Lab, errors: &str, n: usize, errno: &str, check: impl CheckName) {
    lab.report.check(check, &judge(lab, errors, n, errno), errors.trim());
}

/// What QEMU prints about BARs where it should print nothing.
pub fn any_warning(errors: &str) -> Vec<String> {
    let is_about_bars = |line: &&str| {
        [EACH, HINT, "vfio_container_dma_map", "failed to map"].iter().any(|text| line.contains(text))
    };
    errors.lines().filter(is_about_bars).map(|line| format!("QEMU printed `{line}`")).collect()
}

fn judge(lab: &Lab, errors: &str, n: usize, errno: &str) -> Vec<String> {
    let warning = format!("warning: {}{errno}", devices::map_failure(lab.job.mode, "%p"));
    let hint = format!("{}: {HINT}", lab.job.devices[n]);
    // The line begins with the program's name.
    let text = |line: &str| line.split_once(": ").map(|(_, rest)| rest.to_owned());
    let said =
        |pattern: &str| errors.lines().filter_map(text).filter(|t| text_pattern::matches(pattern, t)).count();
    let warnings = said(&warning);
    let hints = errors.lines().filter(|line| **line == hint).count();
    let mut problems = Vec::new();
    if warnings != 1 || hints != 1 {
        problems.push(format!("{warnings} times `{warning}`, {hints} times `{hint}`"));
    }
    if (said(EACH) > 0) == lab.job.maps_bars() {
        problems.push(format!("{} times `{EACH}`", said(EACH)));
    }
    if !problems.is_empty() {
        problems.push(format!("in `{}`", errors.trim()));
    }
    problems
}
