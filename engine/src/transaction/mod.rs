//! Transactions: the changes of a caller, committed as a difference and rolled back as a whole.

mod background;
mod check;
mod close;
mod counters;
mod dirty;
mod discard;
mod explained;
mod handover;
mod job;
mod lock;
mod memory;
mod regions;
mod remap;
mod retry;
mod rollback;
mod running;
mod single;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::addr::IovaRange;
use crate::backend::{Backend, PopulatePolicy};
use crate::error::{Errno, Error, ErrorKind, Op, Result};
use crate::execute::{Batch, Executed, Executor};
use crate::limits::{Limits, Memlock};
use crate::log::{Level, Log};
use crate::object::Objects;
use crate::populate::method::Choice;
use crate::populate::{self, Method, PopulateOptions, ThreadLimit};
use crate::preflight;
use crate::reconcile::backlog::Backlog;
use crate::reconcile::dirty_pages::DirtyPages;
use crate::reconcile::grid::Grid;
use crate::reconcile::plan::{self, Gaps, Plan};
use crate::reconcile::table::{Entry, MapTable};
use crate::reconcile::wanted::WantedSet;
use crate::region::Region;
use crate::stats::{Counters, Stats};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Condvar, Mutex};
use crate::sys::cpu::CpuSet;
use job::{Job, Shown};
use lock::Locked;
use running::Running;

use crate::timeline;
pub use job::{Phase, Progress};

/// The configuration of an engine.
#[derive(Debug)]
pub struct Config {
    /// Bytes of the largest kernel entry; see [`Grid`].
    pub entry_size: u64,
    /// IOVAs at which entries are cut as well: multiples of the smallest IOMMU page, in any order.
    pub cuts: Vec<u64>,
    /// Maximum number of threads for a commit; 0: one per CPU that the process may use. There are never more than CPUs
    /// that they may run on, because more are slower.
    pub threads: usize,
    /// Whether there are `threads` threads, whatever the number of CPUs: for tests of concurrency on small machines.
    pub oversubscribe: bool,
    /// The CPUs that the library's threads run on; `None`: those of the process.
    pub cpu_set: Option<CpuSet>,
    /// Whether to request huge pages before memory is faulted in.
    pub huge_pages: bool,
    /// Maximum number of entries per unmap call; 0: adapted to the time that calls take. See [`Batch`].
    pub max_unmap_entries: u64,
    /// The destination of messages.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            entry_size: Grid::DEFAULT_ENTRY,
            cuts: Vec::new(),
            threads: 0,
            oversubscribe: false,
            cpu_set: None,
            huge_pages: true,
            max_unmap_entries: Batch::default().entries,
            log: Log::none(),
        }
    }
}

/// The results of one commit.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The calls that it made, and their effects.
    pub executed: Executed,
    /// Entries that were touched and stayed mapped.
    pub kept_entries: u64,
    /// Bytes of the kept entries.
    pub kept_bytes: u64,
    /// Bytes that were unmapped and mapped again identically, because another part of their entry was unmapped.
    pub remapped_bytes: u64,
    /// Wall time.
    pub duration: Duration,
}

/// The settings and the current state of an engine.
#[derive(Clone, Debug)]
pub struct Info {
    /// The backend's current limits.
    pub limits: Limits,
    /// The current memlock usage and limit.
    pub memlock: Memlock,
    /// Bytes of the largest entry.
    pub entry_size: u64,
    /// Maximum size of one unmap call.
    pub batch: Batch,
    /// Maximum number of threads for a commit.
    pub threads: usize,
    /// Whether these threads map and unmap concurrently, or only fault memory in.
    pub parallel: bool,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    /// Whether the engine is poisoned.
    pub poisoned: bool,
    /// Entries that are mapped although they are not wanted as a whole, because they could not be unmapped.
    pub leftover_entries: u64,
    /// Bytes of RAM that are wanted and not mapped, because they could not be mapped again after a failure.
    pub missing_bytes: u64,
}

