//! A kernel with VFIO and iommufd, as far as the library calls it: this program's own `ioctl`, which takes the place of
//! the C library's, and answers by the rules of the model. What is no descriptor of [`Opened`] goes to the real kernel.
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "the fields of one argument, for one reason")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommufd_bindings as iommufd;
use memfd::MemfdOptions;
use vfio_bindings::bindings::vfio;
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::region::Perm;
use vfio_fast_testing as common;

/// The only IOAS of an iommufd.
pub const IOAS: u32 = 7;

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A container of type1.
    Type1,
    /// A container that iommufd serves (vfio_compat.c). The model has iommufd's rules.
    Compat,
    Iommufd,
    /// A VFIO device, which exports its BARs.
    Device,
}

/// What kernels differ in.
#[derive(Clone, Debug)]
pub struct Settings {
    pub api_version: i32,
    /// VFIO_UNMAP_ALL
    pub unmaps_all: bool,
    /// Whether dirty pages are tracked in the smallest pages of the IOMMU.
    pub tracks_smallest: bool,
    /// VFIO_UPDATE_VADDR
    pub updates_vaddr: bool,
    /// The errno of IOMMU_IOAS_MAP_FILE, if it fails.
    pub map_file: Option<i32>,
    /// IOMMU_OPTION_RLIMIT_MODE, or the errno.
    pub rlimit_mode: Result<u64, i32>,
}

/// One request that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    Map,
    MapFile,
    Unmap,
    /// The BAR, offset and length.
    Export(u32, u64, u64),
}

struct Kernel {
    kind: Kind,
    sim: Sim,
    settings: Mutex<Settings>,
    requests: Mutex<Vec<Request>>,
}

/// The kernels by the inode of their descriptors.
static KERNELS: Mutex<BTreeMap<u64, Arc<Kernel>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor of an imitated kernel.
pub struct Opened {
    file: File,
    kernel: Arc<Kernel>,
}

impl Opened {
    pub fn new(kind: Kind, config: SimConfig) -> Self {
        let file = MemfdOptions::default().create("vfio-fast-imitated").unwrap().into_file();
        let settings = Settings {
            api_version: 0,
            unmaps_all: true,
            tracks_smallest: true,
            updates_vaddr: true,
            map_file: None,
            rlimit_mode: Ok(0),
        };
        let (settings, requests) = (Mutex::new(settings), Mutex::default());
        let kernel = Arc::new(Kernel { kind, sim: Sim::new(config), settings, requests });
        lock(&KERNELS).insert(file.metadata().unwrap().ino(), Arc::clone(&kernel));
        Self { file, kernel }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn sim(&self) -> &Sim {
        &self.kernel.sim
    }

    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.kernel.settings));
    }

    /// The requests since the last call of this function.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.kernel.requests))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        lock(&KERNELS).remove(&self.file.metadata().unwrap().ino());
    }
}

/// The inode of a descriptor, and the bytes of its file.
fn file_of(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: all fields of the struct may be zero.
    let mut file: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one struct.
    let answer = unsafe { libc::fstat(fd, &raw mut file) };
    (answer == 0).then_some((file.st_ino, file.st_size as u64))
}

/// What every `ioctl` of this program calls, those of the library and of std among them.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(
    fd: libc::c_int,
    request: libc::Ioctl,
    argument: *mut libc::c_void,
) -> libc::c_int {
    let kernel = file_of(fd).and_then(|(inode, _)| lock(&KERNELS).get(&inode).cloned());
    let Some(kernel) = kernel else {
        // SAFETY: the caller's obligations are the same.
        return unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) } as libc::c_int;
    };
    // SAFETY: the caller has passed the argument that the request takes.
    unsafe { kernel.answer(request as u32, argument) }.unwrap_or_else(|errno| {
        // SAFETY: the C library's errno of this thread.
        unsafe { libc::__errno_location().write(errno) };
        -1
    })
}

type Answer = Result<libc::c_int, i32>;

fn done<T>(answer: KernelResult<T>) -> Result<T, i32> {
    answer.map_err(|errno| errno.0)
}

/// Reads the argument of a request. Its first field is its length, which has to be that of the struct.
///
/// # Safety
/// `argument` points to as many readable bytes as the first field says.
unsafe fn read<T>(argument: *mut libc::c_void) -> Result<T, i32> {
    // SAFETY: every argument begins with its length.
    let length = unsafe { argument.cast::<u32>().read() };
    if length as usize != size_of::<T>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: there are that many bytes.
    Ok(unsafe { argument.cast::<T>().read_unaligned() })
}

fn range(iova: u64, length: u64) -> Result<IovaRange, i32> {
    IovaRange::new(Iova(iova), length).ok_or(libc::EINVAL)
}

