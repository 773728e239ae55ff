//! Writes the files of a host from its description in `tests/hosts`.
//!
//! A description is a text of lines: `base NAME` begins with the files of another host, `file PATH` is followed by its
//! text, indented by two spaces, `link PATH TARGET` is a symbolic link, `node PATH MODE` a device in /dev, `dir PATH` an
//! empty directory, and `remove PATH` takes something of the base away. `#` begins a comment.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A tree of files that is removed at the end.
pub struct Tree(pub PathBuf);

impl Tree {
    /// The tree of the host `name`; `test` tells apart tests that use the same host.
    pub fn new(name: &str, test: &str) -> Self {
        let dir = format!("vfio-fast-doctor-{}-{test}-{name}", std::process::id());
        let tree = Self(std::env::temp_dir().join(dir));
        write(&tree.0, name);
        tree
    }

    /// Applies more lines of a description.
    pub fn with(self, lines: &str) -> Self {
        apply(&self.0, lines);
        self
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(root: &Path, name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts").join(format!("{name}.host"));
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    apply(root, &text);
}

fn apply(root: &Path, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if line.is_empty() || line.starts_with('#') || line.starts_with("  ") {
            continue;
        }
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let path = root.join(words[1]);
        if let (Some(parent), true) = (path.parent(), words[0] != "base") {
            fs::create_dir_all(parent).unwrap();
        }
        match words.as_slice() {
            ["base", name] => write(root, name),
            ["dir", _] => fs::create_dir_all(path).unwrap(),
            ["link", _, target] => {
                let _ = fs::remove_file(&path);
                symlink(target, path).unwrap();
            }
            ["remove", _] if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            ["remove", _] => fs::remove_file(path).unwrap(),
            ["node", _, mode] => {
                fs::write(&path, "").unwrap();
                let mode = u32::from_str_radix(mode, 8).unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            ["file", _] => {
                let text = lines[number + 1..].iter().map_while(|line| line.strip_prefix("  "));
                fs::write(path, text.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
            }
            _ => panic!("line {}: {line}", number + 1),
        }
    }
}
