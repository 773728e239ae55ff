//! Checks the text of the repository for properties that no compiler checks.

mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use vfio_fast_assets::paths;

/// Maximum length of a file. A longer one contains more than one noun.
const MAX_LINES: usize = 600;
/// Maximum width of prose.
const MAX_COLUMNS: usize = 120;

/// Hosts of package registries and mirrors. They are split so that this file passes its own check.
const REGISTRIES: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("golang", ".org"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
];

/// Absolute paths that exist on one machine only. They are split for the same reason.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

/// The only places that may contain unsafe code: the boundaries to the kernel and to C, the unsafe functions of the Rust
/// crate, in which its callers promise what memory is, and code that does not ship.
/// The latter comprises tests and benches, which provide their own memory, and the mapping of device registers in a
/// test machine.
const UNSAFE_PLACES: &[&str] = &[
    "engine/src/sys/",
    "ffi/src/",
    "ffi/preload/src/c/",
    "ffi/preload/tests/",
    "engine/tests/",
    "engine/benches/",
    "engine/testing/",
    "engine/fuzz/src/c_interface/",
    "engine/fuzz/src/planted.rs",
    "images/measure/",
    "ffi/tests/",
    "engine/rust/src/map.rs",
    "engine/rust/examples/",
    "engine/rust/tests/",
    "images/agent/src/l1/real_time.rs",
    "images/agent/src/l2/mmio.rs",
];

/// Inputs of a fuzzer, which are whatever they have to be.
const DATA: &str = "engine/fuzz/corpus/";

/// The manifests of the crates that ship.
const SHIPPED: &[&str] = &[
    "engine/Cargo.toml",
    "ffi/Cargo.toml",
    "ffi/cli/Cargo.toml",
    "ffi/doctor/Cargo.toml",
    "ffi/preload/Cargo.toml",
    "engine/rust/Cargo.toml",
];

/// Checks every file that is in git or could be added to it.
pub fn check() -> Result<()> {
    let root = paths::root();
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let files = cmd!(sh, "git ls-files -z --cached --others --exclude-standard").quiet().read()?;
    // Files that were removed without a commit, and files that are not text, cannot be read.
    let names = files.split_terminator('\0').filter(|name| !name.starts_with(DATA));
    let texts = names.filter_map(|name| {
        let text = fs::read_to_string(root.join(name)).ok()?;
        Some((name, text))
    });
    let texts: Vec<(&str, String)> = texts.collect();
    let mut complaints: Vec<String> = texts.iter().flat_map(|(name, text)| file(name, text)).collect();
    complaints.extend(tree(&texts));
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} complaints\n{}", complaints.len(), complaints.join("\n"))
}

/// The complaints about the layout of files and their imports.
fn tree(texts: &[(&str, String)]) -> Vec<String> {
    let rust = texts.iter().filter(|(name, _)| name.ends_with(".rs"));
    let rust: Vec<(&str, &str)> = rust.map(|(name, text)| (*name, text.as_str())).collect();
    let mut complaints = Vec::new();
    for (name, _) in &rust {
        let folder = format!("{}/", name.trim_end_matches(".rs"));
        if rust.iter().any(|(other, _)| other.starts_with(&folder)) {
            complaints.push(format!("{name}: there is a folder of this name: call the file {folder}mod.rs"));
        }
    }
    let roots: BTreeSet<&str> =
        rust.iter().filter_map(|(name, _)| name.find("/src/").map(|at| &name[..at + 4])).collect();
    for root in roots {
        let files: Vec<(&str, &str)> =
            rust.iter().filter(|(name, _)| name.starts_with(&format!("{root}/"))).copied().collect();
        for circle in imports::circles(root, &files) {
            complaints.push(format!("{}: imports in a circle: {}", circle[0], circle.join(" ")));
        }
    }
    complaints
}