/// The bitmap that a request names, and that has to be one for pages of `page` bytes.
///
/// # Safety
/// The request names an array of the length that it says.
unsafe fn bitmap<'a>(named: vfio::vfio_bitmap, page: u64) -> Result<&'a mut [u64], i32> {
    if named.pgsize != page || named.size % 8 != 0 {
        return Err(libc::EINVAL);
    }
    // SAFETY: the caller's array, which it does not use during the request.
    Ok(unsafe { std::slice::from_raw_parts_mut(named.data.cast(), (named.size / 8) as usize) })
}

impl Kernel {
    fn note(&self, request: Request) {
        lock(&self.requests).push(request);
    }

    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    fn page(&self) -> Result<u64, i32> {
        self.sim.limits().map(|limits| limits.page_sizes.smallest()).map_err(|error| error.errno.0)
    }

    /// # Safety
    /// `argument` is what the request takes.
    unsafe fn answer(&self, request: u32, argument: *mut libc::c_void) -> Answer {
        // SAFETY: in each arm, the request takes this struct.
        unsafe {
            match (self.kind, request) {
                (Kind::Type1 | Kind::Compat, 0x3b64) => Ok(self.settings().api_version),
                (Kind::Type1 | Kind::Compat, 0x3b65) => Ok(self.extension(argument as usize)),
                (Kind::Type1 | Kind::Compat, 0x3b70) => self.info(argument),
                (Kind::Type1 | Kind::Compat, 0x3b71) => self.map_dma(read(argument)?),
                (Kind::Type1 | Kind::Compat, 0x3b72) => self.unmap_dma(argument),
                (Kind::Type1, 0x3b75) => self.dirty_pages(argument),
                (Kind::Iommufd, 0x3b84) => self.iova_ranges(argument),
                (Kind::Iommufd, 0x3b85) => self.ioas_map(read(argument)?),
                (Kind::Iommufd, 0x3b86) => self.ioas_unmap(argument),
                (Kind::Iommufd, 0x3b87) => self.option(argument),
                (Kind::Iommufd, 0x3b8f) => self.ioas_map_file(read(argument)?),
                (Kind::Device, 0x3b75) => self.export(argument),
                _ => Err(libc::ENOTTY),
            }
        }
    }

    fn extension(&self, number: usize) -> libc::c_int {
        let updates = self.kind == Kind::Type1 && self.settings().updates_vaddr;
        (number == vfio::VFIO_UPDATE_VADDR as usize && updates).into()
    }

    /// VFIO_IOMMU_GET_INFO
    unsafe fn info(&self, argument: *mut libc::c_void) -> Answer {
        const FIXED: usize = size_of::<vfio::vfio_iommu_type1_info>();
        let limits = self.sim.limits().map_err(|error| error.errno.0)?;
        let is_type1 = self.kind == Kind::Type1;
        let mut capabilities: Vec<(u32, Vec<u8>)> = Vec::new();
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        if !limits.iova_ranges.is_empty() {
            let bounds = limits.iova_ranges.iter().flat_map(|range| [range.start(), range.last()]);
            let words: Vec<u64> = [limits.iova_ranges.len() as u64].into_iter().chain(bounds).collect();
            capabilities.push((vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, bytes(&words)));
        }
        if let Some(tracking) = self.sim.dirty_tracking().filter(|_| is_type1) {
            let page = self.page()?;
            let tracked = if self.settings().tracks_smallest { page } else { page << 1 };
            let words = [0, tracked, tracking.max_bytes() / 8 / page];
            capabilities.push((vfio::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, bytes(&words)));
        }
        let avail = limits.entries.map_or(u64::from(u32::MAX), |entries| entries);
        capabilities.push((vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, bytes(&[avail])));
        let mut whole = vec![0u8; FIXED];
        for (number, (id, body)) in capabilities.iter().enumerate() {
            let next = whole.len() + 8 + body.len();
            let next = if number + 1 == capabilities.len() { 0 } else { next as u32 };
            whole.extend((*id as u16).to_ne_bytes());
            whole.extend(1u16.to_ne_bytes());
            whole.extend(next.to_ne_bytes());
            whole.extend(body);
        }
        let flags = vfio::VFIO_IOMMU_INFO_PGSIZES | vfio::VFIO_IOMMU_INFO_CAPS;
        // SAFETY: every argument begins with its length.
        let room = unsafe { argument.cast::<u32>().read() } as usize;
        let offset = if room < whole.len() { 0 } else { FIXED as u32 };
        let length = whole.len() as u32;
        whole[..4].copy_from_slice(&length.to_ne_bytes());
        whole[4..8].copy_from_slice(&flags.to_ne_bytes());
        whole[8..16].copy_from_slice(&limits.page_sizes.bitmap().to_ne_bytes());
        whole[16..20].copy_from_slice(&offset.to_ne_bytes());
        let written = if room < whole.len() { room.min(FIXED) } else { whole.len() };
        // SAFETY: the caller has as many bytes as it says.
        unsafe { whole.as_ptr().copy_to_nonoverlapping(argument.cast(), written) };
        Ok(0)
    }

