use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::*;
use crate::paths;

/// A cache for one test, removed at its end.
struct Scratch(Cache);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let dir = paths::target().join("test-scratch").join(format!("cache-{test}-{}", std::process::id()));
        remove_dir(&dir).unwrap();
        Scratch(Cache::at(&dir).unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_dir(self.0.root()).unwrap();
    }
}

#[test]
fn any_changed_input_gives_another_key() {
    let scratch = Scratch::new("key");
    let file = scratch.file("in/a", "one");
    let dir = file.parent().unwrap();
    let key = |inputs: &[Input]| scratch.0.entry("x", inputs).unwrap().key;
    let all = || key(&[Input::Text("t"), Input::File(&file), Input::Dir(dir)]);

    let first = all();
    assert_eq!(first, all(), "same inputs, same key");
    assert_ne!(first, key(&[Input::Text("u"), Input::File(&file), Input::Dir(dir)]));
    assert_ne!(key(&[Input::Text("ab"), Input::Text("c")]), key(&[Input::Text("a"), Input::Text("bc")]));
    assert_ne!(key(&[Input::Text("one")]), key(&[Input::File(&file)]));

    let before = key(&[Input::Dir(dir)]);
    scratch.file("in/a", "two");
    let changed = key(&[Input::Dir(dir)]);
    assert_ne!(before, changed, "contents");
    fs::rename(&file, dir.join("b")).unwrap();
    let renamed = key(&[Input::Dir(dir)]);
    assert_ne!(changed, renamed, "names");
    fs::set_permissions(dir.join("b"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(renamed, key(&[Input::Dir(dir)]), "the executable bit");
    assert!(scratch.0.entry("x", &[Input::File(&file)]).is_err(), "a missing input is an error");
}

#[test]
fn a_failing_builder_leaves_no_entry_and_the_next_one_starts_empty() {
    let scratch = Scratch::new("fail");
    let entry = scratch.0.entry("x", &[Input::Text("1")]).unwrap();
    let failed = entry.get_or_build(|dir| {
        fs::write(dir.join("half"), "")?;
        bail!("broken")
    });
    assert_eq!(failed.unwrap_err().to_string(), "broken");
    assert!(!entry.is_ready());

    // A killed run leaves this.
    scratch.file(&format!("entries/{}.partial/half", entry.stem()), "");
    let path = entry
        .get_or_build(|dir| {
            ensure!(fs::read_dir(dir)?.next().is_none(), "left over");
            Ok(fs::write(dir.join("whole"), "")?)
        })
        .unwrap();
    assert!(path.join("whole").is_file() && !path.join("half").exists());
    entry.get_or_build(|_| bail!("built twice")).unwrap();
    let names = fs::read_dir(scratch.0.root().join("entries")).unwrap().count();
    assert_eq!(names, 1, "nothing but the entry");
}

#[test]
fn concurrent_runs_build_once() {
    let scratch = Scratch::new("once");
    let built = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let entry = scratch.0.entry("x", &[Input::Text("1")]).unwrap();
                entry
                    .get_or_build(|dir| {
                        built.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(50));
                        Ok(fs::write(dir.join("done"), "")?)
                    })
                    .unwrap();
                assert!(entry.path().join("done").is_file());
            });
        }
    });
    assert_eq!(built.into_inner(), 1);
}

#[test]
fn only_the_entries_used_last_stay() {
    let scratch = Scratch::new("prune");
    let entries: Vec<_> =
        (0..=KEPT).map(|n| scratch.0.entry("x", &[Input::Text(&n.to_string())]).unwrap()).collect();
    let other = scratch.0.entry("x-y", &[]).unwrap();
    other.get_or_build(|_| Ok(())).unwrap();
    for entry in &entries {
        entry.get_or_build(|_| Ok(())).unwrap();
        thread::sleep(Duration::from_millis(10));
        // Keeps the first entry in use.
        entries[0].get_or_build(|_| bail!("pruned while in use")).unwrap();
    }
    let ready: Vec<_> = entries.iter().map(Entry::is_ready).collect();
    assert_eq!(ready.iter().filter(|ready| **ready).count(), KEPT);
    assert!(ready[0] && !ready[1], "{ready:?}");
    assert!(other.is_ready(), "an entry of another name");
}