#[derive(Debug)]
struct State {
    /// The limits as last read, except that `entries` is the total that the container can hold.
    limits: Limits,
    wanted: WantedSet,
    objects: Objects,
    table: MapTable,
    /// RAM that is wanted and could not be mapped again after a failure, until a commit that touches it.
    missing: Vec<IovaRange>,
    /// Whether an answer of the kernel has contradicted the table.
    contradicted: bool,
    /// Whether the engine is closed, or about to be.
    closed: bool,
    /// Whether everything was unmapped that could be when it was closed.
    emptied: bool,
    /// Whether the entries are handed over to another process.
    suspended: bool,
    /// Dirty pages that were not reported yet; `None` while tracking is off.
    dirty: Option<DirtyPages>,
    /// The thread that has a transaction open.
    owner: Option<ThreadId>,
    /// The commit that runs without the lock, if there is one.
    running: Option<Running>,
    /// Wanted, not mapped, and left to the job.
    backlog: Backlog,
    job: Job,
    /// The number of calls that wait for `running` to end. The job gives way to them.
    waiting: usize,
    /// The number of calls that wait for the job.
    watching: usize,
    /// The number of calls that wait for the end of a thread that has no job any more.
    joining: usize,
    logged: counters::Logged,
    poison: Option<String>,
}

impl State {
    /// Closes the objects that no longer belong to a wanted region.
    fn forget_objects(&mut self) {
        let Self { objects, wanted, .. } = self;
        objects.retain(|backing| wanted.names(backing));
    }
}

/// Owns the mappings of one container. Any thread may call any method. While a thread has a transaction open, calls of
/// other threads that would change something are refused. While a commit faults memory in and maps it, calls that read
/// the state return what is done so far, and calls that map or unmap one entry elsewhere are made; all others wait.
#[derive(Debug)]
pub struct Engine {
    backend: Box<dyn Backend>,
    /// The smallest IOMMU page in bytes, as last read.
    page: AtomicU64,
    grid: Grid,
    batch: Batch,
    threads: usize,
    oversubscribe: bool,
    cpu_set: Option<CpuSet>,
    huge_pages: bool,
    /// How memory is faulted in; chosen when there is first something to map.
    method: OnceLock<Method>,
    log: Log,
    /// Whether it was logged why there are few threads.
    logged_limit: AtomicBool,
    state: Mutex<State>,
    /// Signalled when a commit that ran without the lock has ended, when a transaction of a caller has, and when the
    /// job has mapped something.
    changed: Condvar,
    job: Shown,
    /// Changed only while `state` is locked; reading them never waits for a commit.
    counters: Counters,
}

impl Engine {
    /// Creates an engine on an empty `backend`. Starts no threads.
    pub fn new(backend: Box<dyn Backend>, config: Config) -> Result<Self> {
        let refused = |text| Error::check(Errno::EINVAL, ErrorKind::Other(text)).of(Op::Open);
        let grid = Grid::new(config.entry_size)
            .ok_or_else(|| refused("the entry size must be a power of two of at least 2 MiB"))?;
        let batch = Batch { entries: config.max_unmap_entries, ..Batch::default() };
        let limits = backend.limits()?;
        let Config { cuts, threads, oversubscribe, cpu_set, huge_pages, log, .. } = config;
        let page = limits.page_sizes.smallest();
        if let Some(&value) = cuts.iter().find(|cut| *cut % page != 0) {
            return Err(Error::check(Errno::EINVAL, ErrorKind::Misaligned { value, page }).of(Op::Open));
        }
        let grid = grid.with_cuts(cuts);
        let (wanted, objects, table, missing, logged) = Default::default();
        let (contradicted, closed, emptied, suspended) = (false, false, false, false);
        let (backlog, job) = Default::default();
        let (dirty, owner, running, poison) = (None, None, None, None);
        let state = State {
            limits,
            wanted,
            objects,
            table,
            missing,
            contradicted,
            closed,
            emptied,
            suspended,
            dirty,
            owner,
            running,
            backlog,
            job,
            waiting: 0,
            watching: 0,
            joining: 0,
            logged,
            poison,
        };
        let (state, counters) = (Mutex::new(state), Counters::default());
        let logged_limit = AtomicBool::new(false);
        let method = OnceLock::new();
        let page = AtomicU64::new(page);
        Ok(Self {
            backend,
            page,
            grid,
            batch,
            threads,
            oversubscribe,
            cpu_set,
            huge_pages,
            method,
            log,
            logged_limit,
            state,
            changed: Condvar::new(),
            job: Shown::new(),
            counters,
        })
    }

