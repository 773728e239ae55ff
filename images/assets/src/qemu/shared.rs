//! Files that the series of QEMU have in common. They are maintained once: a change of one series fails here until the
//! others have it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use vfio_fast_protocol::qemu::QemuSeries;

use super::Kind;
use super::series::Series;
use crate::cache::remove_dir;
use crate::paths;
use crate::progress::output;

/// What the older series need besides is in a header of their own.
const SHARED: [&str; 7] = [
    "hw/vfio/dma-cpr.h",
    "hw/vfio/dma-gate.c",
    "hw/vfio/dma-gate.h",
    "hw/vfio/dma-mapper.c",
    "hw/vfio/dma-mapper.h",
    "hw/vfio/dma-query.c",
    "include/hw/vfio/vfio-dma-gate.h",
];
/// The name of a container in 10.0, and its name since 10.1.
const RENAMED: [&str; 2] = ["VFIOContainerBase", "VFIOContainer"];

/// Applies those parts of the series that make these files: no source is needed.
fn files(series: QemuSeries, dir: &Path) -> Result<BTreeMap<&'static str, String>> {
    remove_dir(dir)?;
    fs::create_dir_all(dir)?;
    for patch in &Series::open(&Kind::On.patches(series))?.patches {
        let mut apply = Command::new("git");
        // Outside of a repository, git changes files only.
        apply.current_dir(dir).env("GIT_CEILING_DIRECTORIES", dir.parent().context("a parent")?);
        apply.arg("apply").args(SHARED.map(|name| format!("--include={name}"))).arg(patch);
        output(&mut apply)?;
    }
    let read = |name| Ok((name, words(&fs::read_to_string(dir.join(name)).with_context(|| name)?)));
    SHARED.into_iter().map(read).collect()
}

/// The text without what may differ: the headers, the name of a type, and the lines that its length breaks.
fn words(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("#include "));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ").replace(RENAMED[0], RENAMED[1])
}

/// Where two texts begin to differ, with some of what follows.
fn difference(one: &str, other: &str) -> Option<String> {
    let pairs = one.split(' ').zip(other.split(' '));
    let same = pairs.take_while(|(a, b)| a == b).count();
    let rest =
        |text: &str| text.split(' ').skip(same.saturating_sub(5)).take(15).collect::<Vec<_>>().join(" ");
    (one != other).then(|| format!("`{}` and `{}`", rest(one), rest(other)))
}

#[test]
fn all_series_have_the_same_dma_mapper() {
    let scratch = paths::target().join("test-scratch").join(format!("shared-{}", std::process::id()));
    let of = |series: QemuSeries| files(series, &scratch.join(series.name())).unwrap();
    let usual = of(QemuSeries::USUAL);
    for series in QemuSeries::ALL {
        for (name, text) in of(series) {
            let found = difference(&usual[name], &text);
            assert_eq!(found, None, "{name} of {} and {}", QemuSeries::USUAL, series);
        }
    }
    remove_dir(&scratch).unwrap();
}

#[test]
fn only_headers_and_one_type_may_differ() {
    let old = "#include \"a.h\"\nint f(VFIOContainerBase *c,\n      int a);\n";
    let new = "#include \"b.h\"\n#include \"c.h\"\nint f(VFIOContainer *c, int a);\n";
    assert_eq!(difference(&words(old), &words(new)), None);
    assert!(difference(&words(old), &words("int f(VFIOContainer *c, long a);")).is_some());
    assert!(difference(&words(old), &words("int f(VFIOContainer *c, int a); int g;")).is_some());
}
