//! What the bench of many calls prints: one JSON object a line. `cargo xtask bench` reads the same types.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// An array of pages, mapped and unmapped.
    Array(Array),
    /// A guest's memory, unmapped.
    Unmap(Unmap),
    /// Exact regions, mapped and unmapped through raw calls and through the library.
    Exact(Exact),
}

/// What maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// A container.
    Type1,
    /// An IOAS of iommufd.
    Iommufd,
}

impl Display for Driver {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
        })
    }
}

impl FromStr for Driver {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Type1, Self::Iommufd]
            .into_iter()
            .find(|driver| driver.to_string() == name)
            .ok_or_else(|| "not a driver: type1 and iommufd are".into())
    }
}

/// How the pages of an array lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// All in a row, for the device and in memory.
    Row,
    /// In runs of eight, with gaps.
    Mixed,
    /// None next to another, in no order.
    Random,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Row, Self::Mixed, Self::Random];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Row => "in a row",
            Self::Mixed => "in runs of 8",
            Self::Random => "random",
        }
    }
}

/// One array, both ways next to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Array {
    /// In which alternation, from 0.
    pub round: u32,
    /// What mapped; of no meaning without a device.
    pub driver: Driver,
    /// How the pages lie.
    pub shape: Shape,
    /// How many there are.
    pub pages: u64,
    /// A call for each page, as a program without the library makes them.
    pub page_by_page: Toggle,
    /// Through the engine's arrays.
    pub array: Toggle,
}

/// Mapped and unmapped.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Toggle {
    /// Map and unmap calls of the kernel.
    pub calls: u64,
    /// Seconds until all was mapped.
    pub map_seconds: f64,
    /// Seconds until all was unmapped.
    pub unmap_seconds: f64,
}

/// How a guest's memory is unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// One call for all of it.
    OneCall,
    /// The engine's bounded calls.
    Bounded,
    /// A call, and an entry, for each page of memory.
    PageByPage,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OneCall, Self::Bounded, Self::PageByPage];

    /// Its name in tables and steps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneCall => "one call",
            Self::Bounded => "bounded calls",
            Self::PageByPage => "page by page",
        }
    }
}

/// A guest's memory, mapped and then unmapped in one way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unmap {
    /// In which alternation, from 0.
    pub round: u32,
    /// Bytes of a page of the memory: 4 KiB or 2 MiB.
    pub page: u64,
    /// Bytes that were mapped.
    pub bytes: u64,
    /// How they were unmapped.
    pub policy: Policy,
    /// Unmap calls.
    pub calls: u64,
    /// Seconds they took.
    pub seconds: f64,
    /// Seconds of the longest.
    pub longest_seconds: f64,
    /// Seconds that mapping took before.
    pub map_seconds: f64,
}

/// How exact regions are unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sweep {
    /// Mapped and unmapped one by one, each outside a transaction.
    OneByOne,
    /// Mapped in one transaction, and unmapped by one call of the library for all; without it, by one call of the kernel.
    AtOnce,
}

impl Sweep {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneByOne => "one by one",
            Self::AtOnce => "unmapped at once",
        }
    }
}

/// Exact regions, both ways next to each other. None is adjacent to another. One by one, the seconds are those of the
/// median call times the number of regions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exact {
    /// In which alternation, from 0.
    pub round: u32,
    /// What mapped; of no meaning without a device.
    pub driver: Driver,
    pub sweep: Sweep,
    /// Bytes of a region.
    pub bytes: u64,
    /// How many regions there are.
    pub regions: u64,
    /// Calls of the kernel, without the library.
    pub raw: Toggle,
    pub library: Toggle,
}
