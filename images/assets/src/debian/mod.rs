//! Packages and sources from Debian, by name. A private apt root leaves the host's apt untouched.
//!
//! Archive and key are those of the host; only the suites are chosen here, so no host is named.

mod root;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Input, remove_dir};
use crate::progress::{self, run_logged};

/// The release of everything except the newest kernel.
pub const STABLE: &str = "trixie";
/// The release with the newest packages.
pub const UNSTABLE: &str = "sid";
/// Maximum age of an index; an older one is fetched again.
const INDEX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A private apt root in the cache, with a current index of one suite.
#[derive(Debug)]
pub struct Debian {
    cache: Cache,
    suite: &'static str,
    /// Another architecture than this machine's.
    architecture: Option<&'static str>,
    root: PathBuf,
}

/// A downloaded binary package.
#[derive(Debug)]
pub struct Deb {
    /// Name in the archive.
    pub package: String,
    pub path: PathBuf,
}

/// A downloaded source package.
#[derive(Debug)]
pub struct Source {
    /// Full Debian version.
    pub version: String,
    /// The `.dsc` file. The files that it lists are in the same directory.
    pub dsc: PathBuf,
}

impl Debian {
    /// Opens the apt root of a suite, and fetches the index if there is none or it is old.
    pub fn open(cache: &Cache, suite: &'static str) -> Result<Debian> {
        Self::of(cache, suite, None)
    }

    /// The same for the packages of another architecture, of which nothing can be run here.
    pub fn open_for(cache: &Cache, suite: &'static str, architecture: &'static str) -> Result<Debian> {
        Self::of(cache, suite, Some(architecture))
    }

    fn of(cache: &Cache, suite: &'static str, architecture: Option<&'static str>) -> Result<Debian> {
        let suffix = architecture.map_or_else(String::new, |name| format!("-{name}"));
        let root = cache.state(&format!("apt-{suite}{suffix}"))?;
        let debian = Debian { cache: cache.clone(), suite, architecture, root };
        let _lock = cache.lock("apt")?;
        for dir in ["lists/partial", "cache/archives/partial", "sources.d"] {
            fs::create_dir_all(debian.root.join(dir))?;
        }
        let mirror = sources::host_mirror(Path::new("/etc"))?;
        let mut paragraph =
            format!("Types: deb deb-src\nURIs: {}\nSuites: {suite}\nComponents: main\n", mirror.uri);
        if let Some(key) = mirror.signed_by {
            paragraph += &format!("Signed-By: {key}\n");
        }
        let file = debian.sources();
        let same = fs::read_to_string(&file).is_ok_and(|old| old == paragraph);
        // A file that was written again makes apt read the whole index again.
        if !same {
            fs::write(&file, paragraph)?;
        }
        let stamp = debian.root.join("index-fetched");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
        let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        if same && age.is_some_and(|age| age < INDEX_AGE) {
            return Ok(debian);
        }
        match debian.fetch_index() {
            Ok(()) => fs::write(stamp, "")?,
            // Without network, an old index is still usable for what is cached.
            Err(error) if same && age.is_some() => {
                crate::progress::say(&format!("    using the old index: {error:#}"))
            }
            Err(error) => return Err(error),
        }
        Ok(debian)
    }

    /// Downloads binary packages. The paths are in the order of `packages`.
    pub fn fetch_debs(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        packages.iter().map(|package| self.fetch_deb(package)).collect()
    }

    /// Downloads a kernel of Debian stable, 6.12. `flavour` is the end of its name.
    pub fn fetch_kernel(&self, flavour: &str) -> Result<Deb> {
        self.fetch_latest("linux-image-6.12.", &format!("+deb13-{flavour}"))
    }

