//! What a run of e2e leaves for people: one page that needs nothing else, and a summary in Markdown.

mod page;
mod plot;
mod summary;
mod timeline;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::judge::Verdict;

/// What is known of a run as a whole.
#[derive(Clone, Debug)]
pub struct Run {
    /// Names and values, in the order in which they are shown.
    pub environment: Vec<(&'static str, String)>,
    pub took: Duration,
    /// The line that the command prints about retries.
    pub retries: String,
}

/// The names of the files, in the folder of the run.
pub const PAGE: &str = "report.html";
const SUMMARY: &str = "report.md";
/// The picture of the longest commit, if a run has recorded one.
const TIMELINE: &str = "timeline.svg";

/// Writes both, and the picture.
pub fn write(folder: &Path, run: &Run, verdicts: &[Verdict]) -> Result<()> {
    let timeline = timeline::timeline(verdicts);
    let picture = timeline.as_ref().map(|timeline| (TIMELINE, timeline.file()));
    let page = page::page(folder, run, verdicts, timeline.as_ref());
    let files = [(PAGE, page), (SUMMARY, summary::summary(run, verdicts))];
    for (name, text) in files.into_iter().chain(picture) {
        fs::write(folder.join(name), text).with_context(|| format!("Cannot write {name}"))?;
    }
    Ok(())
}

/// "2 runs passed", or "1 of 2 runs failed".
fn headline(verdicts: &[Verdict]) -> String {
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    match failed {
        0 => format!("{} runs passed", verdicts.len()),
        failed => format!("{failed} of {} runs failed", verdicts.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;

    use vfio_fast_protocol::job::Mode;
    use vfio_fast_protocol::record::Facts;

    use super::*;
    use crate::records::Check;

    fn verdict(folder: &Path, name: &str, mode: Mode, ok: bool) -> Verdict {
        let own = folder.join(format!("{name}-{}", mode.name()));
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("l1-console.log"), "").unwrap();
        let check = Check { name: "data <&>".into(), ok, detail: "4 < 5 & \"right\" | done".into() };
        let facts = Facts { map_bytes: 3 << 30, wanted_bytes: 1 << 30, ..Facts::default() };
        Verdict {
            name: name.into(),
            mode,
            timed: false,
            checks: vec![check],
            facts: Some(facts),
            starts: Vec::new(),
            traffic: Vec::new(),
            retries: BTreeMap::from([("a stall".to_owned(), 1)]),
            folder: own,
            seconds: 12.4,
            stalled: false,
        }
    }

    fn written() -> (PathBuf, String, String) {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vfio-fast-report-{}-{number}", std::process::id()));
        let verdicts = [
            verdict(&folder, "nvme-intel-debian", Mode::Stock, true),
            verdict(&folder, "nvme-intel-debian", Mode::Fast, true),
            verdict(&folder, "nvme-amd-newest-iommufd", Mode::Fast, false),
        ];
        let environment = vec![("accelerator", "TCG (no <KVM>)".to_owned())];
        let run = Run { environment, took: Duration::from_secs(61), retries: "retries: none".into() };
        write(&folder, &run, &verdicts).unwrap();
        let read = |name| fs::read_to_string(folder.join(name)).unwrap();
        let (page, summary) = (read(PAGE), read(SUMMARY));
        (folder, page, summary)
    }

    /// The values of that attribute.
    fn values<'a>(page: &'a str, attribute: &str) -> Vec<&'a str> {
        let begin = format!(" {attribute}=\"");
        page.split(begin.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_link_leads_somewhere() {
        let (folder, page, _) = written();
        let ids: Vec<&str> = values(&page, "id");
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{ids:?}");
        let links = values(&page, "href");
        assert!(links.len() == 6, "{links:?}");
        for link in links {
            match link.strip_prefix('#') {
                Some(id) => assert!(ids.contains(&id), "{link}"),
                None => assert!(folder.join(link).is_file(), "{link}"),
            }
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn texts_are_shown_as_they_are_and_nothing_is_loaded() {
        let (folder, page, summary) = written();
        assert!(page.contains("data &lt;&amp;&gt;") && page.contains("TCG (no &lt;KVM&gt;)"));
        assert!(page.contains("1 of 3 runs failed") && summary.contains("1 of 3 runs failed"));
        for loaded in ["<script", "src=", "http:", "https:", "@import", "url("] {
            assert!(!page.contains(loaded), "{loaded}");
        }
        assert!(summary.contains("| nvme | amd-newest, iommufd | fast | **FAIL** |"), "{summary}");
        assert!(summary.contains("data <&>: 4 < 5 & \"right\" \\| done"), "{summary}");
        fs::remove_dir_all(folder).unwrap();
    }
}
