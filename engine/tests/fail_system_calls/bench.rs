//! An engine on the model, and what must hold after each of its calls.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::{assert_table, range, threads};
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::Result;
use vfio_fast_engine::log::Log;
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, CpuSet, Engine};
use vfio_fast_testing as common;

use super::calls::{FILES, armed, failed, has_failed, told};
use super::memory::{BYTES, PRIVATE, region};

/// An engine on the model, and what it has logged.
pub struct Bench {
    pub engine: Arc<Engine>,
    pub sim: Sim,
    pub logged: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    pub fn new(config: SimConfig, cpu_set: Option<CpuSet>) -> Self {
        let (sim, logged) = (Sim::new(config), Arc::new(Mutex::new(Vec::new())));
        let log = Log::to({
            let logged = Arc::clone(&logged);
            move |_, text| logged.lock().unwrap().push(text.to_owned())
        });
        let config =
            Config { entry_size: BYTES, threads: 3, oversubscribe: true, cpu_set, log, ..Config::default() };
        let engine = armed(|| Engine::new(Box::new(sim.clone()), config)).expect("needs no system call");
        Self { engine: Arc::new(engine), sim, logged }
    }

    pub fn of(rules: Rules, populate: PopulatePolicy) -> Self {
        Self::new(SimConfig { rules, populate, ..SimConfig::default() }, None)
    }

    pub fn has_logged(&self, text: &str) -> bool {
        self.logged.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// Fails unless exactly these regions are mapped, and nothing of a commit is left.
    #[track_caller]
    pub fn assert_mapped(&self, regions: &[Region]) {
        assert_table(&self.engine, &self.sim);
        let mut mapped: Vec<(u64, u64, u64)> = Vec::new();
        for mapping in self.sim.mappings() {
            let (start, hva, end) =
                (mapping.range.start(), mapping.hva.raw(), mapping.range.last().wrapping_add(1));
            match mapped.last_mut() {
                Some(last) if last.1 == start && last.2 + (start - last.0) == hva => last.1 = end,
                _ => mapped.push((start, end, hva)),
            }
        }
        let wanted: Vec<(u64, u64, u64)> = regions
            .iter()
            .map(|region| (region.range.start(), region.range.last() + 1, region.hva.raw()))
            .collect();
        assert_eq!(mapped, wanted, "{:?}", failed());
        assert_eq!(self.engine.regions().len(), regions.len());
        assert_eq!(threads::left(), Vec::<String>::new());
    }

    /// Fails unless a call returned an error only for a system call that it cannot do without, and named its errno.
    #[track_caller]
    pub fn assert_answer<T>(&self, answer: &Result<T>, needs: &[libc::c_long]) {
        let Err(error) = answer else { return };
        let (number, errno) = failed().unwrap_or_else(|| panic!("nothing failed: {error}"));
        assert!(needs.contains(&number), "system call {number} only helps: {error}");
        assert!(!error.to_string().contains("is not open"), "{error}");
        assert!(error.errno == errno && error.to_string().contains(&errno.to_string()), "{errno}: {error}");
    }

    /// Maps regions in one commit, which needs no system call.
    pub fn commit(&self, regions: &[Region]) {
        let answer = armed(|| {
            self.engine.begin()?;
            regions.iter().try_for_each(|region| self.engine.map_region(*region))?;
            self.engine.commit()
        });
        self.assert_answer(&answer, &[]);
        self.assert_mapped(regions);
        self.assert_log();
    }

    /// Fails if the log lacks what the documentation promises.
    pub fn assert_log(&self) {
        let lost = told().lost.load(Ordering::Relaxed);
        for (bit, file) in FILES.iter().enumerate().filter(|(bit, _)| lost >> bit & 1 == 1) {
            assert!(self.has_logged(file.to_str().unwrap()), "{bit}: {:?}", self.logged);
        }
        if has_failed(&[libc::SYS_clone, libc::SYS_clone3]) {
            assert!(self.has_logged("threads could not be started"), "{:?}", self.logged);
            assert!(self.engine.stats().thread_start_failures > 0);
        }
    }

    /// Uses the engine once more, and closes it.
    pub fn close(self) {
        let again = region(1 << 40, PRIVATE);
        self.engine.map_region(again).unwrap();
        self.engine.unmap(range(0, 1 << 41)).unwrap();
        self.assert_mapped(&[]);
        self.engine.map_region(again).unwrap();
        armed(|| self.engine.close()).expect("needs no system call");
        assert!(self.sim.mappings().is_empty() && self.sim.locked() == 0);
    }
}
