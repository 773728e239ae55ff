//! The host that is looked at: the files of /proc, /sys, /dev and /etc, below a directory.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access as Wish;

use crate::user::{User, field, kilobytes};

/// Whether a file can be opened for reading and writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It can.
    Open,
    /// The permissions forbid it: the mode and the owner.
    Denied { mode: u32, owner: u32, group: u32 },
    /// It is not there.
    Missing,
}

/// A host, or a tree of files captured from one.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    /// Who asks.
    pub user: User,
}

impl Host {
    /// The host whose files lie below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), user: User::read(root) }
    }

    /// The text of a file without white space at its ends; `None` if it cannot be read.
    pub fn read(&self, path: &str) -> Option<String> {
        self.try_read(path).ok()
    }

    /// The same, with the reason.
    pub fn try_read(&self, path: &str) -> Result<String, ErrorKind> {
        // A file can contain anything, a comm of /proc for example.
        let bytes = fs::read(self.root.join(path)).map_err(|error| error.kind())?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The number in a file.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a directory, in order; none if it cannot be read.
    pub fn list(&self, path: &str) -> Vec<String> {
        let names = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        // Numbers in their order: node2 before node10.
        names.sort_by_key(|name| {
            (name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), name.len(), name.clone())
        });
        names
    }

    /// The numbers of the processes, as the names of their directories.
    pub fn processes(&self) -> impl Iterator<Item = String> {
        self.list("proc").into_iter().filter(|name| name.parse::<u32>().is_ok())
    }

    /// The last part of what a link points to: the name of a driver, the number of a group.
    pub fn link(&self, path: &str) -> Option<String> {
        Some(fs::read_link(self.root.join(path)).ok()?.file_name()?.to_str()?.to_owned())
    }

    /// Whether there is such a file or directory.
    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Whether the user can open a file for reading and writing. It is not opened: that would take a VFIO group from
    /// the guest that is about to use it.
    pub fn access(&self, path: &str) -> Access {
        let path = self.root.join(path);
        let Ok(meta) = fs::metadata(&path) else { return Access::Missing };
        let (mode, owner, group) = (meta.mode() & 0o777, meta.uid(), meta.gid());
        let open = if self.root == Path::new("/") {
            // The kernel also knows about access control lists.
            rustix::fs::access(&path, Wish::READ_OK | Wish::WRITE_OK).is_ok()
        } else {
            self.user.may_open(mode, owner, group)
        };
        if open { Access::Open } else { Access::Denied { mode, owner, group } }
    }

    /// Major and minor version of the kernel, if it says them.
    pub fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.read("proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether the kernel is at least this version. One that does not say its version is taken for a new one.
    pub fn is_at_least(&self, version: (u32, u32)) -> bool {
        self.kernel().is_none_or(|kernel| kernel >= version)
    }

    /// The words of the kernel's command line.
    pub fn command_line(&self) -> Vec<String> {
        let line = self.read("proc/cmdline").unwrap_or_default();
        line.split_whitespace().map(Into::into).collect()
    }

    /// A value of /proc/meminfo, in bytes.
    pub fn meminfo(&self, name: &str) -> Option<u64> {
        kilobytes(&self.read("proc/meminfo")?, name)
    }

    /// Whether this is the inside of a container: something of it says so, and the kernel's threads are not visible. A
    /// virtual machine that was made of a container's image has the files, too.
    pub fn is_container(&self) -> bool {
        let files =
            [".dockerenv", "run/.containerenv", "run/systemd/container", "var/run/secrets/kubernetes.io"];
        let sees_kernel = self.read("proc/2/comm").is_some_and(|name| name == "kthreadd");
        !sees_kernel && files.iter().any(|file| self.has(file))
    }

    /// Whether the CPU is of the Arm architecture.
    pub fn is_arm(&self) -> bool {
        self.read("proc/cpuinfo").is_some_and(|cpuinfo| !field(&cpuinfo, "CPU implementer").is_empty())
    }

    /// Whether the CPU says that it is a virtual machine's.
    pub fn is_virtual_machine(&self) -> bool {
        let cpuinfo = self.read("proc/cpuinfo").unwrap_or_default();
        field(&cpuinfo, "flags").split_whitespace().any(|flag| flag == "hypervisor")
    }
}
