//! A C program that does whatever the documentation permits.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use vfio_fast::abi::*;
use vfio_fast::exports::background::*;
use vfio_fast::exports::dirty::*;
use vfio_fast::exports::discard::*;
use vfio_fast::exports::failure::*;
use vfio_fast::exports::handover::*;
use vfio_fast::exports::pages::*;
use vfio_fast::exports::region::*;
use vfio_fast::exports::remap::*;
use vfio_fast::exports::report::*;
use vfio_fast::exports::retry::*;
use vfio_fast::exports::transaction::*;
use vfio_fast::exports::{vfio_fast_close, vfio_fast_open};

use super::edge::{Edge, bytes_of};
use super::{Array, Dirty, Operation, Pages, Region, Setup, Size};

/// Calls a function of the interface.
macro_rules! call {
    ($function:ident($($argument:expr),*)) => {
        // SAFETY: the handle is NULL or open and used by this thread alone. Each other pointer is NULL or points to the
        // end of a mapping, where there are as many bytes as the size or the count says. Nothing accesses the memory
        // at the host addresses, because the backend is the model, or has no container.
        unsafe { $function($($argument),*) }
    };
}

/// What an output has before the call.
const BEFORE: u8 = 0xee;
/// No struct had fewer bytes in its first release.
const SMALLEST: u32 = 24;
/// Where regions may be large, the model has few entries, or this many bytes are the limit.
const LARGE: u64 = 8 << 30;
/// The same while dirty pages are tracked.
const TRACKED: u64 = 64 << 20;

/// The handle, which is opaque.
type Handle = *mut c_void;

pub(super) struct Caller {
    vf: Handle,
    /// For the log function.
    current: Box<AtomicPtr<c_void>>,
    edges: [Edge; 5],
    memory: Edge,
    file: File,
    setup: Option<Setup>,
    /// Whether the size rule refuses a struct of this operation.
    refused: Cell<bool>,
}

impl Caller {
    pub(super) fn new() -> Self {
        Self {
            vf: ptr::null_mut(),
            current: Box::default(),
            edges: std::array::from_fn(|_| Edge::new()),
            memory: Edge::new(),
            file: File::open("/dev/null").expect("every system has it"),
            setup: None,
            refused: Cell::new(false),
        }
    }

    /// Puts a struct of that size at the edge. Returns also how many bytes of it there are.
    fn place<T: Copy>(&self, edge: usize, value: &T, size: Size) -> (*mut T, usize) {
        let own = size_of::<T>() as u32;
        let (stated, tail) = match size {
            Size::Own => (own, 0),
            Size::Less(bytes) => (own.saturating_sub(bytes.into()), 0),
            Size::More { bytes, other_than_zero } => (own + u32::from(bytes), u8::from(other_than_zero)),
            Size::Any(size) => (size, 0),
        };
        let unknown = tail != 0 && stated > own;
        self.refused.set(self.refused.get() || unknown || !(SMALLEST..=4096).contains(&stated));
        // The size is the first field, and there to be read, whatever it is.
        let room = if stated > 4096 { 4 } else { stated.max(4) as usize };
        let mut bytes = bytes_of(value);
        bytes.resize(room, 0);
        if room > own as usize {
            *bytes.last_mut().expect("it is longer") = tail;
        }
        bytes[..4].copy_from_slice(&stated.to_ne_bytes());
        (self.edges[edge].place(&bytes), room)
    }

    /// An array of numbers at the edge, and its length for the library.
    fn array<T: Copy>(&self, edge: usize, values: &[T], wrong: Array) -> (*mut T, u64) {
        let bytes: Vec<u8> = values.iter().flat_map(bytes_of).collect();
        let at: *mut T = self.edges[edge].place(&bytes);
        match wrong {
            Array::Nothing => (at, values.len() as u64),
            Array::Null => (ptr::null_mut(), values.len() as u64),
            Array::Misaligned => (at.wrapping_byte_sub(1), values.len() as u64),
            Array::LargerThanMemory(number) => (at, number.get().max(1 << 60)),
        }
    }