    fn map_dma(&self, asked: vfio::vfio_iommu_type1_dma_map) -> Answer {
        self.note(Request::Map);
        let vfio::vfio_iommu_type1_dma_map { flags, vaddr, iova, size, .. } = asked;
        let hva = common::hva(vaddr);
        match flags {
            1 => done(self.sim.ask_to_map(iova, size, hva, Perm::Read)),
            3 => done(self.sim.ask_to_map(iova, size, hva, Perm::ReadWrite)),
            4 if self.kind == Kind::Type1 => {
                // The request does not have the permission.
                let mapping = Mapping { range: range(iova, size)?, hva, perm: Perm::Read };
                done(self.sim.handover().unwrap().set_address(&mapping))
            }
            _ => Err(libc::EINVAL),
        }?;
        Ok(0)
    }

    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn unmap_dma(&self, argument: *mut libc::c_void) -> Answer {
        #[repr(C)]
        struct WithBitmap {
            head: vfio::vfio_iommu_type1_dma_unmap,
            bitmap: vfio::vfio_bitmap,
        }
        self.note(Request::Unmap);
        let head = argument.cast::<vfio::vfio_iommu_type1_dma_unmap>();
        // SAFETY: the request takes at least this struct, whose last field is an array without elements.
        let (flags, iova, size) = unsafe { ((*head).flags, (*head).iova, (*head).size) };
        let is_type1 = self.kind == Kind::Type1;
        let everything = (iova, size) == (0, 0);
        let bytes = match flags {
            0 => done(self.sim.ask_to_unmap(iova, size)),
            1 if is_type1 => {
                // SAFETY: with this flag, the bitmap follows.
                let asked: WithBitmap = unsafe { read(argument) }?;
                // SAFETY: the same.
                let words = unsafe { bitmap(asked.bitmap, self.page()?) }?;
                let tracking = self.sim.dirty_tracking().ok_or(libc::EINVAL)?;
                done(tracking.unmap_dirty(range(iova, size)?, words))
            }
            2 if everything && self.settings().unmaps_all => done(self.sim.ask_to_unmap_all()),
            4 if is_type1 => {
                done(self.sim.handover().unwrap().drop_addresses(Some(range(iova, size)?))).map(|()| 0)
            }
            6 if is_type1 && everything => {
                done(self.sim.handover().unwrap().drop_addresses(None)).map(|()| 0)
            }
            _ => Err(libc::EINVAL),
        }?;
        // SAFETY: the same struct.
        unsafe { (*head).size = bytes };
        Ok(0)
    }

    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn dirty_pages(&self, argument: *mut libc::c_void) -> Answer {
        #[repr(C)]
        struct Get {
            argsz: u32,
            flags: u32,
            get: vfio::vfio_iommu_type1_dirty_bitmap_get,
        }
        let tracking = self.sim.dirty_tracking().ok_or(libc::EINVAL)?;
        // SAFETY: every argument of this request begins with its length and its flags.
        match unsafe { argument.cast::<[u32; 2]>().read() } {
            [8, 1] => done(tracking.track_dirty(true)),
            [8, 2] => done(tracking.track_dirty(false)),
            [_, 4] => {
                // SAFETY: with this flag, the bitmap follows.
                let Get { get, .. } = unsafe { read(argument) }?;
                // SAFETY: the same.
                let words = unsafe { bitmap(get.bitmap, self.page()?) }?;
                done(tracking.read_dirty(range(get.iova, get.size)?, words))
            }
            _ => Err(libc::EINVAL),
        }?;
        Ok(0)
    }

    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn iova_ranges(&self, argument: *mut libc::c_void) -> Answer {
        // SAFETY: the request takes this struct.
        let mut asked: iommufd::iommu_ioas_iova_ranges = unsafe { read(argument) }?;
        ioas(asked.ioas_id)?;
        let limits = self.sim.limits().map_err(|error| error.errno.0)?;
        let ranges = if limits.iova_ranges.is_empty() { vec![IovaRange::ALL] } else { limits.iova_ranges };
        let room = asked.num_iovas as usize;
        let to = asked.allowed_iovas as *mut [u64; 2];
        for (number, range) in ranges.iter().enumerate().take(room) {
            // SAFETY: the caller's array has room for them.
            unsafe { to.add(number).write([range.start(), range.last()]) };
        }
        asked.num_iovas = ranges.len() as u32;
        asked.out_iova_alignment = limits.page_sizes.smallest();
        // SAFETY: the same struct.
        unsafe { argument.cast::<iommufd::iommu_ioas_iova_ranges>().write(asked) };
        if ranges.len() > room { Err(libc::EMSGSIZE) } else { Ok(0) }
    }

