//! The QEMU series that are tested.

use std::fmt;

/// A QEMU series that there are patches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QemuSeries {
    /// Debian stable's. The test machines run on it, too.
    V10_0,
    /// The newest that Debian has.
    V10_2,
}

impl QemuSeries {
    /// Every series; first the one that scenarios use unless they name another.
    pub const ALL: [Self; 2] = [Self::V10_0, Self::V10_2];
    pub const USUAL: Self = Self::V10_0;

    /// Its name, and the name of its folder of patches.
    pub fn name(self) -> &'static str {
        match self {
            Self::V10_0 => "10.0",
            Self::V10_2 => "10.2",
        }
    }

    /// The series of that name.
    pub fn named(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|series| series.name() == name);
        found.ok_or_else(|| format!("there are patches for {names}"))
    }
}

impl fmt::Display for QemuSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_by_its_name() {
        assert!(QemuSeries::ALL.into_iter().all(|series| QemuSeries::named(series.name()) == Ok(series)));
        assert_eq!(QemuSeries::named("10").unwrap_err(), "there are patches for 10.0, 10.2");
    }
}
