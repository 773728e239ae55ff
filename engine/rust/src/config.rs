//! How an engine is opened.

use std::fmt;
use std::sync::Arc;

use vfio_fast_engine::log::{self, Log};
use vfio_fast_engine::{CpuSet, Errno, error, transaction};

use crate::Result;

/// The importance of a message, the most important first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Level {
    /// A permanent failure.
    Error,
    /// A problem with something that the program may rely on.
    Warn,
    /// What an administrator may want to know once.
    Info,
    /// Details for developers of this library.
    Debug,
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warn,
            log::Level::Info => Self::Info,
            log::Level::Debug => Self::Debug,
        }
    }
}

pub(crate) type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

/// The configuration of an [`Engine`](crate::Engine). The defaults suit a virtual machine.
///
/// ```
/// use vfio_fast_dma::{Config, Level};
///
/// let config = Config::new().threads(4).log(|level, text| {
///     if level <= Level::Warn {
///         eprintln!("{text}");
///     }
/// });
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct Config {
    entry_size: Option<u64>,
    cuts: Vec<u64>,
    threads: usize,
    cpus: Option<Vec<usize>>,
    no_huge_pages: bool,
    max_unmap_entries: u64,
    pub(crate) log: Option<Sink>,
}

impl Config {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the largest mapping of the kernel, a power of two of at least 2 MiB; 1 GiB unless it is set. It bounds
    /// how long one call holds the container's lock.
    pub fn entry_size(self, bytes: u64) -> Self {
        Self { entry_size: Some(bytes), ..self }
    }

    /// Device addresses at which the kernel's mappings end as well, multiples of the smallest IOMMU page: edges at which
    /// the memory map often changes, such as those of shadow memory below 1 MiB.
    pub fn cuts(self, iovas: impl IntoIterator<Item = u64>) -> Self {
        Self { cuts: iovas.into_iter().collect(), ..self }
    }

    /// Maximum number of threads of a commit, the caller's included; 0: one for each CPU that the process may use.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The CPUs that the library's threads run on, by number, in place of those of the process. Those that no kernel can
    /// have are ignored; if none is left, opening fails with `EINVAL`.
    pub fn cpus(self, cpus: impl IntoIterator<Item = usize>) -> Self {
        Self { cpus: Some(cpus.into_iter().collect()), ..self }
    }

    /// Whether to ask for huge pages (`MADV_HUGEPAGE`) before memory is faulted in; true unless it is set.
    pub fn huge_pages(self, wanted: bool) -> Self {
        Self { no_huge_pages: !wanted, ..self }
    }

    /// Maximum number of mappings that one call of the kernel unmaps; 0, the default: adapted to the time that calls
    /// take.
    pub fn max_unmap_entries(self, entries: u64) -> Self {
        Self { max_unmap_entries: entries, ..self }
    }

    /// Where messages go; nowhere unless it is set. `log` runs on a thread that calls into the engine, which is locked
    /// meanwhile: it must not call into the engine itself.
    pub fn log(self, log: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self { log: Some(Arc::new(log)), ..self }
    }

    pub(crate) fn into_engine(self) -> Result<transaction::Config> {
        let Self { entry_size, cuts, threads, cpus, no_huge_pages, max_unmap_entries, log } = self;
        let default = transaction::Config::default();
        let cpu_set = cpus.map(|cpus| {
            CpuSet::of_numbers(&cpus).ok_or_else(|| {
                let kind = error::ErrorKind::Other("the configured set of CPUs is empty");
                error::Error::check(Errno::EINVAL, kind).of(error::Op::Open)
            })
        });
        Ok(transaction::Config {
            entry_size: entry_size.unwrap_or(default.entry_size),
            cuts,
            threads,
            cpu_set: cpu_set.transpose()?,
            huge_pages: !no_huge_pages,
            max_unmap_entries,
            log: log.map_or(Log::none(), |log| Log::to(move |level, text| log(level.into(), text))),
            ..default
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry_size, cuts, threads, cpus, no_huge_pages, max_unmap_entries, log } = self;
        f.debug_struct("Config")
            .field("entry_size", entry_size)
            .field("cuts", cuts)
            .field("threads", threads)
            .field("cpus", cpus)
            .field("huge_pages", &!no_huge_pages)
            .field("max_unmap_entries", max_unmap_entries)
            .field("log", &log.is_some())
            .finish()
    }
}
