//! What QEMU says of BARs that it could not map: no peer-to-peer DMA, and no more.

use vfio_fast_agent::job::{Container, Mode};
use vfio_fast_agent::pattern;

use super::Lab;

/// What patched QEMU does not say where the library maps, and other QEMUs say at each attempt on iommufd.
const EACH: &str = "warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?";

/// Reports the check `one-warning`: exactly one of the first BAR that could not be mapped because of `errno`, with QEMU's
/// own text and its hint.
pub fn one_warning(lab: &Lab, errors: &str, errno: &str) {
    lab.report.check("one-warning", &judge(lab, errors, errno), errors.trim());
}

fn judge(lab: &Lab, errors: &str, errno: &str) -> Vec<String> {
    let warning = format!("warning: vfio_container_dma_map(%p, %p, %p, %p) = {errno}");
    let hint = format!("{}: PCI peer-to-peer transactions on BARs are not supported.", lab.job.devices[0]);
    // The line begins with the program's name.
    let text = |line: &str| line.split_once(": ").map(|(_, rest)| rest.to_owned());
    let said =
        |pattern: &str| errors.lines().filter_map(text).filter(|t| pattern::matches(pattern, t)).count();
    let warnings = said(&warning);
    let hints = errors.lines().filter(|line| **line == hint).count();
    let mut problems = Vec::new();
    if warnings != 1 || hints != 1 {
        problems.push(format!("{warnings} times `{warning}`, {hints} times `{hint}`"));
    }
    let others_say_each = lab.job.container == Container::Iommufd && lab.job.mode != Mode::Fast;
    if (said(EACH) > 0) != others_say_each {
        problems.push(format!("{} times `{EACH}`", said(EACH)));
    }
    if !problems.is_empty() {
        problems.push(format!("in `{}`", errors.trim()));
    }
    problems
}
