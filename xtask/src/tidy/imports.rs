//! Checks that imports form no cycle between the files of a crate.
//!
//! Imports are taken from the paths in the text (`crate::…`, `super::…`), without tests. The `mod.rs` of a folder is
//! the front of the folder, and its references to its own parts are not imports. A file that imports from the front
//! also imports from the parts that the front re-exports.

use std::collections::{BTreeMap, BTreeSet};

use super::code_only;

/// The files of one crate, by the paths of their modules.
pub struct Crate<'a> {
    modules: BTreeMap<Vec<String>, &'a str>,
    /// For the front of each folder, the parts that it re-exports.
    fronts: BTreeMap<&'a str, Vec<&'a str>>,
}

/// The cycles between these Rust files of the `src` folder `root`, each as a list of files.
pub fn circles(root: &str, files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let modules = files.iter().filter_map(|(name, _)| Some((module_of(root, name)?, *name))).collect();
    let mut this = Crate { modules, fronts: BTreeMap::new() };
    for (name, text) in files {
        let parts = module_of(root, name).map(|module| this.exported(&module, text)).unwrap_or_default();
        this.fronts.insert(name, parts);
    }
    let mut arrows = BTreeMap::<&str, BTreeSet<&str>>::new();
    for (name, text) in files {
        let Some(module) = module_of(root, name) else { continue };
        arrows.insert(name, this.imports(&module, text));
    }
    strongly_connected(&arrows)
}

/// The path of the module in a file: `a` for both `a/mod.rs` and `a.rs`, empty for the crate's root.
fn module_of(root: &str, name: &str) -> Option<Vec<String>> {
    let inside = name.strip_prefix(root)?.strip_prefix('/')?.strip_suffix(".rs")?;
    // Each of these is a separate program.
    if inside.starts_with("bin/") {
        return None;
    }
    let mut path: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        path.pop();
    }
    Some(path)
}

impl<'a> Crate<'a> {
    /// The parts of a folder that its front re-exports: `pub use part::…`.
    fn exported(&self, module: &[String], text: &str) -> Vec<&'a str> {
        let code = code_only(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
        let lines = code.lines().map(str::trim).filter(|line| line.starts_with("pub"));
        let names = lines.filter_map(|line| line.split_once(" use ")?.1.split("::").next());
        let path = |name: &str| [module, &[name.to_owned()]].concat();
        names.filter_map(|name| self.modules.get(&path(name.trim())).copied()).collect()
    }

    /// The files that a file imports from, except itself and, for the front of a folder, its parts.
    fn imports(&self, module: &[String], text: &str) -> BTreeSet<&'a str> {
        let code = code_only(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
        let mut found = BTreeSet::new();
        for (at, word) in words(&code) {
            let start = match word {
                "crate" => Vec::new(),
                "super" => module[..module.len().saturating_sub(1)].to_vec(),
                _ => continue,
            };
            // The second `super` of `super::super` was handled with the first.
            if code[..at].trim_end().ends_with("::") {
                continue;
            }
            for path in tree(start, &code[at + word.len()..]) {
                let longest = (0..=path.len()).rev().find_map(|n| self.modules.get_key_value(&path[..n]));
                if let Some((target, file)) = longest
                    && !target.starts_with(module)
                {
                    found.insert(*file);
                    // Parts of the same folder import each other directly, so re-exports do not count.
                    if !module.starts_with(target) {
                        found.extend(self.fronts.get(file).into_iter().flatten());
                    }
                }
            }
        }
        found
    }
}

/// The words of a text and their positions.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let length = code[start..].find(|c| !is_word(c)).unwrap_or(code.len() - start);
        at = start + length;
        Some((start, &code[start..at]))
    })
}

/// Every path that continues `start` with `rest`: `::a::{b, c::d}` gives two.
fn tree(start: Vec<String>, rest: &str) -> Vec<Vec<String>> {
    let Some(rest) = rest.trim_start().strip_prefix("::") else { return vec![start] };
    let rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        return parts(group).into_iter().flat_map(|part| tree(start.clone(), &format!("::{part}"))).collect();
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let mut path = start;
    match &rest[..end] {
        "super" => drop(path.pop()),
        "self" | "" => {}
        word => path.push(word.to_owned()),
    }
    tree(path, &rest[end..])
}

/// The items of a group, up to its closing brace.
fn parts(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(group[start..at].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(group[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|part| !part.is_empty());
    found
}

/// The sets of nodes that can reach each other.
fn strongly_connected(arrows: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(node) = next.pop() {
            for target in arrows.get(node.as_str()).into_iter().flatten() {
                if seen.insert((*target).to_owned()) {
                    next.push((*target).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = arrows.keys().map(|name| (*name, reach(name))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (name, targets) in &reached {
        if !targets.contains(*name) || circles.iter().flatten().any(|other| other == name) {
            continue;
        }
        let both =
            targets.iter().filter(|target| reached.get(target.as_str()).is_some_and(|t| t.contains(*name)));
        circles.push(both.cloned().collect());
    }
    circles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        let circle = |files: &[(&str, &str)]| circles("x/src", files);
        let (a, b) = ("x/src/a/mod.rs", "x/src/b.rs");
        for (first, second) in [
            ("use crate::b::T;", "use crate::a::U;"),
            ("use crate::{c, b::{self, T}};", "fn f() { crate::a::f() }"),
            ("use super::b;", "use super::{\n    a::{U},\n};"),
        ] {
            assert_eq!(circle(&[(a, first), (b, second)]), [[a, b]], "{first} {second}");
        }
        // Through the front of a folder, which re-exports a part.
        let front = ("x/src/a/mod.rs", "mod part;\npub use part::P;");
        let part = ("x/src/a/part.rs", "use crate::b::T;");
        assert_eq!(circle(&[front, part, (b, "use crate::a::P;")]), [["x/src/a/part.rs", b]]);
        // Through a part of the folder, and two levels up.
        let part = ("x/src/a/part.rs", "use super::super::b::T;");
        assert_eq!(circle(&[(a, ""), part, (b, "use crate::a::part::P;")]), [["x/src/a/part.rs", b]]);
    }

    #[test]
    fn what_goes_down_is_no_circle() {
        let down = [
            ("x/src/lib.rs", "mod a;\npub use a::U;\nmod b;"),
            ("x/src/a/mod.rs", "mod part;\npub use part::P;\nuse crate::a::part::Q;\npub struct U;"),
            ("x/src/a/part.rs", "use super::U;\nuse crate::b::T;\n// use crate::a::U\n"),
            (
                "x/src/b.rs",
                "const S: &str = \"crate::a::U\";\n#[cfg(test)]\nmod tests {\n    use crate::a::U;\n}\n",
            ),
            ("x/src/bin/p.rs", "use crate::a;"),
        ];
        assert_eq!(circles("x/src", &down), Vec::<Vec<String>>::new());
    }
}