    /// Opens a transaction of the calling thread: until [`Engine::commit`], its changes are only recorded, and changes
    /// of other threads are refused.
    pub fn begin(&self) -> Result<()> {
        let mut state = self.changing()?;
        if state.owner.is_some() {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }));
        }
        state.owner = Some(thread::current().id());
        Ok(())
    }

    /// Makes the kernel's mappings equal the wanted regions. If that fails, it restores the mappings from before,
    /// except what the transaction unmapped. The transaction is closed in both cases.
    pub fn commit(&self) -> Result<Outcome> {
        let _operation = timeline::operation("commit");
        let mut state = self.end_transaction()?;
        self.reconcile(&mut state)
    }

    /// Rolls the open transaction back.
    pub fn abort(&self) -> Result<()> {
        let mut state = self.end_transaction()?;
        state.wanted.roll_back();
        state.forget_objects();
        Ok(())
    }

    /// The smallest IOMMU page in bytes: every address and length must be a multiple of it. Never waits for a commit.
    pub fn page(&self) -> u64 {
        self.page.load(Ordering::Relaxed)
    }

    /// The totals so far. Never waits for a commit.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// The settings and the current state.
    pub fn info(&self) -> Info {
        let mut state = self.state();
        self.ask_limits(&mut state);
        let held = state.table.len();
        let entries = state.limits.entries.map(|entries| entries.saturating_sub(held));
        Info {
            limits: Limits { entries, ..state.limits.clone() },
            memlock: self.backend.memlock(),
            entry_size: self.grid.entry_size(),
            batch: self.batch,
            threads: self.thread_limit().threads,
            parallel: self.backend.capabilities().parallel,
            in_transaction: state.owner.is_some(),
            poisoned: state.poison.is_some(),
            leftover_entries: state.table.totals().leftovers,
            missing_bytes: state.missing.iter().fold(0, |sum, range| sum.saturating_add(range.length())),
        }
    }

    /// The wanted regions, ascending.
    pub fn regions(&self) -> Vec<Region> {
        self.state().wanted.iter().map(|wanted| wanted.region).collect()
    }

    /// The entries of the table, ascending.
    pub fn entries(&self) -> Vec<Entry> {
        self.state().table.iter().copied().collect()
    }

    /// The same, as `list` has them: there can be any number, so ENOMEM if the memory of the list cannot be allocated.
    pub fn list_entries<T>(&self, list: impl Fn(&Entry) -> T) -> Result<Vec<T>> {
        let state = self.state();
        let mut listed = Vec::new();
        let count = usize::try_from(state.table.len()).unwrap_or(usize::MAX);
        listed.try_reserve_exact(count).map_err(|_| memory::too_little())?;
        listed.extend(state.table.iter().map(list));
        Ok(listed)
    }

    /// Plans and executes what the open transaction touched.
    fn reconcile(&self, state: &mut Locked<'_>) -> Result<Outcome> {
        self.reconcile_or_leave(state, None)
    }

    /// The same. With `later`, what need not be mapped at once is not mapped, but added to `later`.
    fn reconcile_or_leave(
        &self,
        state: &mut Locked<'_>,
        later: Option<&mut Vec<IovaRange>>,
    ) -> Result<Outcome> {
        let mut scope = state.wanted.touched().to_vec();
        let outcome = self.reconcile_with_dirty(state, &mut scope, later)?;
        // After a failure, the caller can want the same memory there again, whose dirty pages nobody else knows.
        state.forget_dirty(&scope);
        Ok(outcome)
    }

    /// The same, but keeps dirty pages that are no longer wanted. `scope` is what the transaction touched; it is
    /// extended to everything that may have changed.
    fn reconcile_with_dirty(
        &self,
        state: &mut Locked<'_>,
        scope: &mut Vec<IovaRange>,
        later: Option<&mut Vec<IovaRange>>,
    ) -> Result<Outcome> {
        let start = Instant::now();
        state.forget_backlog();
        self.show_job(state);
        if state.watching > 0 {
            // What they wait for may not be left any more.
            self.changed.notify_all();
        }
        state.extend_scope(scope);
        if scope.is_empty() {
            state.wanted.commit();
            self.counters.empty_commits.add(1);
            return Ok(Outcome::default());
        }
        match self.attempt(state, scope, later) {
            Ok(outcome) => {
                state.wanted.commit();
                state.settle(scope, &[]);
                state.forget_objects();
                let outcome = Outcome { duration: start.elapsed(), ..outcome };
                self.record_commit(&outcome);
                self.record_state(state);
                Ok(outcome)
            }
            Err(error) => Err(self.fail(state, scope, error)),
        }
    }

    /// Tries once to make the kernel's mappings equal the wanted regions. `scope` is extended to everything that may
    /// have changed.
    fn attempt(
        &self,
        state: &mut Locked<'_>,
        scope: &mut Vec<IovaRange>,
        later: Option<&mut Vec<IovaRange>>,
    ) -> Result<Outcome> {
        let mut plan = self.plan_or_ask_limits(state, scope)?;
        memory::check_for(plan.maps.len() as u64)?;
        if let Some(later) = later {
            self.check_all(&plan)?;
            *later = background::defer(&mut plan, &state.missing);
        }
        let Plan { kept_entries, kept_bytes, remapped_bytes, .. } = plan;
        let options = PopulateOptions {
            threads: self.threads_for(&plan),
            method: self.method(&plan),
            cpus: self.cpu_set.as_ref(),
            huge_pages: self.huge_pages,
            chunk: populate::CHUNK_BYTES,
            control: None,
        };
        let executed = self.carry_out(state, &plan, options)?;
        Ok(Outcome { executed, kept_entries, kept_bytes, remapped_bytes, duration: Duration::ZERO })
    }

    /// Executes a plan, and records what that did.
    fn carry_out(
        &self,
        state: &mut Locked<'_>,
        plan: &Plan,
        options: PopulateOptions<'_>,
    ) -> Result<Executed> {
        let (run, executed) = self.execute(state, plan, options);
        self.record_executed(state, &executed);
        self.log_executed(state, &executed);
        for entry in &executed.devices {
            state.wanted.reclassify_as_device(entry.range);
        }
        match run {
            Ok(()) => Ok(executed),
            Err(error) => {
                let unpins = plan.unmaps.iter().fold(0u64, |sum, unmap| sum.saturating_add(unmap.ram_bytes));
                Err(self.explained(state, error, &plan.maps, unpins, &executed))
            }
        }
    }

    /// Plans what the transaction touched, and sets `scope` to the plan's.
    fn plan_or_ask_limits(&self, state: &mut State, scope: &mut Vec<IovaRange>) -> Result<Plan> {
        let plan = self.asking_limits(state, |state| self.plan(state, scope))?;
        scope.clone_from(&plan.scope);
        Ok(plan)
    }

    /// Makes a plan. If the limits would refuse it, reads them again first.
    fn asking_limits(&self, state: &mut State, make: impl Fn(&State) -> Result<Plan>) -> Result<Plan> {
        let _span = timeline::span("plan");
        let start = Instant::now();
        let mut plan = make(state);
        if let Err(Error { kind: ErrorKind::Entries(_) | ErrorKind::OutsideIova { .. }, .. }) = &plan {
            // Groups can join and leave the container, and an administrator can raise a limit.
            self.ask_limits(state);
            plan = make(state);
        }
        self.counters.plan_ns.add(counters::nanoseconds(start.elapsed()));
        self.counters.preflight_refusals.add(u64::from(plan.is_err()));
        plan
    }

    /// Plans what the transaction touched, and checks the plan against the limits.
    fn plan(&self, state: &State, scope: &[IovaRange]) -> Result<Plan> {
        let plan = |scope: &[IovaRange]| self.plan_keeping(state, scope, |_, whole| whole);
        memory::check_for_plan(self.planned(state, scope))?;
        let own = plan(scope)?;
        let mapped = own.maps.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
        if mapped > own.remapped_bytes && state.backlog.iter().any(|range| !scope.contains(&range)) {
            // What is left to the job needs entries and locked memory, too.
            let all: Vec<IovaRange> = scope.iter().copied().chain(state.backlog.iter()).collect();
            plan(&all)?;
        }
        Ok(own)
    }

    /// A plan for `scope` that is within the limits. See [`plan::plan_keeping`].
    fn plan_keeping(
        &self,
        state: &State,
        scope: &[IovaRange],
        keeps: impl Fn(&Entry, bool) -> bool,
    ) -> Result<Plan> {
        let State { wanted, table, limits, .. } = state;
        let (gaps, capacity) = (self.gaps(state), limits.entries);
        let plan = plan::plan_keeping(wanted, table, scope, &self.grid, gaps, capacity, keeps)
            .map_err(|room| state.no_room(room))?;
        preflight::check(&plan, limits, &*self.backend)?;
        Ok(plan)
    }

    /// The number of entries that a plan for `scope` can map, or more.
    fn planned(&self, state: &State, scope: &[IovaRange]) -> u64 {
        // No entry is smaller than a page, so what is wanted in a few pages need not be looked up.
        let pages =
            scope.iter().fold(0u64, |pages, range| pages.saturating_add(range.length() / self.page()));
        if pages <= memory::FEW {
            return pages;
        }
        let in_range = |range: &IovaRange| {
            let pieces = state.wanted.overlapping(*range).filter_map(|wanted| {
                let shared = wanted.region.range.intersection(*range)?;
                Some(if wanted.region.exact { 1 } else { self.grid.count(shared) })
            });
            pieces.fold(0, u64::saturating_add)
        };
        let count = |ranges: &[IovaRange]| ranges.iter().map(in_range).fold(0, u64::saturating_add);
        let planned = count(scope);
        if planned <= memory::FEW {
            return planned;
        }
        // What was touched several times is planned once, and on a coarser grid if it is too much.
        let merged = plan::merged(scope.to_vec());
        let most = state.limits.entries.unwrap_or(u64::MAX).min(plan::MOST_ENTRIES);
        count(&merged).min(most.saturating_add(scope.len() as u64))
    }

    /// Reads the limits again. If that fails they stay as they were; the kernel enforces them anyway.
    fn ask_limits(&self, state: &mut State) {
        if let Ok(limits) = self.backend.limits() {
            let entries = limits.entries.map(|left| left.saturating_add(state.table.len()));
            // An IOAS without a device has no restrictions yet. A container has an IOMMU from the beginning, and
            // bitmaps of dirty pages depend on its page.
            if self.backend.dirty_tracking().is_none() {
                self.page.store(limits.page_sizes.smallest(), Ordering::Relaxed);
            }
            state.limits = Limits { entries, ..limits };
        }
    }

    fn executor<'a>(&'a self, state: &'a mut State, threads: usize) -> Executor<'a> {
        let State { table, wanted, objects, dirty, backlog, job, .. } = state;
        Executor {
            backend: &*self.backend,
            table,
            wanted,
            objects,
            batch: self.batch(dirty.is_some()),
            dirty: dirty.as_mut(),
            threads,
            cpus: self.cpu_set.as_ref(),
            backlog,
            job_mapped: &mut job.mapped,
            of_job: false,
            executed: Executed::default(),
        }
    }

    /// How memory is faulted in on this host. The first plan that maps anything asks the kernel.
    fn method(&self, plan: &Plan) -> Method {
        let fault_in = self.backend.capabilities().populate != PopulatePolicy::Never;
        if !fault_in || plan.maps.is_empty() {
            return Method::Maps;
        }
        *self.method.get_or_init(|| {
            let choice = Choice::of_this_host();
            if let Some(text) = choice.explanation() {
                self.log.write(Level::Info, format_args!("{text}"));
            }
            if let Some(text) = populate::method::lost() {
                self.log.write(Level::Info, format_args!("{text}"));
            }
            choice.method
        })
    }

    /// Which gaps unmap calls may cover. A bitmap of dirty pages covers gaps too, so there are none then.
    fn gaps(&self, state: &State) -> Gaps {
        match self.backend.capabilities().exclusive {
            _ if state.dirty.is_some() => Gaps::None,
            true => Gaps::All,
            false => Gaps::Unmapped,
        }
    }

    /// The maximum number of threads for `plan`.
    fn threads_for(&self, plan: &Plan) -> usize {
        // Counting the CPUs costs more than a small plan, because affinity and cgroup are read each time.
        if plan.bytes() < populate::MIN_PARALLEL_BYTES {
            return 1;
        }
        let limit = self.thread_limit();
        self.log_limit(limit);
        limit.threads
    }

    fn thread_limit(&self) -> ThreadLimit {
        let limit = ThreadLimit::new(self.threads, self.cpu_set.as_ref());
        match self.threads {
            threads if self.oversubscribe && threads > 0 => ThreadLimit { threads, ..limit },
            _ => limit,
        }
    }
}
