//! Memory that a long-term pin moves: ZONE_MOVABLE and CMA areas, according to /proc.

use super::proc;

/// The movable memory of this host, whatever part of it is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Movable {
    /// Pages in ZONE_MOVABLE, of all nodes.
    pub zone_pages: u64,
    /// KiB in CMA areas, including the one that huge pages are allocated from (`hugetlb_cma=`).
    pub cma_kib: u64,
}

impl Movable {
    /// Reads the current state; `None` if it cannot be read.
    pub fn read() -> Option<Self> {
        let zones = proc::read("/proc/zoneinfo")?;
        let memory = proc::read("/proc/meminfo")?;
        Some(Self { zone_pages: movable_pages(&zones), cma_kib: cma_kib(&memory) })
    }

    /// Whether there is any.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The sum of `managed` over the zones `Movable` in the text of /proc/zoneinfo. A zone without pages is listed too.
pub(super) fn movable_pages(zoneinfo: &str) -> u64 {
    let mut movable = false;
    let mut pages = 0u64;
    for line in zoneinfo.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Node"), _) => movable = line.ends_with(" Movable"),
            (Some("managed"), Some(number)) if movable => {
                pages = pages.saturating_add(number.parse().unwrap_or(0));
            }
            _ => {}
        }
    }
    pages
}

/// `CmaTotal` of /proc/meminfo; 0 if the kernel has no CMA.
pub(super) fn cma_kib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("CmaTotal:"));
    line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes, of which only the second has pages in ZONE_MOVABLE.
    const ZONES: &str = "\
Node 0, zone   Normal
  per-node stats
      nr_inactive_anon 181
  pages free     1015931
        boost    0
        spanned  1310720
        present  1310720
        managed  1275392
        cma      0
Node 0, zone  Movable
  pages free     0
        spanned  0
        present  0
        managed  0
        cma      0
Node 1, zone  Movable
  pages free     131072
        present  262144
        managed  258048
        protection: (0, 0, 0, 0, 0)
Node 1, zone   Device
        managed  77
";

    #[test]
    fn only_movable_zones_with_pages_count() {
        assert_eq!(movable_pages(ZONES), 258_048);
        assert_eq!(movable_pages(&ZONES.replace("258048", "0")), 0);
        assert_eq!(movable_pages(&ZONES.replace("258048", "many")), 0);
        assert_eq!(movable_pages(""), 0);
    }

    #[test]
    fn any_cma_area_counts() {
        assert_eq!(cma_kib("MemTotal:  24 kB\nCmaTotal:          65536 kB\nCmaFree: 1 kB\n"), 65536);
        assert_eq!(cma_kib("MemTotal:  24 kB\nCmaTotal:  0 kB\n"), 0);
        assert_eq!(cma_kib("MemTotal:  24 kB\n"), 0);
    }

    #[test]
    fn any_of_the_two_is_movable_memory() {
        assert!(!Movable::default().any());
        assert!(Movable { zone_pages: 1, cma_kib: 0 }.any());
        assert!(Movable { zone_pages: 0, cma_kib: 1 }.any());
        assert!(Movable::read().is_some(), "/proc/zoneinfo and /proc/meminfo are readable for everyone");
    }
}