    /// Calls a function with an output struct, which may be NULL. It has to be written on success, as the size rule
    /// says, and left alone otherwise.
    fn output<T: Copy>(&self, value: &T, size: Option<Size>, call: impl FnOnce(*mut T) -> c_int) -> c_int {
        let Some(size) = size else { return self.result(call(ptr::null_mut())) };
        let refused = self.refused.get();
        let (at, room) = self.place(1, value, size);
        if let Size::More { .. } = size {
            // What an output has there is overwritten.
            self.refused.set(refused);
        }
        let before = self.edges[1].bytes(room);
        let result = self.result(call(at));
        let after = self.edges[1].bytes(room);
        assert_eq!(before[..4], after[..4], "the size was changed");
        if result != 0 {
            assert_eq!(before, after, "an output was written though the call has failed");
        } else {
            let known = size_of::<T>().min(room);
            assert!(after[known..].iter().all(|byte| *byte == 0), "unknown fields are not zero");
        }
        result
    }

    /// Calls a function that writes a number if it succeeds.
    fn number(&self, call: impl FnOnce(*mut u64) -> c_int) -> c_int {
        let at = self.edges[4].place(&[BEFORE; 8]);
        let result = self.result(call(at));
        assert!(
            result == 0 || self.edges[4].bytes(8) == [BEFORE; 8],
            "a number was written by a failed call"
        );
        result
    }

    /// Checks a result: 0 or a negative errno, and none that a bug returns.
    fn result(&self, result: c_int) -> c_int {
        assert!((-4095..=0).contains(&result), "{result} is no errno");
        let may_be_poisoned = self.setup.is_some_and(|setup| setup.fail_nth != 0);
        assert!(result != -libc::ENOTRECOVERABLE || may_be_poisoned, "a bug");
        result
    }

    /// A length that the model can map within the time of a test.
    fn length(&self, length: u64) -> u64 {
        let Some(setup) = &self.setup else { return length };
        let max = if setup.tracks { TRACKED } else { LARGE };
        let few = !setup.iommufd && !setup.without_sim && !setup.tracks;
        if few { length } else { length.min(max + (length & 1)) }
    }

    pub(super) fn execute(&mut self, operation: &Operation) {
        let before = self.entries();
        self.refused.set(false);
        let result = self.make(operation);
        assert!(result != 0 || !self.refused.get(), "a struct of a wrong size was accepted");
        // A commit that fails does not take back what it has unmapped.
        use Operation::{Adopt, Close, Commit, Open};
        let changes = matches!(operation, Open(_) | Close | Commit { .. } | Adopt { .. });
        let arguments = [-libc::EINVAL, -libc::E2BIG, -libc::EOPNOTSUPP, -libc::EEXIST].contains(&result);
        let fails = self.setup.is_some_and(|setup| setup.fail_nth != 0);
        if let (false, true, false, Some(before), Some(after)) =
            (changes, arguments, fails, before, self.entries())
        {
            assert_eq!(before, after, "a call that was refused has changed something");
        }
        self.is_consistent();
    }

