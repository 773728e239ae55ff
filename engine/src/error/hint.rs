//! What an errno of the kernel means for an operation, for errors about which nothing more is known.

use super::{Errno, Op, PageFault};
use crate::addr::HostVa;

const DENIED: &str = "a sandbox or a security module (seccomp, SELinux, AppArmor) forbids the call: allow the ioctls of \
                      VFIO and iommufd";
const DESCRIPTORS: &str = "the process or the machine has no descriptor left: raise RLIMIT_NOFILE (`ulimit -n`, \
                           LimitNOFILE=) or fs.file-max";
const GONE: &str = "the IOAS or the container is gone: close the handle before it is destroyed";

/// What `errno` means for `op`; `None` if the errno's own text says it all.
pub(crate) fn of(op: Op, errno: Errno) -> Option<&'static str> {
    Some(match (op, errno) {
        (_, Errno::EPERM | Errno::EACCES) if op != Op::Discard => DENIED,
        (_, Errno::EMFILE | Errno::ENFILE) => DESCRIPTORS,
        (_, Errno::EINTR) => "the process is being killed",
        (Op::Open, Errno::EBADF) => "the descriptor is not open in this process",
        (Op::Open, Errno::ENOTTY) => {
            "the descriptor is neither a VFIO container nor /dev/iommu, as the backend needs"
        }
        (Op::Unmap | Op::Info | Op::Dirty, Errno::ENOENT | Errno::ENODEV) | (Op::Map, Errno::ENOENT) => GONE,
        (Op::Map, Errno::ENODEV) => {
            "the device does not let its BAR be mapped while it does not decode memory (PCI_COMMAND, D3hot)"
        }
        (Op::Map, Errno::ENOTTY) => {
            "the kernel (before Linux 6.19) or the device does not export BARs as dma-bufs, the only way to map one with \
             iommufd"
        }
        (Op::Map, Errno::EOPNOTSUPP) => "iommufd maps only BARs that are one range of the device",
        (Op::Map, Errno::EFAULT) => "the kernel cannot pin a page of this memory",
        (Op::Map, Errno::EHWPOISON) => "a page of the memory has a memory error: map other memory",
        (Op::Map, Errno::EBUSY) => {
            "a page cannot be moved out of ZONE_MOVABLE or CMA memory, or the range is being unmapped"
        }
        (Op::Map, Errno::EINVAL) => {
            "the kernel does not accept the range: it ends after the end of the file, or the IOMMU cannot translate it"
        }
        (Op::Map, Errno::ENOSPC) => {
            "the container has as many mappings as type1 allows: raise dma_entry_limit of vfio_iommu_type1 before the \
             container is opened (`modprobe vfio_iommu_type1 dma_entry_limit=`), or map larger blocks"
        }
        (Op::Map | Op::Unmap, Errno::EOVERFLOW) => "the range reaches past the end of the address space",
        (Op::Unmap, Errno::EBUSY) => {
            "something else uses or changes a mapping in the range (a mediated device, another thread)"
        }
        (Op::Unmap, Errno::EINVAL) => {
            "the container has no IOMMU any more, or the range cuts a mapping that is not known"
        }
        (Op::Info, Errno::EINVAL) => "the container has no IOMMU any more: its last group has left it",
        (Op::Dirty, Errno::ENOMEM) => {
            "the kernel has no memory for the bitmaps of the container, one bit a page: free memory"
        }
        (Op::Dirty, Errno::EINVAL) => "the kernel does not track dirty pages, or the range cuts a mapping",
        (Op::Discard, Errno::EINVAL) => {
            "the kernel discards no memory that is locked (mlock), device memory, or a part of a huge page of hugetlbfs"
        }
        (Op::Discard, Errno::ENOMEM) => "nothing is mapped in a part of the range",
        (Op::Discard, Errno::EPERM | Errno::EACCES) => {
            "the mapping is sealed or read-only: discard only writable memory"
        }
        _ => return None,
    })
}

impl PageFault {
    /// What is wrong with the page at `at`, and what to do.
    pub(crate) fn text(self, at: HostVa) -> String {
        match self {
            Self::Hole => {
                format!("nothing is mapped at host address {at:?}: map the memory before it is declared")
            }
            Self::NoAccess { write: true } => {
                format!(
                    "the mapping at host address {at:?} is read-only: declare the region without write access"
                )
            }
            Self::NoAccess { write: false } => {
                format!("the mapping at host address {at:?} allows no access (PROT_NONE): allow reading")
            }
            Self::Device => format!(
                "host address {at:?} is device memory (VM_PFNMAP), which the kernel does not pin: type1 maps only BARs of \
                 VFIO devices, and iommufd only BARs that are named by their device's descriptor (Linux 6.19)"
            ),
            Self::Poisoned => format!(
                "the page at host address {at:?} has a memory error (EHWPOISON, see the kernel's log): map other memory \
                 there, for a huge page in place of all of it"
            ),
            Self::Bus => format!(
                "an access to host address {at:?} would raise SIGBUS: the file ends before this page, its file system has \
                 no space for the page, or the cgroup may have no more huge pages (hugetlb.*.max)"
            ),
        }
    }
}
