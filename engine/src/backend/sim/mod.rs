//! An executable specification of the kernel's type1v2 container and of iommufd's IOAS, for tests.
//!
//! It must not use `sys` or `execute`: it is derived from the kernel's rules alone, so that conformance cases can
//! compare it with the kernel. It never accesses the memory at a host address.

mod dirty;
mod rules;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Backend, Capabilities, DirtyTracking, Handover, Mapping, PopulatePolicy, enoent_as_zero, unmap_halves,
};
use crate::addr::{HostVa, IovaRange, PageSizes};
use crate::error::{Errno, Error, KernelResult, Op, Result};
use crate::limits::{Limits, Memlock, MemlockScope, UserCharges};
use crate::object::{Object, ObjectKind};
use crate::region::Perm;
use rules::{KernelState, Request};

/// The driver that the model follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// A container with VFIO_TYPE1v2_IOMMU.
    Type1,
    /// An IOAS of iommufd.
    Iommufd,
}

/// The properties of the modelled container, and the calls that fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// The driver to model.
    pub rules: Rules,
    /// Whether a device is attached. Without one nothing is pinned, and an IOAS has no restrictions on IOVAs yet; see
    /// [`Sim::attach`].
    pub attached: bool,
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// The IOVAs that can be translated; empty: all.
    pub iova_ranges: Vec<IovaRange>,
    /// Maximum number of entries (`dma_entry_limit`); ignored by iommufd.
    pub dma_avail: u64,
    /// RLIMIT_MEMLOCK in bytes; `None`: not enforced.
    pub memlock_limit: Option<u64>,
    /// What other processes of the user have pinned, which counts against the limit of iommufd.
    pub charges: UserCharges,
    /// Whether [`Backend::memlock`] reports the limit, so that the preflight fails before the map call does.
    pub memlock_told: bool,
    /// Ranges of host addresses that cannot be mapped (EFAULT), as `start..=last`.
    pub unmappable: Vec<(u64, u64)>,
    /// Ranges of host addresses that cannot be mapped writable (EFAULT), as `start..=last`.
    pub read_only: Vec<(u64, u64)>,
    /// IOVAs of mappings that iommufd cannot unmap (EBUSY), because they are in use.
    pub busy: Vec<u64>,
    /// The numbers of the map and unmap calls that fail, counted from 1, and their errnos.
    pub failures: Vec<(u64, Errno)>,
    /// The number of the map or unmap call that panics, counted from 1.
    pub panic_nth: Option<u64>,
    /// Maximum size of type1's dirty bitmap in bytes; 0: no dirty tracking.
    pub max_bitmap_bytes: u64,
    /// Whether every mapped page counts as dirty. The kernel does so for devices that do not report their writes,
    /// such as those of vfio-pci. If not, only the pages of [`Sim::write`] are dirty.
    pub all_dirty: bool,
    /// When the engine faults memory in. Anything except `Never` requires real memory.
    pub populate: PopulatePolicy,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            rules: Rules::Type1,
            attached: true,
            page_sizes: PageSizes::from_bitmap(0x4020_1000),
            iova_ranges: Vec::new(),
            dma_avail: 65_535,
            memlock_limit: None,
            charges: UserCharges::default(),
            memlock_told: true,
            unmappable: Vec::new(),
            read_only: Vec::new(),
            busy: Vec::new(),
            failures: Vec::new(),
            panic_nth: None,
            max_bitmap_bytes: 256 << 20,
            all_dirty: true,
            populate: PopulatePolicy::Never,
        }
    }
}

/// A call that the model received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// VFIO_IOMMU_MAP_DMA or IOMMU_IOAS_MAP.
    Map(Mapping),
    /// IOMMU_IOAS_MAP_FILE, with the kind of the object and the offset in it.
    MapFile(Mapping, ObjectKind, u64),
    /// VFIO_IOMMU_UNMAP_DMA, with or without a bitmap, or IOMMU_IOAS_UNMAP.
    Unmap(IovaRange),
    /// The call that unmaps everything.
    UnmapAll,
    /// VFIO_IOMMU_DIRTY_PAGES that reads a bitmap.
    ReadDirty(IovaRange),
    /// VFIO_IOMMU_UNMAP_DMA with VFIO_DMA_UNMAP_FLAG_VADDR, of a range or of everything.
    DropAddresses(Option<IovaRange>),
    /// VFIO_IOMMU_MAP_DMA with VFIO_DMA_MAP_FLAG_VADDR.
    SetAddress(Mapping),
}