    fn make(&mut self, operation: &Operation) -> c_int {
        let vf = self.vf;
        match operation {
            Operation::Open(setup) => self.open(*setup),
            Operation::Close => self.close(),
            Operation::Begin => self.result(call!(vfio_fast_begin(vf.cast()))),
            Operation::Commit { outcome, background } => {
                self.output(&outcome_before(), *outcome, |at| match background {
                    true => call!(vfio_fast_commit_background(vf.cast(), at)),
                    false => call!(vfio_fast_commit(vf.cast(), at)),
                })
            }
            Operation::Check => self.result(call!(vfio_fast_check(vf.cast()))),
            Operation::Abort => self.result(call!(vfio_fast_abort(vf.cast()))),
            Operation::Map(region) => self.map(region),
            Operation::Unmap(range) => {
                let range_ = vfio_fast_range {
                    size: 0,
                    flags: few(range.flags, 0),
                    iova: range.iova.get(),
                    length: range.length.get(),
                };
                let (at, _) = self.place(0, &range_, range.size);
                self.number(|bytes| call!(vfio_fast_unmap(vf.cast(), at, bytes)))
            }
            Operation::MapPages(pages) => {
                let at = self.pages(pages);
                self.result(call!(vfio_fast_map_pages(vf.cast(), at)))
            }
            Operation::UnmapPages(pages) => {
                let at = self.pages(pages);
                self.number(|bytes| call!(vfio_fast_unmap_pages(vf.cast(), at, bytes)))
            }
            Operation::Track(on) => {
                let tracks = self.setup.is_some_and(|setup| setup.tracks);
                let on = u32::from(on % 3);
                self.result(call!(vfio_fast_track_dirty(vf.cast(), if tracks || on != 1 { on } else { 2 })))
            }
            Operation::ReadDirty(dirty) => {
                let at = self.dirty(dirty);
                self.result(call!(vfio_fast_read_dirty(vf.cast(), at)))
            }
            Operation::UnmapDirty(dirty) => {
                let at = self.dirty(dirty);
                self.number(|bytes| call!(vfio_fast_unmap_dirty(vf.cast(), at, bytes)))
            }
            Operation::Discard { size, flags, offset, length } => {
                let (start, room) = self.memory.range();
                let offset = u64::from(*offset) % room;
                let hva = start + offset;
                let length = length.get();
                // Only memory of this program, or a range that ends nowhere.
                let length =
                    if hva.checked_add(length).is_some() { length.min(room - offset) } else { length };
                let memory =
                    vfio_fast_memory { size: 0, flags: few(*flags, VFIO_FAST_MEMORY_SHARED), hva, length };
                let (at, _) = self.place(0, &memory, *size);
                self.result(call!(vfio_fast_discard(vf.cast(), at)))
            }
            Operation::Remap(range) => {
                let (hva, length) = (range.iova.hva(), range.length.get());
                let memory = vfio_fast_memory { size: 0, flags: few(range.flags, 0), hva, length };
                let (at, _) = self.place(0, &memory, range.size);
                self.number(|bytes| call!(vfio_fast_remap(vf.cast(), at, bytes)))
            }
            Operation::Retry => self.number(|bytes| call!(vfio_fast_retry_unmap(vf.cast(), bytes))),
            Operation::Suspend => self.result(call!(vfio_fast_suspend(vf.cast()))),
            Operation::Resume => self.result(call!(vfio_fast_resume(vf.cast()))),
            Operation::Entries { room, null } => {
                let list = vec![vfio_fast_entry::default(); usize::from(*room)];
                let (list, room) = self.array(0, &list, if *null { Array::Null } else { Array::Nothing });
                let count = self.edges[4].place(&room.to_ne_bytes());
                self.result(call!(vfio_fast_get_entries(vf.cast(), list, count)))
            }
            Operation::Adopt { own, more, outcome, array } => {
                let mut list = if *own { self.entries().unwrap_or_default() } else { Vec::new() };
                list.extend(more.iter().map(|(iova, length, flags)| vfio_fast_entry {
                    iova: iova.get(),
                    length: self.length(length.get()),
                    flags: few(*flags, VFIO_FAST_REGION_WRITE).into(),
                }));
                list.truncate(200);
                let (list, count) = self.array(0, &list, *array);
                self.output(&outcome_before(), *outcome, |at| {
                    call!(vfio_fast_adopt(vf.cast(), list, count, at))
                })
            }
            Operation::Stats(size) => self
                .output(&filled::<vfio_fast_stats>(), *size, |at| call!(vfio_fast_get_stats(vf.cast(), at))),
            Operation::Info(size) => {
                self.output(&filled::<vfio_fast_info>(), *size, |at| call!(vfio_fast_get_info(vf.cast(), at)))
            }
            Operation::Progress(size) => self.output(&filled::<vfio_fast_progress>(), *size, |at| {
                call!(vfio_fast_get_progress(vf.cast(), at))
            }),
            Operation::LastFailure(size) => {
                self.output(&filled::<vfio_fast_failure>(), *size, |at| call!(vfio_fast_last_failure(at)))
            }
            Operation::LastError => {
                let text = vfio_fast_last_error();
                // SAFETY: a text of the library, which stays until the next call.
                assert!(text.is_null() || unsafe { CStr::from_ptr(text) }.to_str().is_ok());
                0
            }
            Operation::Wait { iova, length, patiently } => {
                let timeout = if *patiently { u64::MAX } else { 0 };
                self.result(call!(vfio_fast_wait(vf.cast(), iova.get(), length.get(), timeout)))
            }
            Operation::CompletionFd { null } => {
                let at = if *null { ptr::null_mut() } else { self.edges[4].place(&[BEFORE; 4]) };
                self.result(call!(vfio_fast_completion_fd(vf.cast(), at)))
            }
            Operation::Cancel(flags) => {
                self.result(call!(vfio_fast_cancel(vf.cast(), few(*flags, VFIO_FAST_CANCEL_UNMAP))))
            }
        }
    }