/// The complaints about one file.
fn file(name: &str, text: &str) -> Vec<String> {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut complaints = Vec::new();
    let mut complain = |line: usize, what: &str| complaints.push(format!("{name}:{line}: {what}"));
    let mut each_line = |what: &str, bad: &dyn Fn(&str) -> bool| {
        for (n, line) in text.split('\n').enumerate().filter(|(_, line)| bad(line)) {
            complain(n + 1, &format!("{what}: {}", line.trim()));
        }
    };

    // Cargo records the source of each package there.
    if name != "Cargo.lock" {
        each_line("names a package registry", &|line| REGISTRIES.iter().any(|host| line.contains(host)));
    }
    each_line("a path of one machine", &|line| MACHINE_PATHS.iter().any(|path| begins_at_root(line, path)));
    each_line("a merge conflict", &|line| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> "));
    // In a patch, a line with a single space is an empty line of context.
    if extension != "patch" {
        each_line("white space at the end", &|line| line.ends_with([' ', '\t', '\r']));
        if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
            complain(text.lines().count(), "must end with one newline");
        }
    }
    if extension == "rs" && !UNSAFE_PLACES.iter().any(|place| name.starts_with(place)) {
        for line in unsafe_lines(text) {
            complain(line, &format!("unsafe code outside {}", UNSAFE_PLACES.join(" ")));
        }
    }
    if extension == "rs" {
        for (n, line) in code_only(text).lines().enumerate().filter(|(_, line)| line.contains("#[path")) {
            complain(n + 1, &format!("a module lies where it is declared: {}", line.trim()));
        }
    }
    if extension == "md" {
        for (line, length) in wide_lines(text) {
            complain(line, &format!("{length} columns of prose, at most {MAX_COLUMNS}"));
        }
    }
    if SHIPPED.contains(&name) {
        let shipped = text.split("[dev-dependencies]").next().unwrap_or_default();
        for (n, line) in shipped.lines().enumerate() {
            let ours = ["vfio-fast-engine", "vfio-fast-cli"].iter().any(|ours| line.starts_with(ours));
            if line.starts_with("vfio-fast-") && !ours {
                complain(n + 1, &format!("what ships depends on nothing of the lab: {line}"));
            }
        }
    }
    let generated = name == "include/vfio_fast.h";
    let lines = text.lines().count();
    if ["rs", "c", "h", "sh"].contains(&extension) && !generated && lines > MAX_LINES {
        complain(lines, &format!("{lines} lines: more than one noun in a file"));
    }
    complaints
}

/// The lines of prose that are too wide, with their widths. Tables and fenced blocks cannot be wrapped.
fn wide_lines(text: &str) -> Vec<(usize, usize)> {
    let mut fenced = false;
    let mut wide = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        let length = line.chars().count();
        if !fenced && !fence && !line.starts_with('|') && length > MAX_COLUMNS {
            wide.push((n + 1, length));
        }
    }
    wide
}

/// Whether a path occurs as an absolute path, and not as the end of another path.
fn begins_at_root(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "/._-~}*$>".contains(c))
    })
}

/// The lines with the keyword `unsafe` in Rust code, outside comments and strings.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let code = code_only(text);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let has_keyword = |line: &&str| line.split(|c| !is_word(c)).any(|word| word == "unsafe");
    code.lines().enumerate().filter(|(_, line)| has_keyword(line)).map(|(n, _)| n + 1).collect()
}

/// Rust text with comments, strings and characters blanked. Line numbers stay the same.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let end = token_end(rest, code.chars().next_back());
        match end {
            Some(end) => {
                code.push(' ');
                code.extend(rest[..end].chars().filter(|c| *c == '\n'));
                rest = &rest[end..];
            }
            None => {
                code.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    code
}

/// The end of the comment, string or character that begins here, if one does.
fn token_end(rest: &str, before: Option<char>) -> Option<usize> {
    let whole = rest.len();
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(whole));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(whole, |end| end + 2));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !in_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 2;
            return Some(rest[start..].find(&close).map_or(whole, |end| start + end + close.len()));
        }
    }
    if rest.starts_with('"') {
        return Some(quoted_end(rest, '"').unwrap_or(whole));
    }
    // Distinguishes a character from a lifetime: a quote follows after one character or an escape.
    let inner = rest.strip_prefix('\'')?;
    let first = inner.chars().next()?;
    if first == '\\' || inner[first.len_utf8()..].starts_with('\'') { quoted_end(rest, '\'') } else { None }
}

