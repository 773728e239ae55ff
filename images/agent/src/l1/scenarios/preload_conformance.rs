//! The conformance tests, each started by vfio-fast-run.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::scenarios::conformance;
use vfio_fast_protocol::scenarios::preload_conformance::Check;

use super::conformance::one;
use crate::l1::lab::Lab;
use crate::l1::preload;

/// Linked dynamically.
const PROGRAM: &str = "/vft/lib/conformance-preloaded";

pub fn run(lab: &Lab) -> Result<()> {
    let mut all = String::new();
    for test in lab.job.tests.iter().filter(|test| **test != Check::CallsWentThrough.name()) {
        let check: conformance::Check = serde_json::from_value(json!(test))?;
        lab.report.step(test);
        let file = format!("/run/preload-{test}");
        let mut command = preload::start(preload::RUN, &file);
        command.arg(PROGRAM);
        one(lab, check, command)?;
        let summary = preload::summary(&file);
        summary.lines().for_each(|line| lab.report.log("preload", &format!("{test}: {line}")));
        all += &summary;
    }
    let kinds = ["type1 map", "type1 unmap", "iommufd map", "iommufd unmap"];
    let seen = kinds.map(|kind| (kind, preload::calls(&all, kind)));
    let missing = seen.iter().filter(|(_, calls)| *calls == 0);
    let problems: Vec<String> =
        missing.map(|(kind, _)| format!("no {kind} went through the library")).collect();
    lab.report.check(Check::CallsWentThrough, &problems, &format!("{seen:?}"));
    Ok(())
}
