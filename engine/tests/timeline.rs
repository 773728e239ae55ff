//! The record of what the library does when. There is one for the process, so this is one test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::memory::RealMemory;
use common::{ENTRY, hva, hva_of, range};
use serde_json::Value;
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::log::{Level, Log};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno, timeline};
use vfio_fast_testing as common;

/// Bytes that each commit maps, in entries of [`ENTRY`].
const MAPPED: u64 = 16 << 20;

fn region(iova: u64) -> Region {
    let hva = hva(hva_of(1, 0));
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing::UNKNOWN);
    Region { range: range(iova, MAPPED), hva, perm, kind, backing, join: false, exact: false }
}

fn engine(failures: Vec<(u64, Errno)>) -> (Arc<Engine>, Sim) {
    let (rules, populate) = (Rules::Iommufd, PopulatePolicy::Overlapped);
    let sim = Sim::new(SimConfig { rules, populate, failures, ..SimConfig::default() });
    let config = Config { entry_size: ENTRY, threads: 3, oversubscribe: true, ..Config::default() };
    (Arc::new(Engine::new(Box::new(sim.clone()), config).unwrap()), sim)
}

/// The spans in the file, by name, and the names of the rows.
fn read(path: &Path) -> (BTreeMap<String, Vec<Value>>, BTreeSet<String>) {
    let text = fs::read_to_string(path).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let (mut spans, mut rows) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
    for event in all {
        if event["ph"] == "M" {
            let name = event["args"]["name"].as_str().unwrap().to_owned();
            let row = event["tid"].as_u64().unwrap();
            assert_eq!(
                rows.insert(row, name.clone()).unwrap_or(name.clone()),
                name,
                "row {row} has two names"
            );
        } else {
            assert!(rows.contains_key(&event["tid"].as_u64().unwrap()), "a span before the name of its row");
            assert_eq!(event["pid"], std::process::id());
            spans.entry(event["name"].as_str().unwrap().to_owned()).or_default().push(event);
        }
    }
    (spans, rows.into_values().collect())
}

fn argument(span: &Value, name: &str) -> u64 {
    let text = span["args"][name].as_str().unwrap_or_else(|| panic!("{name} of {span}"));
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

/// Whether one span lies in another one. The times have three digits after the point.
fn is_inside(inner: &Value, outer: &Value) -> bool {
    let [(from, to), (start, end)] = [inner, outer].map(|span| {
        let [begin, took] = ["ts", "dur"].map(|name| span[name].as_f64().unwrap());
        (begin, begin + took)
    });
    start <= from + 0.01 && to <= end + 0.01
}

#[test]
fn every_call_is_in_the_timeline() {
    let folder = std::env::temp_dir().join(format!("timeline-test-{}", std::process::id()));
    let messages = Arc::new(Mutex::new(Vec::new()));
    let log = Log::to({
        let messages = Arc::clone(&messages);
        move |level, text| messages.lock().unwrap().push((level, text.to_owned()))
    });
    // Without a record nothing is written, and a file that cannot be created is a warning.
    let path = folder.join("timeline.json");
    timeline::start(&path, &log);
    let said = messages.lock().unwrap().clone();
    assert!(
        matches!(&said[..], [(Level::Warn, text)] if text.starts_with("No timeline: cannot write ")),
        "{said:?}"
    );
    fs::create_dir(&folder).unwrap();
    timeline::start(&path, &log);
    assert!(read(&path).0.is_empty(), "it is complete, and empty");

    // A commit on three threads.
    let memory = RealMemory::new();
    let (good, sim) = engine(Vec::new());
    good.begin().unwrap();
    good.map_region(region(1 << 30)).unwrap();
    good.commit().unwrap();
    let (spans, rows) = read(&path);
    let [commit] = &spans["commit"][..] else { panic!("{:?}", spans["commit"]) };
    let maps = sim.calls().iter().filter(|call| matches!(call, Call::Map(_))).count();
    assert_eq!((spans["map"].len(), spans["plan"].len()), (maps, 1));
    let bytes = |name: &str| spans[name].iter().map(|span| argument(span, "bytes")).sum::<u64>();
    assert_eq!((bytes("map"), bytes("fault in")), (MAPPED, MAPPED));
    for span in spans["map"].iter().chain(&spans["fault in"]).chain(&spans["plan"]) {
        assert!(is_inside(span, commit), "{span} is not in {commit}");
    }
    assert!(rows.contains("caller 1"), "{rows:?}");
    assert!(
        rows.iter().all(|name| name.starts_with("caller ") || name.starts_with("vfio-fast-")),
        "{rows:?}"
    );

    // A commit whose second call fails, in the same file.
    let (failing, _) = engine(vec![(2, Errno::EIO)]);
    failing.begin().unwrap();
    failing.map_region(region(2 << 30)).unwrap();
    failing.commit().unwrap_err();
    let (spans, _) = read(&path);
    assert_eq!((spans["commit"].len(), spans["roll back"].len()), (2, 1));
    let failed: Vec<_> = spans["map"].iter().filter(|span| !span["args"]["errno"].is_null()).collect();
    let [failed] = failed[..] else { panic!("{failed:?}") };
    assert_eq!(argument(failed, "errno"), u64::try_from(libc::EIO).unwrap());
    assert!(is_inside(&spans["unmap"][0], &spans["roll back"][0]));

    // A job in the background, and the end.
    good.begin().unwrap();
    good.map_region(region(3 << 30)).unwrap();
    good.commit_background().unwrap();
    assert!(good.wait(None, None).unwrap());
    good.close().unwrap();
    failing.close().unwrap();
    let (spans, rows) = read(&path);
    assert!(rows.contains("vfio-fast-job"), "{rows:?}");
    for name in ["commit in the background", "map in the background", "wait for the job", "close"] {
        assert!(spans.contains_key(name), "{name} is not in {:?}", spans.keys());
    }
    let of_backend = |call: &Call| matches!(call, Call::Unmap(_) | Call::UnmapAll);
    let unmaps = sim.calls().iter().filter(|call| of_backend(call)).count();
    assert!(spans.get("unmap").map_or(0, Vec::len) + spans.get("unmap all").map_or(0, Vec::len) >= unmaps);
    drop(memory);
    fs::remove_dir_all(&folder).unwrap();
}
