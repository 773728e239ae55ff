//! The machine's pool of pages of 1 GiB.

use std::fs;

/// The number of 1-GiB pages in the pool, restored when this is dropped, also after a failure.
pub struct Pool {
    before: usize,
}

impl Pool {
    const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

    /// The number in one of the pool's files; 0 if it cannot be read.
    pub fn count(name: &str) -> usize {
        let text = fs::read_to_string(format!("{}/{name}", Self::FOLDER));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn resize(pages: usize) {
        // Without the right to, the pool stays as it is.
        let _ = fs::write(format!("{}/nr_hugepages", Self::FOLDER), pages.to_string());
    }

    /// Adds pages until `free` are free, as far as possible.
    pub fn with_free(free: usize) -> Self {
        let before = Self::count("nr_hugepages");
        let lacking = free.saturating_sub(Self::count("free_hugepages"));
        if lacking > 0 {
            Self::resize(before + lacking);
        }
        Self { before }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if Self::count("nr_hugepages") != self.before {
            Self::resize(self.before);
        }
    }
}