    fn open(&mut self, setup: Setup) -> c_int {
        self.close();
        let Setup { iommufd, without_sim, entry_size, cuts, .. } = setup;
        let sim = vfio_fast_sim_config {
            size: 0,
            fail_errno: setup.fail_errno.into(),
            fail_nth: setup.fail_nth.into(),
            panic_nth: 0,
            dma_avail: u64::from(setup.dma_avail % 64) + 1,
            memlock_limit: setup.memlock.map_or(0, super::Number::get),
            backend: if iommufd { VFIO_FAST_BACKEND_IOMMUFD } else { u32::from(setup.backend & 1) },
            iova_bits: if setup.iova_bits & 1 == 0 { 0 } else { u32::from(setup.iova_bits >> 1) % 70 },
        };
        let (sim, _) = self.place(0, &sim, if without_sim { Size::Own } else { setup.sim_size });
        let cuts = &cuts.map(|cut| u64::from(cut) << 12)[..usize::from(setup.cut_count % 3)];
        let (cuts, cut_count) = self.array(2, cuts, Array::Nothing);
        let cpus: Vec<u8> = setup.cpus.iter().flat_map(|cpus| cpus.to_ne_bytes()).collect();
        let (cpu_set, cpu_set_size) = self.array(3, &cpus, Array::Nothing);
        let config = vfio_fast_config {
            size: 0,
            flags: few(setup.flags, VFIO_FAST_CONFIG_NO_HUGEPAGE),
            backend: match setup.backend >> 3 {
                29 => VFIO_FAST_BACKEND_TYPE1,
                30 => VFIO_FAST_BACKEND_IOMMUFD,
                31 => 3,
                _ => VFIO_FAST_BACKEND_SIM,
            },
            container_fd: self.file.as_raw_fd(),
            entry_size: if setup.flags & 0x40 == 0 { 0 } else { entry_size.get() },
            threads: setup.threads.into(),
            log_level: u32::from(setup.log_level % 6),
            log: Some(log),
            log_opaque: ptr::from_ref(&*self.current).cast_mut().cast(),
            sim: if without_sim { ptr::null() } else { sim },
            iommufd_fd: -1,
            ioas_id: 1,
            max_unmap_entries: setup.max_unmap_entries.into(),
            cut_count: cut_count as u32,
            cuts,
            cpu_set: if setup.cpus.is_some() { cpu_set.cast() } else { ptr::null() },
            cpu_set_size,
        };
        let (config, _) = self.place(1, &config, setup.size.with_whole_pointers());
        self.setup = Some(setup);
        let mut opened: Handle = ptr::null_mut();
        let result = self.result(call!(vfio_fast_open(config, (&raw mut opened).cast())));
        assert_eq!(result == 0, !opened.is_null());
        self.vf = opened;
        self.current.store(opened.cast(), Ordering::Relaxed);
        result
    }

    fn close(&mut self) -> c_int {
        let closed = call!(vfio_fast_close((&raw mut self.vf).cast()));
        let result = self.result(closed);
        assert!(self.vf.is_null());
        self.current.store(ptr::null_mut(), Ordering::Relaxed);
        result
    }

    fn map(&self, region: &Region) -> c_int {
        let fds = [self.file.as_raw_fd(), -1, 1 << 20];
        let region_ = vfio_fast_region {
            size: 0,
            flags: few(region.flags, 0x1f),
            iova: region.iova.get(),
            length: self.length(region.length.get()),
            hva: region.hva.hva(),
            backing: u64::from(region.backing % 4),
            fd: fds[usize::from(region.fd) % fds.len()],
            region_index: u32::from(region.region_index),
            fd_offset: region.fd_offset.get(),
        };
        let (at, _) = self.place(0, &region_, region.size);
        self.result(call!(vfio_fast_map_region(self.vf.cast(), at)))
    }

    fn pages(&self, pages: &Pages) -> *const vfio_fast_pages {
        let mut next = pages.first.get();
        let strides = pages.strides.iter().take(64);
        let iovas: Vec<u64> = strides
            .map(|stride| {
                // Mostly the next page.
                let bytes = if *stride < 224 { 4096 } else { u64::from(stride - 224) * 2048 };
                let iova = next;
                next = iova.wrapping_add(bytes);
                iova
            })
            .collect();
        let hvas: Vec<u64> =
            (0..iovas.len() as u64).map(|page| pages.hva.hva().wrapping_add(page << 12)).collect();
        let (iovas, count) = self.array(2, &iovas, pages.array);
        let (hvas, _) = self.array(3, &hvas, Array::Nothing);
        let flags = few(pages.flags, VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_JOIN);
        let backing = u64::from(pages.backing % 4);
        let pages_ = vfio_fast_pages { size: 0, flags, count, iovas, hvas, backing };
        self.place(0, &pages_, pages.size.with_whole_pointers()).0
    }

