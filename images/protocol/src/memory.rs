//! The kinds of guest memory that are measured.

use serde::{Deserialize, Serialize};

/// A kind of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryKind {
    /// Anonymous memory without huge pages.
    #[serde(rename = "anon-4k")]
    Anon4k,
    /// Anonymous memory with transparent huge pages.
    AnonThp,
    /// A memfd (shmem) without huge pages.
    #[serde(rename = "memfd-4k")]
    Memfd4k,
    /// A memfd (shmem) with transparent huge pages.
    MemfdThp,
    /// A memfd of 2 MiB hugetlb pages.
    Hugetlb,
    /// A memfd of 1 GiB hugetlb pages.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1g,
}

impl MemoryKind {
    pub const ALL: [Self; 6] =
        [Self::Anon4k, Self::AnonThp, Self::Memfd4k, Self::MemfdThp, Self::Hugetlb, Self::Hugetlb1g];
    /// The kinds that need no pages to be reserved.
    pub const UNRESERVED: [Self; 4] = [Self::Anon4k, Self::AnonThp, Self::Memfd4k, Self::MemfdThp];

    /// The name on the command line and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon4k => "anon-4k",
            Self::AnonThp => "anon-thp",
            Self::Memfd4k => "memfd-4k",
            Self::MemfdThp => "memfd-thp",
            Self::Hugetlb => "hugetlb",
            Self::Hugetlb1g => "hugetlb-1g",
        }
    }

    /// Bytes of a page of the memory that the kernel reserves for it, if it does.
    pub const fn reserved_page(self) -> Option<u64> {
        match self {
            Self::Hugetlb => Some(2 << 20),
            Self::Hugetlb1g => Some(1 << 30),
            Self::Anon4k | Self::AnonThp | Self::Memfd4k | Self::MemfdThp => None,
        }
    }

    pub const fn is_memfd(self) -> bool {
        !matches!(self, Self::Anon4k | Self::AnonThp)
    }

    /// Whether it may have huge pages.
    pub const fn may_be_huge(self) -> bool {
        !matches!(self, Self::Anon4k | Self::Memfd4k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_name() {
        for kind in MemoryKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
