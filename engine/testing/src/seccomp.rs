//! Other kernels, imitated by a seccomp filter: what they do not have fails as it does there.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A kernel to imitate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Linux 5.10: no MADV_POPULATE_*, and none of what is missing in 6.1.
    V5_10,
    /// Linux 6.1: no PAGEMAP_SCAN and no PROCMAP_QUERY. Its io_uring is older than what the library uses.
    V6_1,
    /// This kernel, when it has no memory left for faults.
    OutOfMemory,
    /// This kernel, when every page has a memory error.
    MemoryErrors,
    /// A kernel in which every file is a VFIO container without an IOMMU, and an iommufd without an IOAS.
    EmptyContainers,
}

/// `struct sock_filter`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// `struct sock_fprog`
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Loads a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
/// SECCOMP_RET_USER_NOTIF: the listener decides.
const ASK: u32 = 0x7fc0_0000;
const SET_MODE_FILTER: libc::c_uint = 1;
/// SECCOMP_FILTER_FLAG_NEW_LISTENER
pub(crate) const NEW_LISTENER: libc::c_uint = 1 << 3;

/// The offsets of the number and of the low words of arguments 1 and 2 in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARGUMENT_1: u32 = 24;
const ARGUMENT_2: u32 = 32;

const PAGEMAP_SCAN: u32 = 0xc060_6610;
const PROCMAP_QUERY: u32 = 0xc068_6611;

/// VFIO_GET_API_VERSION, VFIO_IOMMU_GET_INFO and IOMMU_IOAS_IOVA_RANGES, and what containers without an IOMMU return.
const EMPTY_CONTAINERS: [(u32, libc::c_int); 3] =
    [(0x3b64, 0), (0x3b70, libc::EINVAL), (0x3b84, libc::ENOENT)];

const fn fail(errno: libc::c_int) -> u32 {
    0x0005_0000 | errno as u32
}

/// Instructions that fail call `number` with `errno` where the word at `offset` is `value`.
fn refuse(number: libc::c_long, offset: u32, value: u32, errno: libc::c_int) -> [Instruction; 5] {
    let instruction = |code, if_false, value| Instruction { code, if_true: 0, if_false, value };
    [
        instruction(LOAD, 0, NUMBER),
        instruction(JUMP_IF_EQUAL, 3, number as u32),
        instruction(LOAD, 0, offset),
        instruction(JUMP_IF_EQUAL, 1, value),
        instruction(RETURN, 0, fail(errno)),
    ]
}

impl Kernel {
    /// Whether it lacks what is newer than 6.1.
    fn is_old(self) -> bool {
        !matches!(self, Self::MemoryErrors | Self::EmptyContainers)
    }

    fn filter(self) -> Vec<Instruction> {
        let mut filter = Vec::new();
        let errno = match self {
            Self::V5_10 => Some(libc::EINVAL),
            Self::V6_1 | Self::EmptyContainers => None,
            Self::OutOfMemory => Some(libc::ENOMEM),
            Self::MemoryErrors => Some(libc::EHWPOISON),
        };
        if self == Self::EmptyContainers {
            for (request, errno) in EMPTY_CONTAINERS {
                filter.extend(refuse(libc::SYS_ioctl, ARGUMENT_1, request, errno));
            }
        }
        for advice in [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE] {
            let advice = advice as u32;
            filter.extend(
                errno.into_iter().flat_map(|errno| refuse(libc::SYS_madvise, ARGUMENT_2, advice, errno)),
            );
        }
        for request in [PAGEMAP_SCAN, PROCMAP_QUERY].into_iter().filter(|_| self.is_old()) {
            filter.extend(refuse(libc::SYS_ioctl, ARGUMENT_1, request, libc::ENOTTY));
        }
        filter.extend([
            Instruction { code: LOAD, if_true: 0, if_false: 0, value: NUMBER },
            Instruction {
                code: JUMP_IF_EQUAL,
                if_true: 0,
                if_false: 1,
                value: libc::SYS_io_uring_setup as u32,
            },
            Instruction { code: RETURN, if_true: 0, if_false: 0, value: fail(libc::ENOSYS) },
            Instruction { code: RETURN, if_true: 0, if_false: 0, value: ALLOW },
        ]);
        filter
    }

    /// Runs tests of this test binary in a process of their own that takes the kernel for this one. `arguments` select
    /// the tests. Returns what they printed; fails unless all of them passed.
    pub fn run_tests(self, arguments: &[&str]) -> String {
        let filter = self.filter();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).args(["--include-ignored", "--test-threads=1"]);
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(move || install(&filter, 0).map(drop)) };
        let output = command.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{self:?}: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
        printed
    }
}

/// A filter that asks its listener about all calls except these.
pub(crate) fn all_but(numbers: &[libc::c_long]) -> Vec<Instruction> {
    let instruction = |code, if_false, value| Instruction { code, if_true: 0, if_false, value };
    let allowed = |number: &libc::c_long| {
        [instruction(JUMP_IF_EQUAL, 1, *number as u32), instruction(RETURN, 0, ALLOW)]
    };
    let mut filter = vec![instruction(LOAD, 0, NUMBER)];
    filter.extend(numbers.iter().flat_map(allowed));
    filter.push(instruction(RETURN, 0, ASK));
    filter
}

/// Installs the filter in this thread and those that it starts, for good. Returns the listener, if one is asked for.
pub(crate) fn install(filter: &[Instruction], flags: libc::c_uint) -> io::Result<libc::c_int> {
    let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the call takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program and its instructions outlive the call, which copies them.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    libc::c_int::try_from(answer).ok().filter(|answer| *answer >= 0).ok_or_else(io::Error::last_os_error)
}