    fn ioas_map(&self, asked: iommufd::iommu_ioas_map) -> Answer {
        self.note(Request::Map);
        ioas(asked.ioas_id)?;
        let (hva, perm) = (common::hva(asked.user_va), permission(asked.flags)?);
        done(self.sim.ask_to_map(asked.iova, asked.length, hva, perm))?;
        Ok(0)
    }

    fn ioas_map_file(&self, asked: iommufd::iommu_ioas_map_file) -> Answer {
        self.note(Request::MapFile);
        ioas(asked.ioas_id)?;
        if let Some(errno) = self.settings().map_file {
            return Err(errno);
        }
        let (_, bytes) = file_of(asked.fd).ok_or(libc::EBADF)?;
        let perm = permission(asked.flags)?;
        done(self.sim.ask_to_map_file(asked.iova, asked.length, asked.start, bytes, perm))?;
        Ok(0)
    }

    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn ioas_unmap(&self, argument: *mut libc::c_void) -> Answer {
        self.note(Request::Unmap);
        // SAFETY: the request takes this struct.
        let mut asked: iommufd::iommu_ioas_unmap = unsafe { read(argument) }?;
        ioas(asked.ioas_id)?;
        asked.length = done(self.sim.ask_to_unmap(asked.iova, asked.length))?;
        // SAFETY: the same struct.
        unsafe { argument.cast::<iommufd::iommu_ioas_unmap>().write(asked) };
        Ok(0)
    }

    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn option(&self, argument: *mut libc::c_void) -> Answer {
        // SAFETY: the request takes this struct.
        let mut asked: iommufd::iommu_option = unsafe { read(argument) }?;
        if (asked.option_id, asked.op, asked.object_id) != (0, 1, 0) {
            return Err(libc::EOPNOTSUPP);
        }
        asked.val64 = self.settings().rlimit_mode?;
        // SAFETY: the same struct.
        unsafe { argument.cast::<iommufd::iommu_option>().write(asked) };
        Ok(0)
    }

    /// VFIO_DEVICE_FEATURE_DMA_BUF
    ///
    /// # Safety
    /// As for [`Kernel::answer`].
    unsafe fn export(&self, argument: *mut libc::c_void) -> Answer {
        #[repr(C)]
        struct Export {
            argsz: u32,
            flags: u32,
            region_index: u32,
            open_flags: u32,
            reserved: u32,
            ranges: u32,
            offset: u64,
            length: u64,
        }
        // SAFETY: the request takes this struct.
        let asked: Export = unsafe { read(argument) }?;
        let open_flags = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
        if (asked.flags, asked.open_flags, asked.ranges) != (1 << 16 | 11, open_flags, 1) {
            return Err(libc::EINVAL);
        }
        self.note(Request::Export(asked.region_index, asked.offset, asked.length));
        let buffer = MemfdOptions::default().create("vfio-fast-dma-buf").unwrap().into_file();
        buffer.set_len(asked.length).map_err(|error| Error::raw_os_error(&error).unwrap_or(libc::EIO))?;
        Ok(buffer.into_raw_fd())
    }
}

fn ioas(id: u32) -> Result<(), i32> {
    if id == IOAS { Ok(()) } else { Err(libc::ENOENT) }
}

/// IOMMU_IOAS_MAP_FIXED_IOVA, _READABLE and perhaps _WRITEABLE.
fn permission(flags: u32) -> Result<Perm, i32> {
    match flags {
        5 => Ok(Perm::Read),
        7 => Ok(Perm::ReadWrite),
        _ => Err(libc::EINVAL),
    }
}

/// A memory file that is mapped shared. It is never unmapped.
pub fn shared_memory(bytes: u64) -> (File, HostVa) {
    let file = MemfdOptions::default().create("vfio-fast-shared").unwrap().into_file();
    file.set_len(bytes).unwrap();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    let (fd, length) = (file.as_raw_fd(), bytes as usize);
    // SAFETY: without MAP_FIXED a mapping replaces nothing.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
    assert_ne!(address, libc::MAP_FAILED, "{}", Error::last_os_error());
    (file, common::hva(address as u64))
}
