//! The real kernel: a new container or IOAS for each case, with a device that is bound to vfio-pci.

use std::fs::{self, File};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;

use iommufd_bindings as iommufd;
use memfd::MemfdOptions;
use vfio_bindings::bindings::vfio;

use super::Memory;
use super::cases::{MEMORY, PAGE};
use super::edu::Edu;
use super::ioas::{self, Device, Ioas, ioctl, length_of, open};
use super::limits::{EntryLimit, Memlock};
use super::run::{Case, Hva, Kernel, Needs, Target};
use super::targets::Through;
use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::Perm;

/// The variable that has the PCI address of the device, as in sysfs.
pub const DEVICE: &str = "VFIO_FAST_DEVICE";
/// The variable that has the addresses of all devices, which are `edu`s.
const DEVICES: &str = "VFIO_FAST_DEVICES";

const VFIO_SET_IOMMU: libc::Ioctl = 0x3b66;
const VFIO_GROUP_SET_CONTAINER: libc::Ioctl = 0x3b68;
const VFIO_GROUP_UNSET_CONTAINER: libc::Ioctl = 0x3b69;
const VFIO_GROUP_GET_DEVICE_FD: libc::Ioctl = 0x3b6a;
const VFIO_DEVICE_GET_REGION_INFO: libc::Ioctl = 0x3b6c;
const VFIO_IOMMU_MAP_DMA: libc::Ioctl = 0x3b71;
const VFIO_IOMMU_UNMAP_DMA: libc::Ioctl = 0x3b72;
const IOMMU_IOAS_MAP: libc::Ioctl = 0x3b85;
const IOMMU_IOAS_UNMAP: libc::Ioctl = 0x3b86;
const IOMMU_OPTION: libc::Ioctl = 0x3b87;
const IOMMU_IOAS_MAP_FILE: libc::Ioctl = 0x3b8f;

/// The kinds of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Type1,
    Iommufd,
    /// A container that iommufd emulates. Its ioctls return the results of neither driver, but the backend hides
    /// that.
    Imitation,
}

impl Driver {
    /// The one that another process of this program names.
    pub fn named(name: &str) -> Self {
        let all = [Self::Type1, Self::Iommufd];
        all.into_iter().find(|driver| format!("{driver:?}") == name).expect("a driver")
    }

    pub fn answers_as(self) -> Kernel {
        if self == Self::Type1 { Kernel::Type1 } else { Kernel::Iommufd }
    }
}

/// Runs `case` on the driver's ioctls.
pub fn on_ioctls(case: &Case, driver: Driver, run: impl FnOnce(&dyn Target)) {
    on_the_kernel(case.needs, driver, |opened, memory| {
        run(&Ioctls { opened, kernel: driver.answers_as(), memory });
    });
}

/// Runs `case` on the backend for the driver.
pub fn on_backend(case: &Case, driver: Driver, run: impl FnOnce(&dyn Target)) {
    with_backend(case.needs, driver, |backend, opened, memory| {
        run(&Through { backend, attach: &|| opened.attach().map_err(Errno), memory });
    });
}

/// The error of opening an IOAS that the iommufd does not have.
pub fn open_wrong_ioas() -> vfio_fast_engine::Error {
    let mut error = None;
    on_the_kernel(Needs::default(), Driver::Iommufd, |opened, _| {
        error = Iommufd::open(opened.file.as_fd(), opened.ioas_id + 1000).err();
    });
    error.expect("there is no such IOAS")
}

/// Opens the backend for the driver, with the device attached.
pub fn attached(driver: Driver, run: impl FnOnce(&dyn Backend, Memory)) {
    with_backend(Needs::default(), driver, |backend, _, memory| run(backend, memory));
}

/// Opens the backend for the driver with the device attached, and passes its ownership and the ioctls it uses.
pub fn owned(driver: Driver, run: impl FnOnce(Box<dyn Backend>, &dyn Target, Memory)) {
    on_the_kernel(Needs::default(), driver, |opened, memory| {
        run(opened.backend(driver), &Ioctls { opened, kernel: driver.answers_as(), memory }, memory);
    });
}

