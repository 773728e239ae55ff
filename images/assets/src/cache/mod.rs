//! Build products in the user's cache directory, each named by the hash of its inputs.
//!
//! An entry is a directory that is renamed into place when it is complete, so every entry that exists is complete.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hmac_sha256::Hash;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Entries kept per name, most recently used first: enough for several branches.
const KEPT: usize = 6;

/// Something a product depends on.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A string, such as a version or a command line.
    Text(&'a str),
    /// The contents of a file.
    File(&'a Path),
    /// The names and contents of everything below a directory.
    Dir(&'a Path),
}

#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A product that is in the cache or can be built.
#[derive(Debug)]
pub struct Entry {
    cache: Cache,
    name: String,
    key: String,
}

impl Cache {
    /// Opens the cache of this user: `$XDG_CACHE_HOME/vfio-fast`, else `~/.cache/vfio-fast`.
    pub fn open() -> Result<Cache> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .context("Neither XDG_CACHE_HOME nor HOME is set: no place for the cache")?;
        Cache::at(&base.join("vfio-fast"))
    }

    /// Opens a cache at the directory `root`.
    pub fn at(root: &Path) -> Result<Cache> {
        for dir in ["locks", "logs", "entries"] {
            make_dir(&root.join(dir))?;
        }
        Ok(Cache { root: root.to_path_buf() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry for the product `name` made from `inputs`. Different inputs give different entries.
    pub fn entry(&self, name: &str, inputs: &[Input]) -> Result<Entry> {
        let mut hash = Hash::new();
        for input in inputs {
            feed(&mut hash, *input)?;
        }
        let key = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Ok(Entry { cache: self.clone(), name: name.to_owned(), key })
    }

    /// A directory outside the entries for state that is updated in place. The caller must hold `lock` while writing.
    pub fn state(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// Makes a build use the cache's ccache. Trees in different places share objects: `base` is the place of this
    /// one.
    pub fn share_objects(&self, command: &mut Command, base: &Path) {
        command.env("CCACHE_DIR", self.root.join("ccache")).env("CCACHE_MAXSIZE", "1G");
        command
            .env("CCACHE_BASEDIR", base)
            .env("CCACHE_NOHASHDIR", "1")
            .env("CCACHE_COMPILERCHECK", "content");
    }

    /// Waits until no other process holds the lock `name`, and holds it until the guard is dropped.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.root.join("locks").join(name);
        let file = File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
        let mut locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        // Another thread of this run holds the lock only briefly.
        for _ in 0..20 {
            if locked != Err(Errno::WOULDBLOCK) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        }
        let locked = match locked {
            Err(Errno::WOULDBLOCK) => {
                crate::progress::say(&format!("    waiting for another run that holds {}", path.display()));
                flock(&file, FlockOperation::LockExclusive)
            }
            other => other,
        };
        locked.with_context(|| format!("Cannot lock {}", path.display()))?;
        Ok(Lock(file))
    }

    /// Removes all entries of `name` except those used most recently, with their logs.
    fn prune(&self, name: &str) -> Result<()> {
        let mut found = Vec::new();
        for item in fs::read_dir(self.root.join("entries"))? {
            let item = item?;
            let file_name = item.file_name().to_string_lossy().into_owned();
            let key = file_name.strip_prefix(name).and_then(|rest| rest.strip_prefix('@'));
            if key.is_some_and(|key| !key.contains('.')) {
                found.push((item.metadata()?.modified()?, file_name));
            }
        }
        found.sort();
        let surplus = found.len().saturating_sub(KEPT);
        for (_, stem) in &found[..surplus] {
            fs::remove_dir_all(self.root.join("entries").join(stem))?;
            let _ = fs::remove_file(self.root.join("logs").join(format!("{stem}.log")));
        }
        Ok(())
    }
}

/// A held lock.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "dropping it unlocks")] File);

impl Entry {
    /// The path of the finished product, whether or not it exists yet.
    pub fn path(&self) -> PathBuf {
        self.cache.root.join("entries").join(self.stem())
    }

    /// The path of the log of this entry's build.
    pub fn log(&self) -> PathBuf {
        self.cache.root.join("logs").join(format!("{}.log", self.stem()))
    }

    /// Whether the product exists.
    pub fn is_ready(&self) -> bool {
        self.path().is_dir()
    }

    /// Returns the path of the finished product. `build` fills an empty directory if the product does not exist yet.
    ///
    /// If `build` ends early because of an error, a signal or a crash, no entry is left.
    pub fn get_or_build(&self, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path();
        let _lock = self.cache.lock(&self.stem())?;
        if self.is_ready() {
            crate::progress::say(&format!("    cached: {}", self.stem()));
            // The time of last use decides which entries are pruned.
            File::open(&path)?.set_modified(SystemTime::now())?;
            return Ok(path);
        }
        let partial = path.with_file_name(format!("{}.partial", self.stem()));
        remove_dir(&partial)?;
        make_dir(&partial)?;
        let abandoned = partial.clone();
        let _cleanup = crate::interrupt::on_interrupt(move || drop(remove_dir(&abandoned)));
        if let Err(error) = build(&partial) {
            remove_dir(&partial)?;
            return Err(error);
        }
        fs::rename(&partial, &path).with_context(|| format!("Cannot publish {}", path.display()))?;
        self.cache.prune(&self.name)?;
        Ok(path)
    }

    fn stem(&self) -> String {
        format!("{}@{}", self.name, self.key)
    }
}

/// Hashes one input, framed by its kind and length so that no two lists of inputs collide.
fn feed(hash: &mut Hash, input: Input) -> Result<()> {
    match input {
        Input::Text(text) => frame(hash, b"text", text.as_bytes()),
        Input::File(path) => {
            let bytes = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
            frame(hash, b"file", &bytes);
        }
        Input::Dir(path) => feed_dir(hash, path)?,
    }
    Ok(())
}

fn feed_dir(hash: &mut Hash, dir: &Path) -> Result<()> {
    let describe = || format!("Cannot read {}", dir.display());
    let mut items =
        fs::read_dir(dir).and_then(|items| items.collect::<io::Result<Vec<_>>>()).with_context(describe)?;
    items.sort_by_key(fs::DirEntry::file_name);
    frame(hash, b"dir", &(items.len() as u64).to_le_bytes());
    for item in items {
        frame(hash, b"name", item.file_name().as_encoded_bytes());
        let meta = item.metadata().with_context(describe)?;
        if meta.is_dir() {
            feed_dir(hash, &item.path())?;
        } else if meta.is_symlink() {
            let to = fs::read_link(item.path()).with_context(describe)?;
            frame(hash, b"link", to.as_os_str().as_encoded_bytes());
        } else {
            let executable = meta.permissions().mode() & 0o111 != 0;
            frame(hash, b"exec", &[u8::from(executable)]);
            feed(hash, Input::File(&item.path()))?;
        }
    }
    Ok(())
}

fn frame(hash: &mut Hash, kind: &[u8], bytes: &[u8]) {
    hash.update(kind);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))
}

/// Removes a directory tree. It is not an error if there is none.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
