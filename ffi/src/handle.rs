//! The handle: a boxed engine.

#![allow(unsafe_code)] // reads the caller's configuration

use std::path::Path;
use std::sync::Arc;

use vfio_fast_engine::backend::Backend;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::log::Log;
use vfio_fast_engine::{Config, CpuSet, Descriptor, Engine, Errno, timeline};

use crate::abi::{
    VFIO_FAST_BACKEND_IOMMUFD, VFIO_FAST_BACKEND_SIM, VFIO_FAST_BACKEND_TYPE1, VFIO_FAST_CONFIG_NO_HUGEPAGE,
    VFIO_FAST_LOG_DEBUG, vfio_fast_config, vfio_fast_sim_config,
};
use crate::array;
use crate::convert;
use crate::failure::{Failure, Result};
use crate::log::Sink;
use crate::panic::caught;
use crate::sized;

/// A handle. Its contents are private to the library.
#[expect(non_camel_case_types, reason = "the C name")]
pub struct vfio_fast {
    pub(crate) engine: Arc<Engine>,
    /// VFIO_FAST_BACKEND_*
    pub(crate) backend: u32,
}

/// A copy of a configuration and of what it points to.
pub(crate) struct Settings<'a> {
    pub(crate) config: vfio_fast_config,
    pub(crate) sim: Option<vfio_fast_sim_config>,
    pub(crate) cuts: Vec<u64>,
    pub(crate) cpu_set: Option<CpuSet>,
    pub(crate) sink: Option<Sink>,
    /// config.container_fd and config.iommufd_fd
    container: Descriptor<'a>,
    iommufd: Descriptor<'a>,
}

impl Settings<'_> {
    /// Copies a caller's configuration.
    ///
    /// # Safety
    /// `config` and, in it, `sim`, `cuts` and `cpu_set` are NULL or point to as many bytes as their sizes say, unchanged
    /// during the call. As long as a handle opened with the result exists, `log` can be called with `log_opaque` on any thread
    /// that calls into the handle. As long as the result exists, `container_fd` and `iommufd_fd` are not open, or the
    /// caller's and stay open.
    pub(crate) unsafe fn read(config: *const vfio_fast_config) -> Result<Self> {
        // SAFETY: config is as this function's contract says.
        let config = unsafe { sized::read(config) }?;
        // SAFETY: config.sim is as this function's contract says, and not NULL.
        let sim = (!config.sim.is_null()).then(|| unsafe { sized::read(config.sim) }).transpose()?;
        // SAFETY: config.log is as this function's contract says.
        let sink = config.log.map(|log| unsafe { Sink::new(log, config.log_opaque) });
        // SAFETY: config.cuts is as this function's contract says.
        let cuts =
            unsafe { array::numbers(config.cuts, config.cut_count.into(), "struct vfio_fast_config: cuts") }?;
        // SAFETY: config.cpu_set is as this function's contract says.
        let set = unsafe {
            array::bytes(config.cpu_set.cast(), config.cpu_set_size, "struct vfio_fast_config: cpu_set")
        }?;
        let cpu_set = (!config.cpu_set.is_null()).then(|| convert::cpu_set(set)).transpose()?;
        // SAFETY: config.container_fd is as this function's contract says.
        let container = unsafe { Descriptor::from_raw(config.container_fd) };
        // SAFETY: config.iommufd_fd is as this function's contract says.
        let iommufd = unsafe { Descriptor::from_raw(config.iommufd_fd) };
        Ok(Self { config, sim, cuts: cuts.to_vec(), cpu_set, sink, container, iommufd })
    }
}

impl vfio_fast {
    /// Opens a handle.
    pub(crate) fn open(settings: Settings<'_>) -> Result<Self> {
        let Settings { config, sim, cuts, cpu_set, sink, container, iommufd } = settings;
        convert::known("struct vfio_fast_config: flags", config.flags, VFIO_FAST_CONFIG_NO_HUGEPAGE)?;
        if config.log_level > VFIO_FAST_LOG_DEBUG {
            return Err(Failure::unknown("struct vfio_fast_config: log_level", config.log_level));
        }
        let log = log(sink, config.log_level);
        record_timeline(&log);
        let mut engine = Config {
            cuts,
            threads: config.threads as usize,
            cpu_set,
            huge_pages: config.flags & VFIO_FAST_CONFIG_NO_HUGEPAGE == 0,
            max_unmap_entries: config.max_unmap_entries.into(),
            log,
            ..Config::default()
        };
        if config.entry_size != 0 {
            engine.entry_size = config.entry_size;
        }
        let engine = Engine::new(backend(&config, container, iommufd, sim)?, engine)?;
        Ok(Self { engine: Arc::new(engine), backend: config.backend })
    }

