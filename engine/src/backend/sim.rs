//! An executable specification of the kernel's type1v2 container, for tests.
//!
//! It must not use `sys` or `execute`: what it does is written down from the kernel's rules alone, so that it can be held
//! to the kernel by conformance cases. It never looks at the memory behind a host address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, Limits, Mapping, Memlock, Populate};
use crate::addr::{IovaRange, PageSizes};
use crate::error::{Errno, Result};

/// What the modelled container offers, and which of its calls shall fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// IOVAs that can be translated; empty: all.
    pub iova_ranges: Vec<IovaRange>,
    /// Entries it can hold (`dma_entry_limit`).
    pub dma_avail: u64,
    /// RLIMIT_MEMLOCK in bytes; `None`: not enforced.
    pub memlock_limit: Option<u64>,
    /// Whether [`Backend::memlock`] tells the limit, so that preflight sees it before the map call does.
    pub memlock_told: bool,
    /// Host addresses the kernel refuses to map (EFAULT), as `start..=last`.
    pub unmappable: Vec<(u64, u64)>,
    /// The calls of map and unmap that fail, counted from 1, with what errno.
    pub failures: Vec<(u64, Errno)>,
    /// The call of map or unmap that panics, counted from 1.
    pub panic_nth: Option<u64>,
    /// When the engine shall fault memory in: other than never only if the tests hand over real memory.
    pub populate: Populate,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            page_sizes: PageSizes::from_bitmap(0x4020_1000),
            iova_ranges: Vec::new(),
            dma_avail: 65_535,
            memlock_limit: None,
            memlock_told: true,
            unmappable: Vec::new(),
            failures: Vec::new(),
            panic_nth: None,
            populate: Populate::Never,
        }
    }
}

/// One call that reached the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// VFIO_IOMMU_MAP_DMA.
    Map(Mapping),
    /// VFIO_IOMMU_UNMAP_DMA.
    Unmap(IovaRange),
}

#[derive(Debug, Default)]
struct State {
    mappings: BTreeMap<u64, Mapping>,
    locked: u64,
    calls: Vec<Call>,
}

/// The model. Clones share one container, so a test can keep one and look inside.
#[derive(Clone, Debug)]
pub struct Sim {
    config: Arc<Mutex<SimConfig>>,
    state: Arc<Mutex<State>>,
}

impl Sim {
    /// An empty container.
    pub fn new(config: SimConfig) -> Self {
        Self { config: Arc::new(Mutex::new(config)), state: Arc::default() }
    }

    /// What is mapped, ascending by IOVA.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.state().mappings.values().copied().collect()
    }

    /// Bytes counted against memlock.
    pub fn locked(&self) -> u64 {
        self.state().locked
    }

    /// Every map and unmap call so far, failed ones too.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Changes what the container offers or which calls fail, from now on.
    pub fn reconfigure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut lock(&self.config));
    }

    /// Takes a mapping away behind the engine's back, as another user of the container could.
    pub fn steal(&self, iova: u64) -> bool {
        let mut state = self.state();
        let stolen = state.mappings.remove(&iova);
        if let Some(mapping) = stolen {
            state.locked -= mapping.range.length();
        }
        stolen.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Counts the call; answers the failure that was asked for.
    fn record(&self, state: &mut State, call: Call) -> std::result::Result<SimConfig, Errno> {
        state.calls.push(call);
        let nth = state.calls.len() as u64;
        let config = lock(&self.config).clone();
        assert!(config.panic_nth != Some(nth), "panic asked for at call {nth}");
        match config.failures.iter().find(|(at, _)| *at == nth) {
            Some((_, errno)) => Err(*errno),
            None => Ok(config),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic that a test asked for leaves the model as it was.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn limits(&self) -> Result<Limits> {
        let config = lock(&self.config);
        let used = self.state().mappings.len() as u64;
        Ok(Limits {
            page_sizes: config.page_sizes,
            iova_ranges: config.iova_ranges.clone(),
            entries: Some(config.dma_avail.saturating_sub(used)),
        })
    }

    fn memlock(&self) -> Memlock {
        let config = lock(&self.config);
        Memlock { locked: self.locked(), limit: config.memlock_limit.filter(|_| config.memlock_told) }
    }

    fn populates(&self) -> Populate {
        lock(&self.config).populate
    }

    // The order of the checks is the kernel's (vfio_dma_do_map): alignment, overlap, dma_avail, IOVA range, then pinning.
    fn map(&self, mapping: &Mapping) -> std::result::Result<(), Errno> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::Map(*mapping))?;
        let range = mapping.range;
        let (length, hva) = (range.length(), mapping.hva.raw());
        if range == IovaRange::ALL || (length | range.start() | hva) & (config.page_sizes.smallest() - 1) != 0
        {
            return Err(Errno::EINVAL);
        }
        let hva_last = hva.checked_add(length - 1).ok_or(Errno::EINVAL)?;
        let below = state.mappings.range(..=range.last()).next_back();
        if below.is_some_and(|(_, other)| other.range.overlaps(range)) {
            return Err(Errno::EEXIST);
        }
        if state.mappings.len() as u64 >= config.dma_avail {
            return Err(Errno::ENOSPC);
        }
        if !config.iova_ranges.is_empty() && !config.iova_ranges.iter().any(|valid| valid.contains(range)) {
            return Err(Errno::EINVAL);
        }
        if config.unmappable.iter().any(|(start, last)| *start <= hva_last && hva <= *last) {
            return Err(Errno::EFAULT);
        }
        if config.memlock_limit.is_some_and(|limit| state.locked + length > limit) {
            return Err(Errno::ENOMEM);
        }
        state.locked += length;
        state.mappings.insert(range.start(), *mapping);
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> std::result::Result<u64, Errno> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::Unmap(range))?;
        if range == IovaRange::ALL
            || (range.start() | range.length()) & (config.page_sizes.smallest() - 1) != 0
        {
            return Err(Errno::EINVAL);
        }
        let inside: Vec<IovaRange> = state
            .mappings
            .values()
            .map(|mapping| mapping.range)
            .filter(|other| other.overlaps(range))
            .collect();
        if inside.iter().any(|mapping| !range.contains(*mapping)) {
            return Err(Errno::EINVAL);
        }
        let bytes = inside.iter().map(|mapping| mapping.length()).sum();
        for mapping in inside {
            state.mappings.remove(&mapping.start());
        }
        state.locked -= bytes;
        Ok(bytes)
    }
}