/// The same, with what the test needs.
pub fn owned_with(needs: Needs, driver: Driver, run: impl FnOnce(Box<dyn Backend>, &dyn Target)) {
    on_the_kernel(needs, driver, |opened, memory| {
        run(opened.backend(driver), &Ioctls { opened, kernel: driver.answers_as(), memory });
    });
}

/// Opens the backend of type1, and passes its ownership and what makes the group, the only one, leave the container.
pub fn leaving(run: impl FnOnce(Box<dyn Backend>, &dyn Fn(), Memory)) {
    on_the_kernel(Needs::default(), Driver::Type1, |opened, memory| {
        let leave = || {
            // SAFETY: this request takes no argument.
            let left = unsafe { libc::ioctl(opened.device.as_raw_fd(), VFIO_GROUP_UNSET_CONTAINER) };
            assert_eq!(left, 0, "{}", Error::last_os_error());
        };
        run(opened.backend(Driver::Type1), &leave, memory);
    });
}

/// The PCI address of the device.
pub fn device_name() -> String {
    std::env::var(DEVICE).unwrap_or_else(|_| panic!("{DEVICE} names no device"))
}

/// Replaces the mapping of the file by a new one, in which no page is present.
pub fn map_file_anew(memory: Memory, flags: libc::c_int, protection: libc::c_int) {
    let (address, bytes) = (memory.file as *mut libc::c_void, usize::try_from(MEMORY).unwrap());
    // SAFETY: the mapping that is replaced is the tests' own, and no reference into it exists.
    let got = unsafe { libc::mmap(address, bytes, protection, flags | libc::MAP_FIXED, memory.fd, 0) };
    assert_eq!(got, address, "{}", Error::last_os_error());
}

/// Whether the process has the page at `address`, even if the kernel is moving it.
pub fn is_present(address: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const MOVING: u64 = 1 << 62;
    let mut entry = [0; 8];
    open_for_reading("/proc/self/pagemap").read_exact_at(&mut entry, address / PAGE * 8).expect("an entry");
    u64::from_ne_bytes(entry) & (PRESENT | MOVING) != 0
}

fn open_for_reading(path: &str) -> File {
    File::open(path).unwrap_or_else(|error| panic!("cannot open {path}: {error}"))
}

/// Opens the backend for the driver with an `edu` attached, whose buffer begins with other bytes than zeros.
pub fn with_edu(driver: Driver, run: impl FnOnce(Box<dyn Backend>, Edu, Memory)) {
    sharing(driver, |backend, _, edu, memory| run(backend, edu, memory));
}

/// The same, with the descriptor of the container or iommufd.
pub fn sharing(driver: Driver, run: impl FnOnce(Box<dyn Backend>, BorrowedFd<'_>, Edu, Memory)) {
    on_the_kernel(Needs::default(), driver, |opened, memory| {
        let edu = edu(opened.device_file(driver));
        let backend = opened.backend(driver);
        let range = IovaRange::new(Iova(0x1000_0000), PAGE).unwrap();
        let mapping = Mapping { range, hva: memory.host(Hva::Writable(0)), perm: Perm::Read };
        // SAFETY: the memory is mapped and aligned, and no reference into it exists.
        unsafe { ptr::write_volatile(memory.writable as *mut u32, 0x5eed_5eed) };
        backend.map(&mapping, None).unwrap();
        edu.start_read(0x1000_0000, 0, 4);
        edu.finish();
        assert_eq!(backend.unmap(range), Ok(PAGE));
        run(backend, opened.file.as_fd(), edu, memory);
    });
}

/// The same, with each `edu` of the machine attached, and what opens the backend, as often as it is called.
pub fn with_edus(driver: Driver, run: impl FnOnce(&dyn Fn() -> Box<dyn Backend>, Vec<Edu>)) {
    on_the_kernel(Needs::default(), driver, |opened, _| {
        let first = device_name();
        let names = std::env::var(DEVICES).unwrap_or_else(|_| first.clone());
        let others = names.split_whitespace().filter(|name| *name != first);
        let others = others.map(|name| opened.attach_another(driver, &Device::at(name)));
        let edus = std::iter::once(opened.device_file(driver)).chain(others).map(edu).collect();
        run(&|| opened.backend(driver), edus);
    });
}

fn edu(device: File) -> Edu {
    let offset = |index| region_info(&device, index).offset;
    let (registers, config) =
        (offset(vfio::VFIO_PCI_BAR0_REGION_INDEX), offset(vfio::VFIO_PCI_CONFIG_REGION_INDEX));
    // Memory decoding and bus mastering.
    let enabled = 6u16;
    device.write_all_at(&enabled.to_le_bytes(), config + 4).expect("its command register");
    Edu::of(device, registers)
}

/// Passes what opens the backend for the driver, as often as it is called.
pub fn reopening(driver: Driver, run: impl FnOnce(&dyn Fn() -> Box<dyn Backend>)) {
    on_the_kernel(Needs::default(), driver, |opened, _| run(&|| opened.backend(driver)));
}

fn region_info(device: &File, index: u32) -> vfio::vfio_region_info {
    let argsz = length_of::<vfio::vfio_region_info>();
    let mut info = vfio::vfio_region_info { argsz, index, ..Default::default() };
    ioctl(device.as_raw_fd(), VFIO_DEVICE_GET_REGION_INFO, &mut info).expect("a region");
    info
}

/// The first BAR of the device.
pub struct Bar<'a> {
    device: &'a File,
    bytes: u64,
    /// The offset of the configuration space in the device's file.
    config: u64,
}