    /// Downloads the newest package named `prefix`, digits and dots, `suffix`.
    ///
    /// An index can list versions that were removed from the archive, so older versions are tried if a download
    /// fails.
    pub fn fetch_latest(&self, prefix: &str, suffix: &str) -> Result<Deb> {
        let names = self.query("apt-cache", &["pkgnames", prefix])?;
        let mut last_error = None;
        for package in newest_first(names.lines(), prefix, suffix) {
            match self.fetch_deb(package) {
                Ok(path) => return Ok(Deb { package: package.to_owned(), path }),
                Err(error) => {
                    crate::progress::say(&format!(
                        "    {package} cannot be downloaded, trying an older version"
                    ));
                    last_error = Some(error);
                }
            }
        }
        let error = last_error.unwrap_or_else(|| anyhow::anyhow!("the index of {} has none", self.suite));
        Err(error.context(format!("No package {prefix}*{suffix} could be fetched")))
    }

    /// Downloads the newest source of `package` that belongs to the upstream series `series`.
    pub fn fetch_source(&self, package: &str, series: &str) -> Result<Source> {
        let listed = self.query("apt-cache", &["showsrc", package])?;
        let mut versions: Vec<&str> = listed
            .lines()
            .filter_map(|line| line.strip_prefix("Version: "))
            .filter(|version| in_series(version, series))
            .collect();
        versions.sort_by_key(|version| std::cmp::Reverse(natural(version)));
        versions.dedup();
        let mut last_error = None;
        for version in versions {
            match self.fetch_version(package, version) {
                Ok(dsc) => return Ok(Source { version: version.to_owned(), dsc }),
                Err(error) => last_error = Some(error),
            }
        }
        let error = last_error.unwrap_or_else(|| anyhow::anyhow!("the index of {} has none", self.suite));
        Err(error.context(format!("No source of {package} {series} could be fetched")))
    }

    /// The packages that building a source on this architecture needs, with what these depend on.
    pub fn build_dependencies(&self, package: &str, version: &str, profiles: &[&str]) -> Result<Vec<String>> {
        let what = format!("{package}={version}");
        let profiles = format!("--build-profiles={}", profiles.join(","));
        let args = [
            "build-dep",
            "--print-uris",
            "--yes",
            "--no-install-recommends",
            "--arch-only",
            &profiles,
            &what,
        ];
        let uris = self.query("apt-get", &args)?;
        // The name of a file is that of its package, the version and the architecture.
        let names = root::files(&uris).into_iter().filter_map(|file| file.split('_').next());
        Ok(names.map(str::to_owned).collect())
    }

    fn fetch_deb(&self, package: &str) -> Result<PathBuf> {
        let dir = self.fetch(package, &["download", package])?;
        only_file(&dir, "deb")
    }

    fn fetch_version(&self, package: &str, version: &str) -> Result<PathBuf> {
        let what = format!("{package}={version}");
        let dir = self.fetch(&format!("{package}-source"), &["source", "--download-only", &what])?;
        only_file(&dir, "dsc")
    }

    /// A directory with the files that `apt-get` downloads, keyed by their hashes in the signed index.
    fn fetch(&self, name: &str, args: &[&str]) -> Result<PathBuf> {
        let uris = self.query("apt-get", &[args, &["--print-uris"]].concat())?;
        // The key covers everything except the URIs.
        let wanted = root::files(&uris);
        if wanted.is_empty() {
            bail!("apt-get {} lists no file", args.join(" "));
        }
        let entry = self.cache.entry(name, &[Input::Text(&wanted.join("\n"))])?;
        entry.get_or_build(|dir| {
            let _lock = self.cache.lock("apt")?;
            progress::step(&format!("Fetch {name}"), &entry.log(), |log| {
                run_logged(self.tool("apt-get").args(args).current_dir(dir), log)
            })
        })
    }

    /// Reads the index. The lock keeps others from replacing it meanwhile, in this process or another: apt would then
    /// report an empty index, not an error.
    fn query(&self, program: &str, args: &[&str]) -> Result<String> {
        let _lock = self.cache.lock("apt")?;
        progress::output(self.tool(program).args(args))
    }

