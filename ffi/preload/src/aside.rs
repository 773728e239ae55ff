//! Why a map call was passed on without its memory being faulted in.

use vfio_fast_engine::populate::Left;

/// A reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aside {
    Present,
    Small,
    ReadOnly,
    Device,
    ByFile,
    OneCpu,
    NoMethod,
    Limit,
    FileSystem,
    Refused,
    NotUnderstood,
    Unreadable,
    OtherFile,
    NoMemory,
    Broken,
}

impl Aside {
    pub const ALL: [Self; 15] = [
        Self::Present,
        Self::Small,
        Self::ReadOnly,
        Self::Device,
        Self::ByFile,
        Self::OneCpu,
        Self::NoMethod,
        Self::Limit,
        Self::FileSystem,
        Self::Refused,
        Self::NotUnderstood,
        Self::Unreadable,
        Self::OtherFile,
        Self::NoMemory,
        Self::Broken,
    ];

    /// The text of the summary.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Present => "the memory is present already",
            Self::Small => "less than 4 MiB",
            Self::ReadOnly => "the device may only read it",
            Self::Device => "device memory",
            Self::ByFile => "mapped by file (IOMMU_IOAS_MAP_FILE)",
            Self::OneCpu => "the process may use one CPU only",
            Self::NoMethod => "this host has no way to fault in that helps the map call",
            Self::Limit => "more than RLIMIT_MEMLOCK leaves",
            Self::FileSystem => "a file system that is too full, or that is not pinned",
            Self::Refused => "the kernel could not fault it in",
            Self::NotUnderstood => "flags, a size or an alignment that are not known here",
            Self::Unreadable => "the arguments cannot be read",
            Self::OtherFile => "not the descriptor of a device",
            Self::NoMemory => "no memory for the work itself",
            Self::Broken => "an error of this library",
        }
    }
}

impl From<Left> for Aside {
    fn from(left: Left) -> Self {
        match left {
            Left::Small => Self::Small,
            Left::OneCpu => Self::OneCpu,
            Left::NoMethod => Self::NoMethod,
            Left::Limit => Self::Limit,
            Left::FileSystem => Self::FileSystem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_place_and_a_text_of_its_own() {
        assert!(Aside::ALL.iter().enumerate().all(|(n, aside)| *aside as usize == n));
        let mut texts = Aside::ALL.map(Aside::text).to_vec();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Aside::ALL.len());
    }
}
