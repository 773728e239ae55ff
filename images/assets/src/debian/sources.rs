//! The Debian mirror and keyring of this machine, from the host's own apt sources.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One archive, as configured on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Base of the archive.
    pub uri: String,
    /// Value of `Signed-By`: a path, a fingerprint or a whole key. `None` stands for apt's trusted keys.
    pub signed_by: Option<String>,
}

/// One source line or paragraph with binary packages.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    mirror: Mirror,
    suites: Vec<String>,
    components: Vec<String>,
}

/// The mirror with the host's own Debian release, read from `etc`, which is `/etc` except in tests.
pub fn host_mirror(etc: &Path) -> Result<Mirror> {
    let mut sources = Vec::new();
    let mut files = vec![etc.join("apt/sources.list")];
    if let Ok(items) = fs::read_dir(etc.join("apt/sources.list.d")) {
        files.extend(items.flatten().map(|item| item.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(deb822(&text)),
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            _ => {}
        }
    }
    let release = fs::read_to_string(etc.join("os-release")).unwrap_or_default();
    let codename =
        release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    choose(&sources, codename.trim_matches('"')).cloned().with_context(|| {
        format!(
            "No Debian mirror in the apt sources below {}; vfio-fast needs one for QEMU and a kernel",
            etc.display()
        )
    })
}

/// The main archive, recognized by the host's own release. Archives with only its updates do not count.
fn choose<'a>(sources: &'a [Source], codename: &str) -> Option<&'a Mirror> {
    let main = |source: &&Source| source.components.iter().any(|component| component == "main");
    let own = |source: &&Source| {
        let suites = ["stable", "testing", "unstable", "sid", codename];
        source.suites.iter().any(|suite| !suite.is_empty() && suites.contains(&suite.as_str()))
    };
    sources.iter().filter(main).find(own).map(|source| &source.mirror)
}

/// The paragraphs of a `.sources` file.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(from_fields(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn from_fields(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let words = |name: &str| field(name).unwrap_or_default().split_whitespace().map(str::to_owned);
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
        || !words("types").any(|t| t == "deb")
    {
        return None;
    }
    Some(Source {
        mirror: Mirror { uri: words("uris").next()?, signed_by: field("signed-by").map(str::to_owned) },
        suites: words("suites").collect(),
        components: words("components").collect(),
    })
}

/// One line of a `.list` file: `deb [option=value ...] uri suite component ...`.
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next()?;
    let suites = vec![words.next()?];
    Some(Source { mirror: Mirror { uri, signed_by }, suites, components: words.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str = "\
# a comment
Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /k.gpg

Types: deb deb-src
# between fields
URIs: http://mirror.invalid/debian http://other.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
";

    #[test]
    fn deb822_paragraphs() {
        let sources = deb822(SOURCES);
        assert_eq!(sources.len(), 2);
        let mirror = choose(&sources, "bookworm").unwrap();
        assert_eq!(mirror.uri, "http://mirror.invalid/debian");
        let key = mirror.signed_by.as_ref().unwrap();
        assert!(key.starts_with("\n -----BEGIN") && key.ends_with("BLOCK-----"), "{key:?}");
        assert_eq!(choose(&sources, "trixie"), None);
    }

    #[test]
    fn disabled_and_source_only_paragraphs_do_not_count() {
        assert_eq!(deb822("Types: deb-src\nURIs: u\nSuites: s\nComponents: main\n"), []);
        assert_eq!(deb822("Enabled: no\nTypes: deb\nURIs: u\nSuites: s\nComponents: main\n"), []);
    }

    #[test]
    fn one_line_format() {
        let source =
            one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian sid main contrib # x")
                .unwrap();
        let mirror = Mirror { uri: "http://mirror.invalid/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(choose(std::slice::from_ref(&source), ""), Some(&mirror));
        let plain = one_line("deb\thttp://mirror.invalid/debian bookworm main").unwrap();
        assert_eq!((plain.mirror.signed_by, plain.suites), (None, vec!["bookworm".to_owned()]));
        for line in [
            "",
            "# deb http://mirror.invalid/debian sid main",
            "deb-src http://mirror.invalid/debian sid main",
            "deb http://x",
        ] {
            assert_eq!(one_line(line), None, "{line}");
        }
    }
}