#[derive(Debug, Default)]
struct State {
    held: KernelState,
    calls: Vec<Call>,
}

/// The model. Clones share one container, so that a test can keep one and inspect it.
#[derive(Clone, Debug)]
pub struct Sim {
    config: Arc<Mutex<SimConfig>>,
    /// If both are locked, this is locked before the configuration.
    state: Arc<Mutex<State>>,
}

impl Sim {
    /// Creates an empty container.
    pub fn new(config: SimConfig) -> Self {
        Self { config: Arc::new(Mutex::new(config)), state: Arc::default() }
    }

    /// All mappings, ascending by IOVA.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.state().held.mappings.values().copied().collect()
    }

    /// The IOVAs of the mappings that have no host address, because no process has taken them over yet.
    pub fn without_address(&self) -> Vec<u64> {
        self.state().held.without_address.iter().copied().collect()
    }

    /// Bytes that count against RLIMIT_MEMLOCK.
    pub fn locked(&self) -> u64 {
        self.state().held.locked
    }

    /// Every map and unmap call of a backend so far, including those that failed.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Changes the container's properties, or which calls fail, from now on.
    pub fn reconfigure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut lock(&self.config));
    }

    /// Removes a mapping without the engine's knowledge, as another user of the container could. Returns whether
    /// there was one.
    pub fn steal(&self, iova: u64) -> bool {
        let mut state = self.state();
        let stolen = state.held.mappings.get(&iova).map(|mapping| mapping.range);
        stolen.map(|range| state.held.remove(&self.config(), range)).is_some()
    }

    /// Marks the page at `iova` as written by a device.
    pub fn write(&self, iova: u64) {
        let mut state = self.state();
        let page = self.config().page_sizes.smallest();
        state.held.written.insert(iova / page);
    }

    /// Attaches the first device, which pins everything that was only recorded so far.
    pub fn attach(&self) -> KernelResult<()> {
        let mut state = self.state();
        let mut config = lock(&self.config);
        state.held.attach(&config)?;
        config.attached = true;
        Ok(())
    }

    /// Lets the last group leave a container of type1, which loses its mappings and its IOMMU, or the last device an
    /// IOAS.
    pub fn detach(&self) {
        let mut state = self.state();
        let mut config = lock(&self.config);
        state.held.detach(&config);
        config.attached = false;
    }

    /// Makes the map ioctl with arbitrary numbers and returns the kernel's result. Not included in [`Sim::calls`].
    pub fn ask_to_map(&self, iova: u64, length: u64, hva: HostVa, perm: Perm) -> KernelResult<()> {
        let mut state = self.state();
        state.held.map(&self.config(), Request { iova, length, hva, perm })
    }

    /// Makes IOMMU_IOAS_MAP_FILE for a file of that many bytes, with arbitrary numbers, and returns the kernel's
    /// result. Not included in [`Sim::calls`].
    pub fn ask_to_map_file(
        &self,
        iova: u64,
        length: u64,
        offset: u64,
        file_bytes: u64,
        perm: Perm,
    ) -> KernelResult<()> {
        let mut state = self.state();
        let hva = HostVa::from_raw(offset);
        state.held.map_file(&self.config(), Request { iova, length, hva, perm }, file_bytes)
    }

    /// Makes the unmap ioctl with arbitrary numbers and returns the kernel's result. Not included in [`Sim::calls`].
    pub fn ask_to_unmap(&self, iova: u64, length: u64) -> KernelResult<u64> {
        let mut state = self.state();
        state.held.unmap(&self.config(), iova, length)
    }

    /// Makes the call that unmaps everything and returns the kernel's result. Not included in [`Sim::calls`].
    pub fn ask_to_unmap_all(&self) -> KernelResult<u64> {
        let mut state = self.state();
        state.held.unmap_all(&self.config())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn config(&self) -> SimConfig {
        lock(&self.config).clone()
    }

    /// Counts and records the call; returns the failure configured for it, if any.
    fn record(&self, state: &mut State, call: Call) -> KernelResult<SimConfig> {
        state.calls.push(call);
        let nth = state.calls.len() as u64;
        let config = self.config();
        assert!(config.panic_nth != Some(nth), "panic asked for at call {nth}");
        if state.held.without_iommu {
            return Err(Errno::EINVAL);
        }
        match config.failures.iter().find(|(at, _)| *at == nth) {
            Some((_, errno)) => Err(*errno),
            None => Ok(config),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic that a test requested, the state of the model is still valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// Converts the model's results as the real backends convert the kernel's.
impl Backend for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn limits(&self) -> Result<Limits> {
        if self.is_emptied() {
            return Err(Error::kernel(Op::Info, Errno::EINVAL));
        }
        let used = self.state().held.mappings.len() as u64;
        let config = self.config();
        Ok(match config.rules {
            Rules::Type1 => Limits {
                page_sizes: config.page_sizes,
                iova_ranges: config.iova_ranges,
                entries: Some(config.dma_avail.saturating_sub(used)),
                entries_at_open: Some(config.dma_avail),
            },
            Rules::Iommufd => Limits {
                page_sizes: PageSizes::from_bitmap(rules::alignment(&config)),
                iova_ranges: if config.attached { config.iova_ranges } else { Vec::new() },
                entries: None,
                entries_at_open: None,
            },
        })
    }

    fn memlock(&self) -> Memlock {
        let locked = self.locked();
        let config = self.config();
        let scope = match config.rules {
            Rules::Type1 => MemlockScope::Process,
            Rules::Iommufd => MemlockScope::User,
        };
        Memlock { locked, limit: config.memlock_limit.filter(|_| config.memlock_told), scope }
    }

    fn user_charges(&self) -> UserCharges {
        UserCharges { own: self.locked(), ..self.config().charges }
    }

    fn capabilities(&self) -> Capabilities {
        let config = self.config();
        let iommufd = config.rules == Rules::Iommufd;
        Capabilities {
            populate: config.populate,
            parallel: iommufd,
            objects: iommufd,
            exclusive: config.rules == Rules::Type1,
        }
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        let config = self.config();
        let tracks = config.rules == Rules::Type1 && config.max_bitmap_bytes > 0;
        tracks.then_some(self)
    }

    fn handover(&self) -> Option<&dyn Handover> {
        Some(self)
    }

    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        let mut state = self.state();
        let call =
            object.map_or(Call::Map(*mapping), |object| Call::MapFile(*mapping, object.kind, object.offset));
        let config = self.record(&mut state, call)?;
        state.held.map(&config, Request::from(mapping))
    }

    fn unmap(&self, range: IovaRange) -> KernelResult<u64> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::Unmap(range))?;
        let answer = state.held.unmap(&config, range.start(), range.length());
        match config.rules {
            Rules::Type1 => answer,
            Rules::Iommufd => enoent_as_zero(answer),
        }
    }

    fn unmap_all(&self) -> KernelResult<u64> {
        let mut state = self.state();
        let answer = self.record(&mut state, Call::UnmapAll).and_then(|config| state.held.unmap_all(&config));
        drop(state);
        match (self.config().rules, answer) {
            (Rules::Type1, Err(_)) => unmap_halves(|range| self.unmap(range)),
            (Rules::Type1, answer) => answer,
            (Rules::Iommufd, answer) => enoent_as_zero(answer),
        }
    }

    fn is_emptied(&self) -> bool {
        self.state().held.without_iommu
    }
}