    fn dirty(&self, dirty: &Dirty) -> *const vfio_fast_dirty {
        let (bits, words) = self.array(3, &vec![0u64; usize::from(dirty.words)], dirty.array);
        let page = dirty.page_size;
        let dirty_ = vfio_fast_dirty {
            size: 0,
            flags: few(dirty.flags, 0),
            iova: dirty.iova.get(),
            length: dirty.length.get(),
            page_size: if page.kind < 224 { 4096 } else { page.get() },
            bits,
            words,
        };
        self.place(0, &dirty_, dirty.size.with_whole_pointers()).0
    }

    /// Whether a job works, which changes what is mapped at any time.
    fn is_working(&self) -> bool {
        let mut progress = vfio_fast_progress { size: size_of::<vfio_fast_progress>() as u32, ..filled() };
        call!(vfio_fast_get_progress(self.vf.cast(), &raw mut progress)) != 0
            || progress.state == VFIO_FAST_JOB_RUNNING
    }

    /// The kernel entries; `None` without a handle, and while they change.
    fn entries(&self) -> Option<Vec<vfio_fast_entry>> {
        if self.vf.is_null() || self.is_working() {
            return None;
        }
        let mut count = 0;
        assert_eq!(call!(vfio_fast_get_entries(self.vf.cast(), ptr::null_mut(), &raw mut count)), 0);
        let mut list = vec![vfio_fast_entry::default(); count as usize];
        assert_eq!(call!(vfio_fast_get_entries(self.vf.cast(), list.as_mut_ptr(), &raw mut count)), 0);
        assert_eq!(count, list.len() as u64);
        Some(list)
    }

    /// The list of entries is in order, and the statistics are those of the list.
    fn is_consistent(&self) {
        let Some(list) = self.entries() else { return };
        let last =
            |entry: &vfio_fast_entry| entry.iova.checked_add(entry.length - 1).expect("ends in 64 bits");
        assert!(list.windows(2).all(|two| last(&two[0]) < two[1].iova), "{list:?}");
        let mut stats = vfio_fast_stats { size: size_of::<vfio_fast_stats>() as u32, ..filled() };
        assert_eq!(call!(vfio_fast_get_stats(self.vf.cast(), &raw mut stats)), 0);
        let bytes = list.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.length));
        assert_eq!((stats.entries, stats.mapped_bytes), (list.len() as u64, bytes));
    }

    pub(super) fn end(mut self) {
        self.close();
    }
}

/// Flags: the known ones, or with the highest bit of `flags` any others.
fn few(flags: u8, known: u32) -> u32 {
    let flags = u32::from(flags);
    if flags & 0x80 == 0 { flags & known } else { flags }
}

fn filled<T: Copy>() -> T {
    const { assert!(size_of::<T>() <= 4096) };
    // SAFETY: every struct of the C interface that is an output consists of integers, for which any bytes are valid.
    unsafe { ptr::read_unaligned([BEFORE; 4096].as_ptr().cast()) }
}

fn outcome_before() -> vfio_fast_outcome {
    filled()
}

/// Checks a message, and that the library refuses to be called with its handle.
///
/// # Safety
/// `opaque` points to the current handle, and `message` to a text.
unsafe extern "C" fn log(opaque: *mut c_void, level: u32, message: *const c_char) {
    assert!((VFIO_FAST_LOG_ERROR..=VFIO_FAST_LOG_DEBUG).contains(&level));
    // SAFETY: this function's contract.
    let text = unsafe { CStr::from_ptr(message) };
    assert!(text.to_str().is_ok_and(|text| !text.is_empty()));
    // SAFETY: this function's contract.
    let current = unsafe { &*opaque.cast::<AtomicPtr<c_void>>() };
    let vf: Handle = current.load(Ordering::Relaxed).cast();
    if !vf.is_null() {
        assert_eq!(call!(vfio_fast_begin(vf.cast())), -libc::EDEADLK);
    }
}