impl Bar<'_> {
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns the device's memory decoding on or off.
    pub fn decode(&self, memory: bool) {
        let command = if memory { 2u16 } else { 0 };
        self.device.write_all_at(&command.to_le_bytes(), self.config + 4).expect("its command register");
    }
}

/// Opens an IOAS with the device attached.
pub fn with_bar(run: impl FnOnce(&dyn Backend, &Bar<'_>)) {
    with_backend(Needs::default(), Driver::Iommufd, |backend, opened, _| {
        let region = |index| region_info(&opened.device, index);
        let bytes = region(vfio::VFIO_PCI_BAR0_REGION_INDEX).size;
        let config = region(vfio::VFIO_PCI_CONFIG_REGION_INDEX).offset;
        run(backend, &Bar { device: &opened.device, bytes, config });
    });
}

fn with_backend(needs: Needs, driver: Driver, run: impl FnOnce(&dyn Backend, &Opened, Memory)) {
    on_the_kernel(needs, driver, |opened, memory| run(&*opened.backend(driver), opened, memory));
}

fn on_the_kernel(needs: Needs, driver: Driver, run: impl FnOnce(&Opened, Memory)) {
    let device = Device::at(&device_name());
    let memory = RealMemory::new();
    let entries = needs.entries.map(EntryLimit::new);
    let opened = match driver {
        Driver::Iommufd if needs.per_process => Opened::per_process(&device),
        Driver::Type1 => Opened::container(&device, "/dev/vfio/vfio"),
        Driver::Imitation => Opened::imitation(&device),
        Driver::Iommufd => Opened::ioas(&device, !needs.no_device),
    };
    drop(entries); // The limit is read when a container is created.
    let limited = needs.memlock_pages.map(Memlock::new);
    run(&opened, memory.addresses);
    drop(limited);
    drop(opened);
}

fn group(device: &Device) -> PathBuf {
    let group = fs::read_link(device.folder.join("iommu_group")).unwrap();
    Path::new("/dev/vfio").join(group.file_name().unwrap())
}

/// The device's group, as a member of the container.
fn group_in(container: &File, device: &Device) -> File {
    let group = open(&group(device));
    let mut container: i32 = container.as_raw_fd();
    ioctl(group.as_raw_fd(), VFIO_GROUP_SET_CONTAINER, &mut container).expect("a viable group");
    group
}

fn device_of(group: &File, device: &Device) -> OwnedFd {
    let mut name = [0u8; 32];
    let address = device.folder.file_name().unwrap().as_bytes();
    name[..address.len()].copy_from_slice(address);
    let fd = ioctl(group.as_raw_fd(), VFIO_GROUP_GET_DEVICE_FD, &mut name).expect("its device");
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A container with its group, or an iommufd with its device and an IOAS.
struct Opened {
    _opened_device: Option<OwnedFd>,
    /// The attached device. It is dropped before the container or iommufd.
    device: File,
    file: File,
    ioas_id: u32,
}

impl Opened {
    fn container(device: &Device, path: &str) -> Self {
        let file = open(Path::new(path));
        let device = group_in(&file, device);
        // SAFETY: this request takes a number.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), VFIO_SET_IOMMU, vfio::VFIO_TYPE1v2_IOMMU) };
        assert_eq!(set, 0, "{}", Error::last_os_error());
        Self { _opened_device: None, device, file, ioas_id: 0 }
    }

    /// iommufd attaches the device of a group when the device is opened.
    fn imitation(device: &Device) -> Self {
        let opened = Self::container(device, "/dev/iommu");
        let opened_device = device_of(&opened.device, device);
        Self { _opened_device: Some(opened_device), ..opened }
    }

    /// A descriptor of the device itself.
    fn device_file(&self, driver: Driver) -> File {
        match driver {
            Driver::Type1 | Driver::Imitation => {
                File::from(device_of(&self.device, &Device::at(&device_name())))
            }
            Driver::Iommufd => self.device.try_clone().expect("a descriptor"),
        }
    }

    /// Another device in the same container or IOAS.
    fn attach_another(&self, driver: Driver, device: &Device) -> File {
        match driver {
            Driver::Type1 | Driver::Imitation => {
                // The device keeps its group open.
                File::from(device_of(&group_in(&self.file, device), device))
            }
            Driver::Iommufd => {
                let device = device.bind(&self.file);
                ioas::attach(&device, self.ioas_id).expect("an empty IOAS");
                device
            }
        }
    }

    fn ioas(device: &Device, attach: bool) -> Self {
        Self::of(Ioas::new(device), attach)
    }

    /// An IOAS whose iommufd counts locked memory per process.
    fn per_process(device: &Device) -> Self {
        let iommufd = open(Path::new("/dev/iommu"));
        let mut option = iommufd::iommu_option {
            size: length_of::<iommufd::iommu_option>(),
            option_id: iommufd::iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
            op: u16::try_from(iommufd::iommufd_option_ops_IOMMU_OPTION_OP_SET).unwrap(),
            val64: 1,
            ..Default::default()
        };
        ioctl(iommufd.as_raw_fd(), IOMMU_OPTION, &mut option).expect("CAP_SYS_RESOURCE");
        Self::of(Ioas::on(iommufd, device), true)
    }

    fn of(ioas: Ioas, attach: bool) -> Self {
        let Ioas { device, iommufd, id } = ioas;
        let opened = Self { _opened_device: None, device, file: iommufd, ioas_id: id };
        if attach {
            opened.attach().expect("attaching to an empty IOAS works");
        }
        opened
    }

    fn backend(&self, driver: Driver) -> Box<dyn Backend> {
        match driver {
            Driver::Type1 | Driver::Imitation => Box::new(Type1::open(self.file.as_fd()).unwrap()),
            Driver::Iommufd => Box::new(Iommufd::open(self.file.as_fd(), self.ioas_id).unwrap()),
        }
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn attach(&self) -> Result<(), i32> {
        ioas::attach(&self.device, self.ioas_id)
    }
}

/// The ioctls, with bindings that the engine does not use for iommufd.
struct Ioctls<'a> {
    opened: &'a Opened,
    kernel: Kernel,
    memory: Memory,
}

impl Ioctls<'_> {
    fn unmap_type1(&self, flags: u32, iova: u64, size: u64) -> Result<u64, i32> {
        let argsz = length_of::<vfio::vfio_iommu_type1_dma_unmap>();
        let mut unmap = vfio::vfio_iommu_type1_dma_unmap { argsz, flags, iova, size, ..Default::default() };
        ioctl(self.opened.fd(), VFIO_IOMMU_UNMAP_DMA, &mut unmap)?;
        Ok(unmap.size)
    }

    fn unmap_iommufd(&self, iova: u64, length: u64) -> Result<u64, i32> {
        let size = length_of::<iommufd::iommu_ioas_unmap>();
        let mut unmap = iommufd::iommu_ioas_unmap { size, ioas_id: self.opened.ioas_id, iova, length };
        ioctl(self.opened.fd(), IOMMU_IOAS_UNMAP, &mut unmap)?;
        Ok(unmap.length)
    }
}

impl Target for Ioctls<'_> {
    fn map(&self, iova: u64, length: u64, memory: Hva, writable: bool) -> Result<(), i32> {
        let address = self.memory.address(memory);
        match self.kernel {
            Kernel::Type1 => {
                let write = if writable { vfio::VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
                let mut map = vfio::vfio_iommu_type1_dma_map {
                    argsz: length_of::<vfio::vfio_iommu_type1_dma_map>(),
                    flags: vfio::VFIO_DMA_MAP_FLAG_READ | write,
                    vaddr: address,
                    iova,
                    size: length,
                };
                ioctl(self.opened.fd(), VFIO_IOMMU_MAP_DMA, &mut map).map(drop)
            }
            Kernel::Iommufd => {
                let mut map = iommufd::iommu_ioas_map {
                    size: length_of::<iommufd::iommu_ioas_map>(),
                    flags: map_flags(writable),
                    ioas_id: self.opened.ioas_id,
                    user_va: address,
                    length,
                    iova,
                    ..Default::default()
                };
                ioctl(self.opened.fd(), IOMMU_IOAS_MAP, &mut map).map(drop)
            }
        }
    }

    fn map_file(&self, iova: u64, length: u64, offset: u64, writable: bool) -> Result<(), i32> {
        let mut map = iommufd::iommu_ioas_map_file {
            size: length_of::<iommufd::iommu_ioas_map_file>(),
            flags: map_flags(writable),
            ioas_id: self.opened.ioas_id,
            fd: self.memory.fd,
            start: offset,
            length,
            iova,
        };
        ioctl(self.opened.fd(), IOMMU_IOAS_MAP_FILE, &mut map).map(drop)
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<u64, i32> {
        match self.kernel {
            Kernel::Type1 => self.unmap_type1(0, iova, length),
            Kernel::Iommufd => self.unmap_iommufd(iova, length),
        }
    }

    fn unmap_all(&self) -> Result<u64, i32> {
        match self.kernel {
            Kernel::Type1 => self.unmap_type1(vfio::VFIO_DMA_UNMAP_FLAG_ALL, 0, 0),
            Kernel::Iommufd => self.unmap_iommufd(0, u64::MAX),
        }
    }

    fn attach(&self) -> Result<(), i32> {
        self.opened.attach()
    }
}

fn map_flags(writable: bool) -> u32 {
    let write = if writable { iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE } else { 0 };
    iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
        | iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
        | write
}

/// Writable memory, a gap, read-only memory, and a file. Every page of the memory was written once.
struct RealMemory {
    addresses: Memory,
    _file: File,
}

impl RealMemory {
    fn new() -> Self {
        // SAFETY: sysconf reads and writes no memory of this program, for any argument.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        assert_eq!(u64::try_from(page), Ok(PAGE), "compiled for a kernel with other pages");
        let bytes = usize::try_from(4 * MEMORY).unwrap();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", Error::last_os_error());
        let third = usize::try_from(MEMORY).unwrap();
        for (number, protection) in [(1, libc::PROT_NONE), (2, libc::PROT_READ)] {
            // SAFETY: within the mapping made above, and no reference into it exists.
            let set = unsafe { libc::mprotect(start.wrapping_byte_add(number * third), third, protection) };
            assert_eq!(set, 0, "{}", Error::last_os_error());
        }
        let file = MemfdOptions::default().create("vfio-fast-conformance").unwrap().into_file();
        file.set_len(MEMORY).unwrap();
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd());
        let fourth = start.wrapping_byte_add(3 * third);
        // SAFETY: within the mapping made above, and no reference into it exists.
        let got = unsafe { libc::mmap(fourth, third, protection, flags, fd, 0) };
        assert_eq!(got, fourth, "{}", Error::last_os_error());
        let writable = start as u64;
        let addresses = Memory {
            writable,
            nothing: writable + MEMORY,
            read_only: writable + 2 * MEMORY,
            file: writable + 3 * MEMORY,
            fd,
        };
        Self { addresses, _file: file }
    }
}

impl Drop for RealMemory {
    fn drop(&mut self) {
        let (start, bytes) = (self.addresses.writable as *mut _, usize::try_from(4 * MEMORY).unwrap());
        // SAFETY: the mapping is this struct's, and every container that used it is closed.
        let gone = unsafe { libc::munmap(start, bytes) };
        assert_eq!(gone, 0);
    }
}