// With iommufd, the kernel moves all entries to another process in a call that is not the backend's.
impl Handover for Sim {
    fn drop_addresses(&self, range: Option<IovaRange>) -> KernelResult<()> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::DropAddresses(range))?;
        match config.rules {
            Rules::Type1 => state.held.drop_addresses(range),
            Rules::Iommufd => Ok(()),
        }
    }

    fn set_address(&self, mapping: &Mapping) -> KernelResult<()> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::SetAddress(*mapping))?;
        match config.rules {
            Rules::Type1 => state.held.set_address(mapping),
            Rules::Iommufd => Ok(()),
        }
    }
}

impl DirtyTracking for Sim {
    fn max_bytes(&self) -> u64 {
        let config = self.config();
        config.max_bitmap_bytes.saturating_mul(8).saturating_mul(config.page_sizes.smallest())
    }

    fn track_dirty(&self, on: bool) -> KernelResult<()> {
        self.state().held.track(&self.config(), on)
    }

    fn read_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<()> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::ReadDirty(range))?;
        state.held.read_dirty(&config, range.start(), range.length(), bitmap)
    }

    fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<u64> {
        let mut state = self.state();
        let config = self.record(&mut state, Call::Unmap(range))?;
        state.held.unmap_dirty(&config, range.start(), range.length(), bitmap)
    }
}