    /// Unmaps everything that is still mapped and frees the handle, even if unmapping fails.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.engine.close()?)
    }

    /// Poisons the engine: after a panic with this message its state is not reliable.
    pub(crate) fn poison(&self, panic: &str) {
        // If this panics too, the first panic is still the one that is reported.
        let _ = caught(|| self.engine.poison(panic));
    }
}

/// Starts the record of what the library does when, if the environment names a file for it.
fn record_timeline(log: &Log) {
    // SAFETY: the call has no pointer arguments.
    let is_privileged = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    // Who starts a program with more rights than their own does not choose the files that it writes.
    if let Some(path) = std::env::var_os(timeline::VARIABLE).filter(|path| !path.is_empty() && !is_privileged)
    {
        timeline::start(Path::new(&path), log);
    }
}

fn backend(
    config: &vfio_fast_config,
    container: Descriptor<'_>,
    iommufd: Descriptor<'_>,
    sim: Option<vfio_fast_sim_config>,
) -> Result<Box<dyn Backend>> {
    match (config.backend, sim) {
        (VFIO_FAST_BACKEND_SIM, sim) => {
            Ok(Box::new(Sim::new(sim.map(sim_config).transpose()?.unwrap_or_default())))
        }
        (VFIO_FAST_BACKEND_TYPE1, None) => Ok(Box::new(Type1::open(container)?)),
        (VFIO_FAST_BACKEND_IOMMUFD, None) => Ok(Box::new(Iommufd::open(iommufd, config.ioas_id)?)),
        (VFIO_FAST_BACKEND_TYPE1 | VFIO_FAST_BACKEND_IOMMUFD, Some(_)) => Err(Failure::check(
            libc::EINVAL,
            "struct vfio_fast_config: sim is set, but the backend is not VFIO_FAST_BACKEND_SIM".to_owned(),
        )),
        (unknown, _) => Err(Failure::unknown("struct vfio_fast_config: backend", unknown)),
    }
}

fn sim_config(sim: vfio_fast_sim_config) -> Result<SimConfig> {
    let iova_ranges = match sim.iova_bits {
        0 => Vec::new(),
        33..=64 => convert::around_interrupts(sim.iova_bits),
        unknown => return Err(Failure::unknown("struct vfio_fast_sim_config: iova_bits", unknown)),
    };
    let rules = match sim.backend {
        0 | VFIO_FAST_BACKEND_TYPE1 => Rules::Type1,
        VFIO_FAST_BACKEND_IOMMUFD => Rules::Iommufd,
        unknown => return Err(Failure::unknown("struct vfio_fast_sim_config: backend", unknown)),
    };
    let default = SimConfig::default();
    let fail_errno = match i32::try_from(sim.fail_errno) {
        Ok(errno) if errno > 0 => Errno(errno),
        _ => Errno::EIO,
    };
    Ok(SimConfig {
        rules,
        failures: (sim.fail_nth != 0).then_some((sim.fail_nth, fail_errno)).into_iter().collect(),
        panic_nth: (sim.panic_nth != 0).then_some(sim.panic_nth),
        dma_avail: if sim.dma_avail == 0 { default.dma_avail } else { sim.dma_avail },
        iova_ranges,
        memlock_limit: (sim.memlock_limit != 0).then_some(sim.memlock_limit),
        ..default
    })
}

/// The engine's log. Drops messages more verbose than `max_level`.
fn log(sink: Option<Sink>, max_level: u32) -> Log {
    match sink {
        Some(sink) if max_level != 0 => Log::to(move |level, message| {
            let level = convert::level(level);
            if level <= max_level {
                sink.deliver(level, message);
            }
        }),
        _ => Log::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle on the model, with these flags and this level.
    fn open(flags: u32, log_level: u32) -> Result<vfio_fast> {
        // SAFETY: all fields of the struct may be zero.
        let zeros: vfio_fast_config = unsafe { std::mem::zeroed() };
        let config = vfio_fast_config {
            size: size_of::<vfio_fast_config>() as u32,
            flags,
            log_level,
            backend: VFIO_FAST_BACKEND_SIM,
            container_fd: -1,
            iommufd_fd: -1,
            ..zeros
        };
        // SAFETY: the configuration points to nothing, and names no open descriptor.
        vfio_fast::open(unsafe { Settings::read(&raw const config) }?)
    }

    #[test]
    fn huge_pages_are_requested_unless_the_caller_says_otherwise() {
        for (flags, huge_pages) in [(0, true), (VFIO_FAST_CONFIG_NO_HUGEPAGE, false)] {
            let handle = open(flags, 0).unwrap();
            let text = format!("{:?}", handle.engine);
            assert!(text.contains(&format!("huge_pages: {huge_pages}")), "{text}");
        }
    }

    #[test]
    fn the_most_verbose_level_is_the_last_one() {
        assert!(open(0, VFIO_FAST_LOG_DEBUG).is_ok());
        assert!(open(0, VFIO_FAST_LOG_DEBUG + 1).is_err());
    }
}