    fn fetch_index(&self) -> Result<()> {
        let log = self.root.join("update.log");
        let of = self.architecture.map_or_else(String::new, |name| format!(", {name}"));
        progress::step(&format!("Fetch Debian's package index ({}{of})", self.suite), &log, |log| {
            // apt reports an unreachable mirror as a warning by default.
            run_logged(self.tool("apt-get").args(["-o", "APT::Update::Error-Mode=any", "update"]), log)
        })
    }

    /// The file that names the archive.
    fn sources(&self) -> PathBuf {
        self.root.join("sources.d/debian.sources")
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-q");
        let at = |path: &str| self.root.join(path).display().to_string();
        let options = [
            format!("Dir::State::Lists={}", at("lists")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", at("cache")),
            "Dir::Cache::pkgcache=pkgcache.bin".to_owned(),
            "Dir::Cache::srcpkgcache=srcpkgcache.bin".to_owned(),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", at("sources.d")),
            // The host's pins and default release apply to the host's packages only.
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "APT::Default-Release=".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        let architecture = self
            .architecture
            .map(|name| [format!("APT::Architecture={name}"), format!("APT::Architectures::={name}")]);
        for option in options.into_iter().chain(architecture.into_iter().flatten()) {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Unpacks the files of binary packages into the directory `into`.
pub fn unpack_debs(debs: &[PathBuf], into: &Path, log: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    debs.iter().try_for_each(|deb| run_logged(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into), log))
}

/// Unpacks a source package with Debian's patches applied, as the directory `into`.
pub fn unpack_source(source: &Source, into: &Path, log: &Path) -> Result<()> {
    remove_dir(into)?;
    // apt has checked the hashes, so the uploader's signature adds nothing.
    run_logged(
        Command::new("dpkg-source").args(["--no-check", "--no-copy", "-x"]).arg(&source.dsc).arg(into),
        log,
    )
}

/// The names that consist of `prefix`, digits and dots, and `suffix`, highest version first.
fn newest_first<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, suffix: &str) -> Vec<&'a str> {
    let matches = |name: &&str| {
        let middle = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        middle.is_some_and(|m| !m.is_empty() && m.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    let mut found: Vec<&str> = names.filter(matches).collect();
    found.sort_by_key(|name| std::cmp::Reverse(natural(name)));
    found.dedup();
    found
}

/// A sort key that compares runs of digits as numbers.
fn natural(text: &str) -> Vec<(String, u64)> {
    let mut key = vec![(String::new(), 0_u64)];
    let mut in_digits = false;
    for c in text.chars() {
        if in_digits && !c.is_ascii_digit() {
            key.push((String::new(), 0));
        }
        in_digits = c.is_ascii_digit();
        let (word, number) = key.last_mut().expect("begins with one");
        match c.to_digit(10) {
            Some(digit) => *number = number.saturating_mul(10).saturating_add(u64::from(digit)),
            None => word.push(c),
        }
    }
    key
}

/// Whether a Debian version (`epoch:upstream-revision`) belongs to an upstream series.
pub(crate) fn in_series(version: &str, series: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'))
}

fn only_file(dir: &Path, extension: &str) -> Result<PathBuf> {
    let items = fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    let mut found = items.flatten().map(|item| item.path());
    found
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("apt-get left no .{extension} in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_first() {
        let names = [
            "linux-image-6.12.9+deb13-amd64",
            "linux-image-6.12.107+deb13-amd64",
            "linux-image-6.12.107+deb13-amd64-unsigned",
            "linux-image-6.12.107+deb13-rt-amd64",
            "linux-image-6.12.48+deb13-amd64",
        ];
        let found = newest_first(names.into_iter(), "linux-image-6.12.", "+deb13-amd64");
        assert_eq!(found, [names[1], names[4], names[0]]);
    }

    #[test]
    fn series_of_a_version() {
        assert!(in_series("1:10.0.13+ds-0+deb13u1", "10.0"));
        assert!(!in_series("1:10.2.2+ds-1", "10.0"));
        assert!(!in_series("1:10.01+ds-1", "10.0"));
        assert!(natural("1:10.0.13+ds-0+deb13u1") > natural("1:10.0.8+ds-0+deb13u1"));
    }
}