fn quoted_end(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expects exactly one complaint about a file with this text, and returns it.
    fn complaint(name: &str, text: &str) -> String {
        let complaints = file(name, text);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        complaints[0].clone()
    }

    #[test]
    fn good_text_passes() {
        assert_eq!(file("a.rs", "//! No unsafe here.\nfn main() {}\n"), [""; 0]);
        assert_eq!(file("empty", ""), [""; 0]);
    }

    #[test]
    fn every_registry_is_found() {
        for host in REGISTRIES {
            let text = format!("one\nsee https://{host}/x\n");
            assert!(complaint("README.md", &text).starts_with("README.md:2: names a package registry"));
            assert_eq!(file("Cargo.lock", &text), [""; 0]);
        }
    }

    #[test]
    fn machine_paths_are_found_and_relative_ones_are_not() {
        for path in MACHINE_PATHS {
            for text in [format!("{path}x\n"), format!("cd \"{path}x\"\n"), format!("a={path}x\n")] {
                assert!(complaint("x.sh", &text).starts_with("x.sh:1: a path of one machine"), "{text}");
            }
            assert_eq!(file("x.sh", &format!("ls target{path}x $HOME{path}x\n")), [""; 0]);
        }
    }

    #[test]
    fn unsafe_code_is_found_wherever_it_hides() {
        for code in [
            "unsafe { f() }",
            "pub unsafe fn f() {}",
            "let s = \"//\"; unsafe { f() }",
            "let c = '\"'; unsafe { f() } // \"",
            "let r = r#\"\"\"#; unsafe { f() }",
            "fn f<'a>(x: &'a u8) { unsafe {} }",
            "/* x */ unsafe { f() }",
            "let s = \"\\\"\"; unsafe { f() }",
            "#[unsafe(no_mangle)]",
        ] {
            let text = format!("\n{code}\n");
            assert_eq!(
                complaint("engine/src/plan.rs", &text).split(": ").next(),
                Some("engine/src/plan.rs:2")
            );
            assert_eq!(file("engine/src/sys/ioctl.rs", &text), [""; 0]);
            assert_eq!(file("ffi/src/lib.rs", &text), [""; 0]);
        }
        for code in [
            "#![deny(unsafe_code)]",
            "// unsafe { }",
            "/* unsafe\nunsafe */ fn f() {}",
            "let s = \"unsafe\";",
            "let s = r\"\\\"; // unsafe",
            "let s = r#\"a\" unsafe \"#;",
        ] {
            assert_eq!(file("engine/src/plan.rs", &format!("{code}\n")), [""; 0], "{code}");
        }
    }

    #[test]
    fn long_files_are_found_but_for_the_generated_one() {
        let text = "x\n".repeat(MAX_LINES + 1);
        assert!(complaint("a.c", &text).contains("601 lines"));
        assert_eq!(file("include/vfio_fast.h", &text), [""; 0]);
        assert_eq!(file("a.c", &text[2..]), [""; 0]);
    }

    #[test]
    fn wide_prose_is_found_outside_of_tables_and_fences() {
        let wide = "x".repeat(MAX_COLUMNS + 1);
        assert!(complaint("a.md", &format!("{wide}\n")).starts_with("a.md:1: 121 columns"));
        assert_eq!(file("a.md", &format!("| {wide} |\n```sh\n{wide}\n```\n{}\n", &wide[1..])), [""; 0]);
    }

    #[test]
    fn what_ships_depends_on_nothing_of_the_lab() {
        let text = "[dependencies]\nvfio-fast-protocol.workspace = true\n";
        assert!(complaint("ffi/Cargo.toml", text).starts_with("ffi/Cargo.toml:2: what ships"));
        for name in SHIPPED {
            assert!(complaint(name, text).contains("what ships"));
        }
        let text = "[dependencies]\nvfio-fast-engine.workspace = true\n[dev-dependencies]\nvfio-fast-testing.workspace = true\n";
        assert_eq!(file("ffi/Cargo.toml", text), [""; 0]);
    }

    #[test]
    fn modules_lie_where_they_are_declared() {
        assert!(complaint("a.rs", "#[path = \"b/c.rs\"]\nmod c;\n").contains("where it is declared"));
        assert_eq!(file("a.rs", "// #[path = \"b\"]\n"), [""; 0]);
        let both = [("x/src/a.rs", String::new()), ("x/src/a/b.rs", String::new())];
        assert_eq!(tree(&both), ["x/src/a.rs: there is a folder of this name: call the file x/src/a/mod.rs"]);
    }

    #[test]
    fn white_space_and_conflicts_are_found() {
        for text in ["a \nb\n", "a\r\nb\n", "a", "a\n\n", "<<<<<<< HEAD\n", ">>>>>>> x\n"] {
            complaint("a.md", text);
        }
        assert_eq!(file("0001-a.patch", " a\n \n-- \n"), [""; 0]);
    }
}
