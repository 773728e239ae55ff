/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * libvfio_fast: DMA mappings of VFIO containers.
 *
 * The program declares the regions of memory that a device may access. The library compares them with what is mapped in
 * the container and makes only the map and unmap calls that are needed. It faults memory in on several threads, leaves
 * mappings that are already right in place, and rolls back if a call fails. What this file says about a container also
 * holds for an IOAS of iommufd.
 *
 *     struct vfio_fast_config config = {
 *         .size = sizeof(config),
 *         .backend = VFIO_FAST_BACKEND_TYPE1,
 *         .container_fd = container,           // VFIO_SET_IOMMU has succeeded
 *     };                                       // or BACKEND_IOMMUFD, .iommufd_fd, .ioas_id
 *     struct vfio_fast_region ram = {
 *         .size = sizeof(ram),
 *         .flags = VFIO_FAST_REGION_WRITE,
 *         .iova = 0,
 *         .length = ram_bytes,
 *         .hva = (uintptr_t)ram_pointer,
 *     };
 *     struct vfio_fast *vf = NULL;
 *     int ret = vfio_fast_open(&config, &vf);
 *     if (ret == 0) {
 *         ret = vfio_fast_begin(vf);
 *     }
 *     if (ret == 0) {
 *         ret = vfio_fast_map_region(vf, &ram);   // once for each region
 *     }
 *     if (ret == 0) {
 *         ret = vfio_fast_commit(vf, NULL);       // now the device can access them
 *     }
 *     if (ret < 0) {
 *         fprintf(stderr, "%s\n", vfio_fast_last_error());
 *     }
 *     vfio_fast_close(&vf);
 *
 * Link with `pkg-config --cflags --libs vfio_fast`. docs/ABI.md says which parts of the interface are stable.
 *
 *
 * CONVENTIONS
 *
 * Terms. A device address (IOVA) is an address that the device uses. A kernel entry is one mapping in the container. A
 * region is wanted from the call that maps it until the call that unmaps it, even before the transaction that contains
 * the call is committed.
 *
 * Returns. Functions that can fail return 0 or a negative errno. The errnos documented for a function keep their
 * meaning; the messages of vfio_fast_last_error() may change.
 *
 * Outputs. The memory that an output pointer points to is written only if the function returns 0. Exceptions are the
 * bitmaps of dirty pages and the pointer passed to vfio_fast_close(). There are no partial successes.
 *
 * Pointers. NULL returns -EINVAL unless the function allows it. Any other pointer must be valid until the call returns:
 * a handle comes from vfio_fast_open() and is not closed yet, a struct has as many bytes as its size field says, an
 * array as many numbers as its count says. Other threads do not change structs and arrays, or access outputs, during
 * the call.
 *
 * Ownership. The library owns handles and the strings that it returns; the caller owns everything else. Structs are
 * used only during the call. File descriptors are duplicated. Mapped memory belongs to the caller;
 * vfio_fast_map_region() says how long it must stay in place.
 *
 * Access. While a range is unmapped, by a call or by the commit of a transaction, what the device can access follows
 * one rule:
 *   - A kernel entry that has no byte in the range is not touched. The device can access it all the time.
 *   - A kernel entry that lies in the range is unmapped.
 *   - A kernel entry that the range cuts is unmapped, and its parts outside the range are mapped again before the call
 *     returns. In between, the device gets an error if it accesses these parts.
 * What a transaction unmaps and maps again without a change is not unmapped, unless it is VFIO_FAST_REGION_EXACT. No
 * kernel entry covers more than one region, or more than adjacent regions with VFIO_FAST_REGION_JOIN. So to unmap whole
 * regions without that flag never affects another region. A region with VFIO_FAST_REGION_EXACT is never cut.
 *
 * The size rule. Every struct begins with its size. The caller zeroes the struct and sets size to its sizeof. Later
 * versions add fields only at the end, and zero always selects the default.
 *   - Smaller than in the first release that had the struct: -EINVAL.
 *   - Larger than this library's struct: accepted for an input if all unknown bytes are zero, otherwise -E2BIG (the
 *     program uses a field that this library does not have). Unknown bytes of an output are set to zero.
 *   - Over 4096: -E2BIG; size was not set.
 * Unknown flag bits and unknown values of known fields are -EOPNOTSUPP.
 *
 * Common errors. A function that takes a handle may return -EINVAL if it is NULL, -EDEADLK if a log function calls it,
 * and -ENOTRECOVERABLE. A function that takes a struct may return -EINVAL, -E2BIG or -EOPNOTSUPP by the size rule. "A
 * common error" in the description of a function means these.
 *
 * Threads. Any thread may call any function. Handles do not affect each other. While a commit faults memory in and maps
 * it, which can take minutes, calls of other threads that read the state return at once, and so do calls that map or
 * unmap one entry elsewhere. All other calls on the handle wait for the commit. vfio_fast_get_stats() never waits. A
 * transaction belongs to the thread that opened it: until it is committed or aborted, a call of another thread that would
 * map, unmap or discard, or that begins, checks, commits or aborts a transaction, returns -EBUSY and changes nothing.
 * Reading calls and vfio_fast_close() are still possible. vfio_fast_close() must be the last call on its handle. The
 * library has threads of its own only during a call on a handle, or after vfio_fast_commit_background() until its job has
 * ended. It installs no signal handlers and calls log functions only on threads that call it. A thread that is
 * cancelled (pthread_cancel) inside a call ends after the call; its cancelability type must be PTHREAD_CANCEL_DEFERRED.
 * No function may be called from a signal handler, except vfio_fast_version() and vfio_fast_abi_version(). After fork(),
 * the child must not use the parent's handles.
 *
 * Failed commits. For a commit that fails, and a call outside a transaction that fails, one rule says what holds
 * afterwards, unless the handle is poisoned: what it added or unmapped is neither wanted nor mapped, and everything
 * else is wanted and mapped as before. There are two exceptions, which vfio_fast_last_error() names:
 *   - A kernel entry that cannot be unmapped stays mapped as a whole: if the kernel refuses (on iommufd, something
 *     else uses it), or if its rest could not be mapped again (-ENOSPC or -ENOMEM of a check: nothing was touched, and
 *     the device keeps access to all of it). leftover_entries in struct vfio_fast_info counts them.
 *   - A rest that the kernel refuses to map again stays wanted, but no device can access it. The call then returns
 *     that error, whatever failed first (VFIO_FAST_OP_MAP and the range of the rest). missing_bytes counts them.
 * Both are tried again by the next call or commit that touches their range, also by an unmap of what is not wanted,
 * and by vfio_fast_close(). The memory of an entry that stays mapped must stay in place until then. A call that fails
 * because an argument is wrong changes nothing.
 *
 * Background. vfio_fast_commit_background() returns before memory is mapped, and a job maps it. Until a range is
 * mapped, devices get an error if they access it, as for any other address that is not mapped; a driver that
 * waits with vfio_fast_wait() before it lets a device access memory never meets that.
 *
 * Poison. If an answer of the kernel contradicts what the library knows (another number of bytes was unmapped than was
 * mapped, or an unmap was -EINVAL), or a bug in the library is hit, what is mapped is no longer known. The call fails
 * and poisons the handle: from then on every function that takes the handle returns -ENOTRECOVERABLE, except
 * vfio_fast_get_stats(), vfio_fast_get_info() and vfio_fast_close(). A bug in the library neither unwinds into the
 * caller nor ends the program: the call that hits it returns -ENOTRECOVERABLE. If the library cannot allocate memory,
 * a call with a large array or list returns -ENOMEM, and any other call aborts the program (see docs/ABI.md).
 *
 * Units. Addresses and lengths are in bytes, times in nanoseconds. Errors in structs are negative errnos.
 *
 * Errnos.
 *   EINVAL           an argument is NULL, misaligned, empty or out of range, or the state does not allow the call
 *   E2BIG            a struct is larger than this library's and uses a field that this library does not have
 *   EOPNOTSUPP       a flag or value is unknown to this library, or the container does not support the operation
 *   EBUSY            a transaction is open, perhaps of another thread; memory to discard is mapped; on iommufd, something
 *                    else uses a mapping
 *   EEXIST           a region overlaps a wanted region
 *   ENOMEM           the locked-memory limit (RLIMIT_MEMLOCK) is too low, or memory ran out
 *   ENOSPC           the container has too few kernel entries left (dma_avail)
 *   EIO              the kernel did not unmap what was mapped: something else changed the container
 *   EDEADLK          a log function called a function that takes a handle
 *   ENOTRECOVERABLE  the handle is poisoned, or this call hit a bug in the library
 *   others           the errno from the kernel; see vfio_fast_failure.op for the operation that failed
 */


#ifndef VFIO_FAST_H
#define VFIO_FAST_H

/* Generated by `cargo xtask header` from ffi/src and ffi/cbindgen.toml. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * Major version of this header. Compare it with vfio_fast_version().
 */
#define VFIO_FAST_VERSION_MAJOR 0

/**
 * Minor version of this header.
 */
#define VFIO_FAST_VERSION_MINOR 1

/**
 * Patch version of this header.
 */
#define VFIO_FAST_VERSION_PATCH 0

/**
 * Version of the binary interface: the exported functions, the layout of the released fields and the meaning of the
 * constants. A program that loads the library at run time compares it with vfio_fast_abi_version().
 */
#define VFIO_FAST_ABI_VERSION 1u

/**
 * Backend: a VFIO container. VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU) has succeeded on its file descriptor.
 */
#define VFIO_FAST_BACKEND_TYPE1 1u

/**
 * Backend: an IOAS of an iommufd. Attach the device, or a hardware page table made from the IOAS, first: without one
 * the kernel only records mappings, and pins all of them on one thread when the first device is attached. Device
 * regions (VFIO_FAST_REGION_DEVICE) can be mapped only with VFIO_FAST_REGION_FD.
 */
#define VFIO_FAST_BACKEND_IOMMUFD 2u

/**
 * Backend FOR TESTS ONLY: an executable model of the type1v2 driver or of iommufd. It maps nothing, needs no file
 * descriptor and no privilege, and can be made to fail or to panic (struct vfio_fast_sim_config). The value is
 * 0x7e570001.
 */
#define VFIO_FAST_BACKEND_SIM 2119630849u

/**
 * Config flag: do not request huge pages (madvise(MADV_HUGEPAGE)) before RAM is faulted in. By default the library
 * requests them for writable regions of at least 2 MiB that are not completely present.
 */
#define VFIO_FAST_CONFIG_NO_HUGEPAGE (1u << 0)

/**
 * Log level: an error. The call that encounters it fails as well.
 */
#define VFIO_FAST_LOG_ERROR 1u

/**
 * Log level: the call succeeds, but something that the program may rely on does not work (peer-to-peer access to a
 * BAR).
 */
#define VFIO_FAST_LOG_WARN 2u

/**
 * Log level: information that an administrator may need once.
 */
#define VFIO_FAST_LOG_INFO 3u

/**
 * Log level: details for developers of this library.
 */
#define VFIO_FAST_LOG_DEBUG 4u

/**
 * Region flag: the device may write to the region. It may always read it.
 */
#define VFIO_FAST_REGION_WRITE (1u << 0)

/**
 * Region flag: device memory (a BAR of another device), not RAM. It is not faulted in and does not count against the
 * locked-memory limit, and RAM is mapped before it. If it cannot be mapped, or if RAM has used up the kernel entries,
 * a commit reports this in struct vfio_fast_outcome and does not fail. It does fail if the errno has another meaning,
 * such as -EEXIST (something else is mapped there), -ENOMEM, -EBADF, -EMFILE, -EBUSY or -EINTR.
 * Without the flag, the library recognises a region that is faulted in and turns out to be device memory, which costs
 * microseconds per kernel entry for a VFIO device on Linux 6.11 or later, and otherwise a read of /proc/self/smaps: a
 * millisecond or more. As long as a region with the same backing (not 0) is wanted, further ones need no such check.
 */
#define VFIO_FAST_REGION_DEVICE (1u << 1)

/**
 * Region flag: the region is exactly one kernel entry, never joined with a neighbour and never split. It can only be
 * unmapped as a whole. Unmapping and mapping it again in one transaction always reaches the kernel. Outside a
 * transaction, an exact region of less than 4 MiB of RAM is one kernel call: it is not faulted in before, and no huge
 * pages are requested for it.
 */
#define VFIO_FAST_REGION_EXACT (1u << 2)

/**
 * Region flag: fd, fd_offset and, for device memory, region_index identify the memory in addition to its address.
 * With them, iommufd can map files faster; it cannot map device memory without them. type1 ignores them. The region
 * needs a backing: all regions with one backing are parts of one file or BAR, and each byte of it has one host
 * virtual address.
 *
 * RAM must be a shared mapping of the file, which may be a memfd or any file on tmpfs or hugetlbfs, and the mapping
 * must permit the process what the region permits the device. The library asks the kernel whether it is so (Linux
 * 6.11). If not, or if the kernel does not map the file (before 6.13 it maps none), the library maps the region by its
 * address.
 *
 * Device memory is exported by the VFIO device as a dma-buf (Linux 6.19) and becomes one kernel entry, as if
 * VFIO_FAST_REGION_EXACT were set. It cannot be mapped while the device does not decode its memory, and the kernel
 * removes the mapping when decoding is turned off. Unmap the region when decoding is turned off, and map it again
 * when decoding is turned on.
 */
#define VFIO_FAST_REGION_FD (1u << 3)

/**
 * Region flag: kernel entries may cover this region and adjacent ones with the same flag, backing (not 0) and
 * permission that continue it in host memory. When a part of such an entry is unmapped, a device cannot access the
 * rest of it for a moment (see Access). Set it on regions that are parts of one memory object and that are
 * split and joined, as the sections of a RAM block are when a PC's firmware opens its shadow memory: what is still
 * wanted then stays mapped, whatever regions it is in. Without it, no kernel entry covers more than one region, and
 * unmapping the region never affects another one. Each region then takes at least one kernel entry, of which a type1
 * container has 65,535 (dma_avail). Ignored with VFIO_FAST_REGION_EXACT and VFIO_FAST_REGION_DEVICE.
 */
#define VFIO_FAST_REGION_JOIN (1u << 4)

/**
 * Memory flag: the memory is a shared mapping of a file (a memfd, tmpfs, hugetlbfs). Its pages are removed from the
 * file, for all of its users. Without this flag, the file keeps its contents.
 */
#define VFIO_FAST_MEMORY_SHARED (1u << 0)

/**
 * Cancel flag: what the job has mapped is unmapped, too.
 */
#define VFIO_FAST_CANCEL_UNMAP (1u << 0)

/**
 * Job: there was none yet.
 */
#define VFIO_FAST_JOB_NONE 0u

/**
 * Job: it works, or waits for another call or a transaction to end.
 */
#define VFIO_FAST_JOB_RUNNING 1u

/**
 * Job: it has mapped everything that was left to it and could be mapped.
 */
#define VFIO_FAST_JOB_DONE 2u

/**
 * Job: it has failed. vfio_fast_wait() returns the error.
 */
#define VFIO_FAST_JOB_FAILED 3u

/**
 * Job: it was cancelled.
 */
#define VFIO_FAST_JOB_CANCELLED 4u

/**
 * Info flag: the handle is poisoned. Functions that would change something return -ENOTRECOVERABLE (see Poison).
 */
#define VFIO_FAST_INFO_POISONED (1u << 0)

/**
 * Info flag: a transaction is open.
 */
#define VFIO_FAST_INFO_IN_TRANSACTION (1u << 1)

/**
 * Info flag: the threads of a commit map and unmap concurrently. Otherwise they only fault memory in, because the
 * kernel would serialise the calls.
 */
#define VFIO_FAST_INFO_PARALLEL (1u << 2)

/**
 * Info flag: the kernel charges the pinned memory of all processes of this user against RLIMIT_MEMLOCK. User space
 * cannot read that sum: memlock_used is only what this handle has mapped, and a commit that seems to fit may still
 * return -ENOMEM. Without this flag, memlock_used is the locked memory of this process (VmLck).
 */
#define VFIO_FAST_INFO_MEMLOCK_PER_USER (1u << 3)

/**
 * Number of elements of iova_list in struct vfio_fast_info.
 */
#define VFIO_FAST_IOVA_LIST 32u

/**
 * Superpages: only one page size of the IOMMU is known. iommufd reports no more.
 */
#define VFIO_FAST_SUPERPAGES_UNKNOWN 0u

/**
 * Superpages: a few sizes, one for each level of the page table, such as VT-d's 4 KiB, 2 MiB and 1 GiB. Memory that
 * is not contiguous over a whole large page, or not congruent to it (see congruent_2m_bytes in struct
 * vfio_fast_stats), is mapped with the next smaller size.
 */
#define VFIO_FAST_SUPERPAGES_COARSE 1u

/**
 * Superpages: every power of two, as in AMD-Vi's first page-table format. Any aligned, contiguous block is one page.
 */
#define VFIO_FAST_SUPERPAGES_FINE 2u

/**
 * Failed operation: none. No call of this thread has failed.
 */
#define VFIO_FAST_OP_NONE 0u

/**
 * Failed operation: opening the handle.
 */
#define VFIO_FAST_OP_OPEN 1u

/**
 * Failed operation: a check of arguments, of the state, or of the limits before a commit. The kernel was not asked
 * to map or unmap anything.
 */
#define VFIO_FAST_OP_CHECK 2u

/**
 * Failed operation: mapping.
 */
#define VFIO_FAST_OP_MAP 3u

/**
 * Failed operation: unmapping.
 */
#define VFIO_FAST_OP_UNMAP 4u

/**
 * Failed operation: querying what the kernel supports and how much of it is left.
 */
#define VFIO_FAST_OP_INFO 5u

/**
 * Failed operation: tracking or reading dirty pages.
 */
#define VFIO_FAST_OP_DIRTY 6u

/**
 * Failed operation: returning memory to the system.
 */
#define VFIO_FAST_OP_DISCARD 7u

/**
 * A handle. Its contents are private to the library.
 */
struct vfio_fast;

/**
 * Receives the log messages of one handle.
 *
 * - opaque: log_opaque of the configuration
 * - level: VFIO_FAST_LOG_*
 * - message: one line without a newline, valid only during the call. The wording may change in any release.
 *
 * It is called only on a thread that is inside a vfio_fast_* function with this handle, never on a thread of the
 * library. It must return normally (no longjmp, no C++ exception). It must not call a function that takes a handle:
 * such a call returns -EDEADLK, whichever handle it names. It may call the other functions.
 */
typedef void (*vfio_fast_log_fn)(void *opaque, uint32_t level, const char *message);

/**
 * Settings of VFIO_FAST_BACKEND_SIM, for tests. In every field except size, zero selects the default. Map and unmap
 * calls to the model are numbered together, from 1 on, since the handle was opened.
 */
struct vfio_fast_sim_config {
    /**
     * sizeof(struct vfio_fast_sim_config)
     */
    uint32_t size;
    /**
     * The errno, a positive number, that the call selected by fail_nth returns. Default: EIO.
     */
    uint32_t fail_errno;
    /**
     * Number of the call that fails. Default: none.
     */
    uint64_t fail_nth;
    /**
     * Number of the call that panics inside the library. Default: none.
     */
    uint64_t panic_nth;
    /**
     * Maximum number of kernel entries in the model. Default: 65535, as in the kernel.
     */
    uint64_t dma_avail;
    /**
     * Bytes that the process may lock, as if set with RLIMIT_MEMLOCK. Default: no limit.
     */
    uint64_t memlock_limit;
    /**
     * The driver that the model imitates: VFIO_FAST_BACKEND_TYPE1 or VFIO_FAST_BACKEND_IOMMUFD. Any other value is
     * -EOPNOTSUPP. Default: type1.
     */
    uint32_t backend;
    /**
     * Number of bits of the addresses that the model translates, 33 to 64, except those of interrupts from 0xfee00000
     * to 0xfeefffff, as VT-d has them. Any other value is -EOPNOTSUPP. Default: the model translates all addresses and
     * reports no ranges.
     */
    uint32_t iova_bits;
};

/**
 * How to open a handle. Set it to zero, then set size, backend and the fields that the backend needs.
 */
struct vfio_fast_config {
    /**
     * sizeof(struct vfio_fast_config)
     */
    uint32_t size;
    /**
     * VFIO_FAST_CONFIG_*, or 0. Unknown bits are -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * VFIO_FAST_BACKEND_*. Any other value is -EOPNOTSUPP.
     */
    uint32_t backend;
    /**
     * VFIO_FAST_BACKEND_TYPE1: the container. The library duplicates the descriptor; the caller may close its own
     * once vfio_fast_open() has returned. Other backends ignore this field.
     */
    int32_t container_fd;
    /**
     * Maximum size of a kernel entry in bytes: a power of two, at least 2 MiB. 0: 1 GiB. A commit uses a larger
     * size if the container has too few entries left.
     */
    uint64_t entry_size;
    /**
     * Maximum number of threads that work during a commit. They fault memory in and, with VFIO_FAST_INFO_PARALLEL,
     * map and unmap. There are never more than CPUs that they may run on (see cpu_set), because more threads are
     * slower. 0: one for each of these CPUs, but not more than the cgroup's CPU quota.
     */
    uint32_t threads;
    /**
     * The most verbose level that is passed to log, VFIO_FAST_LOG_*. 0: none. Any other value is -EOPNOTSUPP.
     */
    uint32_t log_level;
    /**
     * Receives log messages. NULL: no messages.
     */
    vfio_fast_log_fn log;
    /**
     * Passed to log unchanged. It must stay usable until vfio_fast_close() has returned. May be NULL.
     */
    void *log_opaque;
    /**
     * VFIO_FAST_BACKEND_SIM: its settings, read only during vfio_fast_open(). NULL: the defaults. Must be NULL with
     * other backends.
     */
    const struct vfio_fast_sim_config *sim;
    /**
     * VFIO_FAST_BACKEND_IOMMUFD: an open file descriptor of /dev/iommu. The library duplicates it; the caller may
     * close its own once vfio_fast_open() has returned. Other backends ignore this field.
     */
    int32_t iommufd_fd;
    /**
     * VFIO_FAST_BACKEND_IOMMUFD: the IOAS to map in, as returned by IOMMU_IOAS_ALLOC. The caller destroys it after
     * vfio_fast_close(). Other backends ignore this field.
     */
    uint32_t ioas_id;
    /**
     * Maximum number of kernel entries that one unmap call removes. 0: as many as the time of the calls allows, first
     * 64, then more while calls take about a millisecond or less, and fewer (but at least 64) after a call of more
     * than four. A call that removes more than one entry also removes at most 4 GiB: the kernel unpins every page, and
     * other users of the container wait until the call ends. With VFIO_FAST_INFO_PARALLEL several threads share
     * the calls, each for at most 1 GiB or one entry.
     */
    uint32_t max_unmap_entries;
    /**
     * Number of addresses in cuts.
     */
    uint32_t cut_count;
    /**
     * IOVAs at which kernel entries are always cut, in addition to the multiples of entry_size: multiples of the
     * smallest IOMMU page, in any order, read only during vfio_fast_open(). May be NULL if cut_count is 0. Name an
     * address if regions are often split and joined there: what is on the other side of the cut then stays mapped.
     * An example is 1 MiB, below which the firmware of a PC has its shadow memory. A cut costs the superpage that
     * contains it: with a cut at 1 MiB, the first 2 MiB take 512 entries of 4 KiB in the IOMMU's page table instead
     * of one of 2 MiB, and the first 1 GiB cannot be one entry of 1 GiB. Exact regions are not cut.
     */
    const uint64_t *cuts;
    /**
     * CPUs that the library's threads run on, in the format of sched_setaffinity(2), read only during
     * vfio_fast_open(). The calling thread is not moved. CPUs that the machine does not have are ignored. NULL: the
     * CPUs of the process's main thread, or those of the calling thread if these are more.
     */
    const void *cpu_set;
    /**
     * Size of cpu_set in bytes. Must be 0 if cpu_set is NULL.
     */
    uint64_t cpu_set_size;
};

/**
 * A region of memory that the device may access.
 */
struct vfio_fast_region {
    /**
     * sizeof(struct vfio_fast_region)
     */
    uint32_t size;
    /**
     * VFIO_FAST_REGION_*, or 0. Unknown bits are -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * First device address, a multiple of the smallest IOMMU page (see iova_pgsizes in struct vfio_fast_info).
     */
    uint64_t iova;
    /**
     * Length in bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64, which is 0
     * in a uint64_t, but not more.
     */
    uint64_t length;
    /**
     * Host virtual address of the first byte, a multiple of the smallest IOMMU page. The memory must stay mapped at
     * this address until the region is unmapped. The library never frees it.
     */
    uint64_t hva;
    /**
     * Identifies the memory object that the region is a part of, by a number that the caller chooses. 0: unknown. An
     * object is RAM or device memory, as a whole.
     * With VFIO_FAST_REGION_JOIN, adjacent regions share kernel entries only if their backing is equal and not 0.
     */
    uint64_t backing;
    /**
     * VFIO_FAST_REGION_FD: the file that the region maps or, with VFIO_FAST_REGION_DEVICE, the VFIO device that the
     * BAR belongs to. The library duplicates it; the caller may close its own once the call has returned. Descriptors
     * of one device are duplicates of one another. Ignored without the flag.
     */
    int32_t fd;
    /**
     * VFIO_FAST_REGION_FD and VFIO_FAST_REGION_DEVICE: VFIO's index of the BAR (VFIO_PCI_BAR0_REGION_INDEX and so
     * on). Ignored otherwise.
     */
    uint32_t region_index;
    /**
     * VFIO_FAST_REGION_FD: offset of the region in the file or the BAR, in bytes, a multiple of the smallest IOMMU
     * page. Ignored without the flag.
     */
    uint64_t fd_offset;
};

/**
 * A range of device addresses.
 */
struct vfio_fast_range {
    /**
     * sizeof(struct vfio_fast_range)
     */
    uint32_t size;
    /**
     * Must be 0. Any other value is -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * First device address, a multiple of the smallest IOMMU page.
     */
    uint64_t iova;
    /**
     * Length in bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64 but not more.
     */
    uint64_t length;
};

/**
 * Pages to map or to unmap: an array of device addresses and an array of host addresses.
 */
struct vfio_fast_pages {
    /**
     * sizeof(struct vfio_fast_pages)
     */
    uint32_t size;
    /**
     * VFIO_FAST_REGION_WRITE and VFIO_FAST_REGION_JOIN, or 0. Other bits are -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * Number of pages. If it is 0, the call has no effect and the arrays may be NULL.
     */
    uint64_t count;
    /**
     * Device address of each page, a multiple of the smallest IOMMU page (see iova_pgsizes in struct
     * vfio_fast_info), which is also the size of each page.
     */
    const uint64_t *iovas;
    /**
     * Host virtual address of each page, a multiple of the smallest IOMMU page. Ignored when unmapping.
     */
    const uint64_t *hvas;
    /**
     * Identifies the memory object that the pages are a part of, as in struct vfio_fast_region. Ignored when
     * unmapping.
     */
    uint64_t backing;
};

/**
 * What one commit did.
 */
struct vfio_fast_outcome {
    /**
     * sizeof(struct vfio_fast_outcome), set by the caller and not changed
     */
    uint32_t size;
    /**
     * Number of device regions that could not be mapped: VFIO_FAST_REGION_DEVICE, or declared as RAM and found to be
     * device memory. Peer-to-peer access to them does not work. They are not tried again until the caller unmaps and
     * maps them.
     */
    uint32_t device_failures;
    /**
     * First device address of the first such region. A region that was declared as RAM comes before all others: if
     * this one has VFIO_FAST_REGION_DEVICE, all of them have. 0 if there is none.
     */
    uint64_t device_iova;
    /**
     * Length of the first such region in bytes. 0 if there is none.
     */
    uint64_t device_length;
    /**
     * Host virtual address of the first such region. 0 if there is none.
     */
    uint64_t device_hva;
    /**
     * Negative errno of the map call for the first such region. 0 if there is none.
     */
    int32_t device_error;
    /**
     * Number of map calls that succeeded.
     */
    uint32_t map_calls;
    /**
     * Number of unmap calls that succeeded.
     */
    uint32_t unmap_calls;
    /**
     * Number of kernel entries that the transaction touched but left in place because they were already right.
     */
    uint32_t kept_entries;
    /**
     * Bytes mapped by the map calls.
     */
    uint64_t map_bytes;
    /**
     * Bytes unmapped by the unmap calls.
     */
    uint64_t unmap_bytes;
    /**
     * Bytes in the entries left in place.
     */
    uint64_t kept_bytes;
    /**
     * Duration of the commit in nanoseconds of wall time.
     */
    uint64_t ns;
};

/**
 * How far a job in the background is.
 */
struct vfio_fast_progress {
    /**
     * sizeof(struct vfio_fast_progress), set by the caller and not changed
     */
    uint32_t size;
    /**
     * VFIO_FAST_JOB_*
     */
    uint32_t state;
    /**
     * Bytes that the job has mapped and has still to map. Less after something was unmapped or refused.
     */
    uint64_t wanted_bytes;
    /**
     * Bytes of these that are in memory as far as the job has looked. Can go down when the job was paused.
     */
    uint64_t present_bytes;
    /**
     * Bytes of these that the job has mapped.
     */
    uint64_t mapped_bytes;
    /**
     * Number of threads that work for the job, or 0.
     */
    uint64_t threads;
    /**
     * Nanoseconds since the job began, or from its beginning to its end.
     */
    uint64_t elapsed_ns;
    /**
     * An estimate of the nanoseconds that are left. UINT64_MAX: not known yet.
     */
    uint64_t left_ns;
};

/**
 * A range of memory of this process.
 */
struct vfio_fast_memory {
    /**
     * sizeof(struct vfio_fast_memory)
     */
    uint32_t size;
    /**
     * VFIO_FAST_MEMORY_*, or 0. Unknown bits are -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * Host virtual address of the first byte, a multiple of the system's page size.
     */
    uint64_t hva;
    /**
     * Length in bytes, a multiple of the system's page size, not 0.
     */
    uint64_t length;
};

/**
 * A range of device addresses and a bitmap of its pages.
 */
struct vfio_fast_dirty {
    /**
     * sizeof(struct vfio_fast_dirty)
     */
    uint32_t size;
    /**
     * Must be 0. Any other value is -EOPNOTSUPP.
     */
    uint32_t flags;
    /**
     * First device address, a multiple of page_size.
     */
    uint64_t iova;
    /**
     * Length in bytes, a multiple of page_size, not 0.
     */
    uint64_t length;
    /**
     * Bytes in a page, which must be the smallest IOMMU page (see iova_pgsizes in struct vfio_fast_info).
     */
    uint64_t page_size;
    /**
     * The bitmap, one bit for each page: page n is bit n % 64 of word n / 64.
     */
    uint64_t *bits;
    /**
     * Number of words in bits.
     */
    uint64_t words;
};

/**
 * A kernel entry: an element of the list that one process sends to another one to hand its entries over. It does not
 * grow in later releases.
 */
struct vfio_fast_entry {
    /**
     * First device address.
     */
    uint64_t iova;
    /**
     * Length in bytes.
     */
    uint64_t length;
    /**
     * VFIO_FAST_REGION_WRITE, or 0. Unknown bits are -EOPNOTSUPP.
     */
    uint64_t flags;
};

/**
 * Totals since the handle was opened: calls, bytes and nanoseconds. Fields described with "now" hold the present
 * state instead.
 */
struct vfio_fast_stats {
    /**
     * sizeof(struct vfio_fast_stats), set by the caller and not changed
     */
    uint32_t size;
    /**
     * Always 0.
     */
    uint32_t reserved;
    /**
     * Successful commits that touched something, including single calls outside a transaction.
     */
    uint64_t commits;
    /**
     * Commits that touched nothing, including single calls outside a transaction.
     */
    uint64_t empty_commits;
    /**
     * Commits that failed.
     */
    uint64_t failed_commits;
    /**
     * Regions wanted now.
     */
    uint64_t regions;
    /**
     * Bytes wanted now.
     */
    uint64_t wanted_bytes;
    /**
     * Kernel entries now.
     */
    uint64_t entries;
    /**
     * Bytes mapped now.
     */
    uint64_t mapped_bytes;
    /**
     * Map calls that succeeded.
     */
    uint64_t map_calls;
    /**
     * Bytes that these calls mapped.
     */
    uint64_t map_bytes;
    /**
     * Unmap calls that succeeded.
     */
    uint64_t unmap_calls;
    /**
     * Bytes that these calls unmapped.
     */
    uint64_t unmap_bytes;
    /**
     * Kernel entries that transactions touched but left in place.
     */
    uint64_t kept_entries;
    /**
     * Bytes in these entries.
     */
    uint64_t kept_bytes;
    /**
     * Nanoseconds spent comparing what is wanted with what is mapped.
     */
    uint64_t plan_ns;
    /**
     * Nanoseconds of wall time that the threads that called commits spent faulting memory in, whatever the number of
     * other threads. This excludes map calls that they made in between. Without VFIO_FAST_INFO_PARALLEL, the sum of
     * populate_ns and map_ns is the time that mapping took.
     */
    uint64_t populate_ns;
    /**
     * Nanoseconds spent in map calls. Concurrent calls count separately, so the sum can exceed the duration of the
     * commits.
     */
    uint64_t map_ns;
    /**
     * Nanoseconds spent in unmap calls. Concurrent calls count separately, so the sum can exceed the duration of the
     * commits.
     */
    uint64_t unmap_ns;
    /**
     * Calls that faulted memory in (madvise, or buffers of io_uring).
     */
    uint64_t populate_calls;
    /**
     * Bytes that these calls faulted in.
     */
    uint64_t populate_bytes;
    /**
     * Bytes that were already present and therefore skipped.
     */
    uint64_t populate_present;
    /**
     * Bytes of the memory that was faulted in or found present that are in huge pages (transparent or hugetlbfs).
     */
    uint64_t populate_huge;
    /**
     * Bytes of the same memory that are in base pages. Mapping them takes about ten times as long. If the
     * configuration of the host prevents huge pages, the log says so. populate_huge and populate_small are 0 if the
     * kernel cannot report them (before Linux 6.7).
     */
    uint64_t populate_small;
    /**
     * Bytes left to the map call because faulting them in did not work. The next five fields count the chunks that
     * failed, by errno.
     */
    uint64_t populate_skipped;
    /**
     * EINVAL: the memory cannot be faulted in.
     */
    uint64_t populate_einval;
    /**
     * EFAULT
     */
    uint64_t populate_efault;
    /**
     * ENOMEM
     */
    uint64_t populate_enomem;
    /**
     * EHWPOISON
     */
    uint64_t populate_ehwpoison;
    /**
     * Any other errno.
     */
    uint64_t populate_other;
    /**
     * Worker threads that could not be started. The other threads did their work.
     */
    uint64_t thread_start_failures;
    /**
     * Maximum number of threads that faulted memory in for one commit, including the caller's.
     */
    uint64_t threads_peak;
    /**
     * Device regions that the kernel refused to map.
     */
    uint64_t device_failures;
    /**
     * Failed commits that were rolled back.
     */
    uint64_t rollbacks;
    /**
     * Commits refused because a limit was too low: before any map or unmap call, or, if a commit maps less than 4 MiB,
     * after the kernel has refused one with ENOMEM.
     */
    uint64_t preflight_refusals;
    /**
     * Bytes mapped now with device and host addresses equal modulo 2 MiB, so that 2 MiB pages can map them.
     */
    uint64_t congruent_2m_bytes;
    /**
     * Bytes mapped now with device and host addresses equal modulo 1 GiB, so that 1 GiB pages can map them.
     */
    uint64_t congruent_1g_bytes;
    /**
     * Bytes that were unmapped and mapped again unchanged because another part of their kernel entry had to be
     * removed. No device could access them in between.
     */
    uint64_t remapped_bytes;
    /**
     * Nanoseconds of the longest unmap call: about the longest time that other users of the container had to wait.
     */
    uint64_t max_unmap_ns;
    /**
     * Large pages of the IOMMU now, VFIO_FAST_SUPERPAGES_*.
     */
    uint64_t superpages;
    /**
     * Bytes returned to the system by vfio_fast_discard().
     */
    uint64_t discard_bytes;
    /**
     * Nanoseconds of wall time spent in vfio_fast_discard().
     */
    uint64_t discard_ns;
};

/**
 * A range of device addresses that the IOMMU translates.
 */
struct vfio_fast_iova_range {
    /**
     * First address.
     */
    uint64_t first;
    /**
     * Last address (inclusive).
     */
    uint64_t last;
};

/**
 * The state of a handle and the properties of its IOMMU.
 */
struct vfio_fast_info {
    /**
     * sizeof(struct vfio_fast_info), set by the caller and not changed
     */
    uint32_t size;
    /**
     * VFIO_FAST_INFO_*
     */
    uint32_t flags;
    /**
     * VFIO_FAST_BACKEND_*, from the configuration.
     */
    uint32_t backend;
    /**
     * Maximum number of threads that work during a commit.
     */
    uint32_t threads;
    /**
     * Page sizes of the IOMMU: bit n is set if it has pages of 2^n bytes. The lowest set bit is the smallest IOMMU
     * page, the alignment of every address and length.
     */
    uint64_t iova_pgsizes;
    /**
     * Maximum size of a kernel entry in bytes, as configured. A commit uses a larger size if the container has too few
     * entries left.
     */
    uint64_t entry_size;
    /**
     * Number of entries that the kernel would still accept. UINT64_MAX: no limit.
     */
    uint64_t dma_avail;
    /**
     * Lowest valid device address.
     */
    uint64_t iova_first;
    /**
     * Highest valid device address (inclusive).
     */
    uint64_t iova_last;
    /**
     * Number of ranges of valid device addresses between iova_first and iova_last (see iova_list). 0: the kernel does
     * not report them, and all addresses are assumed to be valid.
     */
    uint64_t iova_ranges;
    /**
     * Bytes that this process may lock. UINT64_MAX: no limit.
     */
    uint64_t memlock_limit;
    /**
     * Bytes locked now by this process or, with VFIO_FAST_INFO_MEMLOCK_PER_USER, mapped by this handle.
     */
    uint64_t memlock_used;
    /**
     * Maximum number of bytes that one unmap call removes, unless a single entry is larger.
     */
    uint64_t max_unmap_bytes;
    /**
     * Maximum number of entries that one unmap call removes, from the configuration. 0: it depends on the time of the
     * calls.
     */
    uint32_t max_unmap_entries;
    /**
     * Large pages of the IOMMU now, VFIO_FAST_SUPERPAGES_*.
     */
    uint32_t superpages;
    /**
     * The ranges of valid device addresses, ascending: the first min(iova_ranges, VFIO_FAST_IOVA_LIST) elements, then
     * zeros. RAM outside them cannot be mapped. They change when devices join or leave the container.
     */
    struct vfio_fast_iova_range iova_list[VFIO_FAST_IOVA_LIST];
    /**
     * Number of ranges that did not fit into iova_list, all above its last one. Use only what is listed, or
     * VFIO_IOMMU_GET_INFO or IOMMU_IOAS_IOVA_RANGES for all of them.
     */
    uint64_t iova_ranges_left_out;
    /**
     * Kernel entries that are mapped now although they are not wanted as a whole, because they could not be unmapped
     * (see Failed commits). To try again, unmap their range again; until then keep the memory in place.
     */
    uint64_t leftover_entries;
    /**
     * Bytes of RAM that are wanted now and not mapped, because they could not be mapped again after a failure (see
     * Failed commits). No device can access them.
     */
    uint64_t missing_bytes;
};

/**
 * The last failure of the calling thread, in numbers. vfio_fast_last_error() describes it in words.
 */
struct vfio_fast_failure {
    /**
     * sizeof(struct vfio_fast_failure), set by the caller and not changed
     */
    uint32_t size;
    /**
     * The operation that failed, VFIO_FAST_OP_*.
     */
    uint32_t op;
    /**
     * The negative errno that the call returned. 0: no call of this thread has failed.
     */
    int32_t error;
    /**
     * Always 0.
     */
    uint32_t reserved;
    /**
     * First device address of the region or kernel entry that the failure is about. 0 with length 0: none.
     */
    uint64_t iova;
    /**
     * Its length in bytes. 0: the failure is about none, or about the whole address space of 2^64 bytes. -ENOSPC before
     * a map call is about none: all entries of the container are the reason. The message says what holds them.
     */
    uint64_t length;
    /**
     * Host virtual address of its first byte. 0: none or unknown.
     */
    uint64_t hva;
    /**
     * The value that a limit would have to allow: the total of locked bytes (RLIMIT_MEMLOCK), the number of entries to
     * add (dma_avail), or the bytes that a file system would have to hold. 0: no limit was exceeded.
     */
    uint64_t needed;
    /**
     * The value that this limit allows, in the same unit.
     */
    uint64_t available;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens a handle on a container in which nothing is mapped yet. Starts no thread.
 *
 * - config: how to open it; read only during the call
 * - out: receives the handle. Close it with vfio_fast_close().
 *
 * # Returns
 * 0, or
 * - -EINVAL: config or out is NULL; a struct is too short; entry_size is not a power of two or is below 2 MiB; cuts
 *   is NULL or misaligned, or a cut is not a multiple of the smallest IOMMU page; cpu_set contains no CPU; sim is set
 *   and the backend is not VFIO_FAST_BACKEND_SIM; the container has no IOMMU type
 * - -E2BIG: a struct is too long
 * - -EOPNOTSUPP: unknown backend, flags or log_level; a reserved field is not 0
 * - -ENOENT: the iommufd has no IOAS with this ioas_id
 * - -EBADF, -ENOTTY, -EMFILE or another errno from the kernel: container_fd or iommufd_fd is not open, is not what
 *   the backend needs, or cannot be duplicated
 *
 * # Threads
 * Any thread.
 *
 * # Safety
 * See Pointers; out points to a pointer. Until vfio_fast_close() has returned, config->log may be called with
 * log_opaque on any thread that calls into the handle.
 */
int vfio_fast_open(const struct vfio_fast_config *config,
                   struct vfio_fast **out);

/**
 * Closes a handle: unmaps everything that is still mapped, frees the handle and sets *vf to NULL.
 *
 * An open transaction is discarded. Closing a poisoned handle unmaps everything in its container. The handle is gone
 * even if the call fails, except with -EDEADLK.
 *
 * Close the handle before the last group leaves a type1 container, or after: the kernel then unmaps everything when the
 * group leaves, and this call returns 0. In between, calls that map or unmap fail with -EINVAL. With iommufd, the last
 * device may be detached before or after.
 *
 * - vf: points to the handle. NULL, or a pointer to NULL, is allowed and has no effect.
 *
 * # Returns
 * 0, or
 * - a negative errno, that of the first unmap call that failed: the handle is gone, but a device may still access
 *   memory until the container itself is closed. vfio_fast_last_error() names what is still mapped.
 * - -ENOTRECOVERABLE: a bug in the library, with the same consequences
 * - -EDEADLK: called from a log function; nothing was done
 *
 * # Threads
 * Any thread, but no other call on the handle may be running or follow.
 *
 * # Safety
 * vf is NULL or points to a pointer that is NULL or a handle that is not closed yet.
 */
int vfio_fast_close(struct vfio_fast **vf);

/**
 * Maps a region for DMA.
 *
 * Outside a transaction the device can access the region once this call returns; inside one, once vfio_fast_commit()
 * succeeds. If the call fails, no part of the region is mapped or wanted.
 *
 * - vf: the handle
 * - region: the region to map; read only during the call
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: iova, length or hva is not a multiple of the smallest IOMMU page; length is 0; the region extends past
 *   the end of an address space
 * - -EINVAL, with VFIO_FAST_REGION_FD on a backend that uses it: fd_offset is not a multiple of the smallest IOMMU
 *   page; backing is 0; other regions with this backing have a different file or BAR, or different offsets in it
 * - -EBADF, -EMFILE: fd is not open or cannot be duplicated
 * - -EEXIST: the region overlaps a wanted region
 * - outside a transaction: any error of vfio_fast_commit(), and for device memory the errno from the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers. From this call until the region is unmapped, or until vfio_fast_close() has returned 0, the memory
 * at region->hva stays mapped to the same pages, and the device may read it, and with VFIO_FAST_REGION_WRITE write
 * it, at any time.
 */
int vfio_fast_map_region(struct vfio_fast *vf,
                         const struct vfio_fast_region *region);

/**
 * Unmaps everything in a range of device addresses.
 *
 * Outside a transaction no device can access the range once this call returns; inside one, once vfio_fast_commit()
 * succeeds. It is not an error if nothing is mapped in the range.
 *
 * Regions that lie only partly in the range keep the rest. If the range ends inside a kernel entry, the library
 * unmaps the whole entry and maps the rest again; a device that accesses the rest in between gets an error (see
 * Access). remapped_bytes in struct vfio_fast_stats counts the rest.
 *
 * If the unmap itself fails, the range is not wanted any more, but may still be mapped (see Failed commits). The same
 * call then tries again.
 *
 * - vf: the handle
 * - range: the range to unmap; read only during the call
 * - unmapped: receives the number of bytes in the range that were wanted. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: iova or length is not a multiple of the smallest IOMMU page; length is 0; the range extends past 2^64;
 *   the range covers only a part of a region with VFIO_FAST_REGION_EXACT
 * - outside a transaction: any error of vfio_fast_commit()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_unmap(struct vfio_fast *vf,
                    const struct vfio_fast_range *range,
                    uint64_t *unmapped);

/**
 * Maps an array of pages of RAM for DMA, each as large as the smallest IOMMU page.
 *
 * Outside a transaction the device can access the pages once this call returns; inside one, once vfio_fast_commit()
 * succeeds. If the call fails, no page of the array is mapped or wanted.
 *
 * Pages that are consecutive in the array, in device addresses and in host memory become one region, which takes one
 * map call and one kernel entry: device pages {1, 5, 6, 7, 9} at corresponding host addresses take three. With
 * VFIO_FAST_REGION_JOIN and a backing other than 0, adjacent pages share entries whatever their order in the array,
 * and also with regions of other calls that have the flag.
 *
 * - vf: the handle
 * - pages: the pages to map; read, with its arrays, only during the call
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: an array is NULL, misaligned, or larger than the address space; an address is not a multiple of the
 *   smallest IOMMU page
 * - -EEXIST: a page overlaps a wanted region or is in the array twice
 * - outside a transaction: any error of vfio_fast_commit()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers; the arrays are NULL or hold count numbers. The memory of each page is subject to the rules of
 * vfio_fast_map_region().
 */
int vfio_fast_map_pages(struct vfio_fast *vf,
                        const struct vfio_fast_pages *pages);

/**
 * Unmaps an array of pages, each as large as the smallest IOMMU page, whichever call mapped them.
 *
 * Outside a transaction no device can access the pages once this call returns; inside one, once vfio_fast_commit()
 * succeeds. An invalid page makes the call fail before any page is unmapped. A page that is not wanted is not an
 * error.
 *
 * Adjacent kernel entries are unmapped in one call. If a page is only a part of a kernel entry, the library unmaps
 * the whole entry and maps the rest again; a device that accesses the rest in between gets an error (see Access).
 * remapped_bytes in struct vfio_fast_stats counts the rest.
 *
 * - vf: the handle
 * - pages: the pages to unmap; read, with its array iovas, only during the call
 * - unmapped: receives the number of bytes in the pages that were wanted. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: the array is NULL, misaligned, or larger than the address space; an address is not a multiple of the
 *   smallest IOMMU page; a page is only a part of a region with VFIO_FAST_REGION_EXACT
 * - outside a transaction: any error of vfio_fast_commit()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers; the array iovas is NULL or holds count numbers.
 */
int vfio_fast_unmap_pages(struct vfio_fast *vf,
                          const struct vfio_fast_pages *pages,
                          uint64_t *unmapped);

/**
 * Opens a transaction of the calling thread.
 *
 * Until this thread calls vfio_fast_commit() or vfio_fast_abort(), its calls that map and unmap only check their
 * arguments and change which regions are wanted; they make no map or unmap call. Other threads cannot take part: their
 * calls that would change something return -EBUSY. If the thread ends first, the handle can only be read and closed.
 *
 * - vf: the handle
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: a transaction is already open, of this thread or of another one
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_begin(struct vfio_fast *vf);

/**
 * Executes the open transaction: makes the mappings in the kernel match the wanted regions.
 *
 * It checks the limits, faults memory in, unmaps and maps. It leaves kernel entries that are already right in place.
 * After it has returned 0, no device can access memory that is not wanted, except what an earlier call could not unmap
 * and this one did not touch (leftover_entries in struct vfio_fast_info).
 *
 * On failure, the commit is rolled back: what holds then is described under Failed commits. The call returns the errno
 * of the first failure, except where wanted memory is not mapped any more, and the transaction is closed. If outcome is
 * not valid (-EINVAL, -E2BIG), nothing is done and the transaction stays open.
 *
 * A device region that cannot be mapped does not make the commit fail (VFIO_FAST_REGION_DEVICE says which errnos mean
 * this). It is reported in outcome and by a message at VFIO_FAST_LOG_WARN.
 *
 * - vf: the handle
 * - outcome: receives what the commit did. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: another thread has a transaction open
 * - -EINVAL: no transaction is open; RAM lies outside the device addresses that the IOMMU can translate
 * - -ENOMEM: the locked-memory limit is too low (vfio_fast_last_error() says what is needed, what is allowed and
 *   what to raise), or the kernel ran out of memory
 * - -ENOSPC: the container has too few kernel entries left (dma_avail), for RAM that the transaction adds or for the rest
 *   of an entry that it unmaps in part
 * - -EIO: the kernel did not unmap as many bytes as were mapped: something else changed the container
 * - another errno from a map or unmap call of the kernel, such as -EFAULT
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
 * before it returns.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_commit(struct vfio_fast *vf,
                     struct vfio_fast_outcome *outcome);

/**
 * Checks the open transaction against every limit that can be known, and changes nothing.
 *
 * A program can refuse a change before it happens: open a transaction, map what the change would map, call this, and
 * call vfio_fast_abort(). The transaction stays open in any case. A later commit can still fail: limits change, other
 * processes use them too, and some only the kernel knows.
 *
 * It checks what vfio_fast_commit() checks. In addition it checks RLIMIT_MEMLOCK however little is mapped, and whether
 * the kernel pins the pages of the file system behind shared memory.
 *
 * - vf: the handle
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: another thread has a transaction open
 * - -EINVAL: no transaction is open; RAM lies outside the device addresses that the IOMMU can translate
 * - -ENOMEM: the locked-memory limit is too low
 * - -ENOSPC: the container has too few kernel entries left for RAM (dma_avail)
 * - -EFAULT: the file system behind shared memory has too little space left, or the kernel does not pin its pages
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_check(struct vfio_fast *vf);

/**
 * Discards the open transaction: the wanted regions are again those from before vfio_fast_begin(). Makes no map or
 * unmap call.
 *
 * - vf: the handle
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: another thread has a transaction open
 * - -EINVAL: no transaction is open
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_abort(struct vfio_fast *vf);

/**
 * Like vfio_fast_commit(), but leaves what is to be mapped to a job in the background.
 *
 * When it returns 0, the limits were checked, what is no longer wanted is unmapped, and what was mapped before and is
 * still wanted is mapped. The rest is left to the job: a thread of the library faults it in and maps it. The job uses
 * as many threads as a commit, except that it leaves one CPU to the program until vfio_fast_wait() is called. No device
 * can access a region before the job has mapped it; vfio_fast_wait() and vfio_fast_completion_fd() say when. The memory
 * must stay in place as for any other region.
 *
 * An example: a program that starts while its memory is mapped.
 *
 * ```c
 * ret = vfio_fast_begin(vf);
 * // vfio_fast_map_region() for each region
 * ret = ret < 0 ? ret : vfio_fast_commit_background(vf, NULL);
 * // Everything that needs no DMA: load firmware, set up the device
 * ret = ret < 0 ? ret : vfio_fast_wait(vf, 0, 0, UINT64_MAX);
 * if (ret == 0) {
 *     // now the device may be told to access memory
 * }
 * ```
 *
 * While a job works, every function can be called. One that has to wait for commits pauses the job, which takes as long
 * as one entry of at most 128 MiB for each thread (or a page of the memory, if that is larger), and the job goes on
 * afterwards; it does not work while a transaction is open. vfio_fast_commit() and calls outside transactions have
 * mapped what they add when they return. What is unmapped is not mapped or accessed afterwards. Limits are checked with
 * what the job has still to map. If a job runs already, it takes over what this commit adds.
 *
 * If the job fails, it ends: what it has mapped stays, and vfio_fast_wait() returns the error. The next
 * vfio_fast_commit_background() tries the rest again, whatever it adds; vfio_fast_cancel() gives it up.
 *
 * - vf: the handle
 * - outcome: receives what the commit did before it returned. May be NULL.
 *
 * # Returns
 * 0, a common error, or any error of vfio_fast_commit() and vfio_fast_check()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call starts a thread that ends with the job and blocks all
 * signals. If it cannot be started, this call maps everything before it returns.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_commit_background(struct vfio_fast *vf,
                                struct vfio_fast_outcome *outcome);

/**
 * Waits until the job in the background has mapped a range, or everything.
 *
 * If something is left, the job uses as many threads as a commit from then on, also if the timeout is 0. A program that
 * only shows how far the job is calls vfio_fast_get_progress().
 *
 * - vf: the handle
 * - iova, length: the range; it need not be aligned. If length is 0, everything.
 * - timeout_ns: maximum time to wait in nanoseconds. 0: does not wait. UINT64_MAX: no limit.
 *
 * # Returns
 * 0: nothing in the range is left to the job, or there is no job; for everything, the job's threads have ended. Or a
 * common error, or
 * - -ETIMEDOUT: something is left
 * - -EINVAL: the range extends past the end of the address space
 * - -EBUSY: the calling thread has a transaction open, in which the job does not work
 * - the error of the job, if it has failed and something in the range is left: any error of vfio_fast_commit(). The call
 *   returns it as often as it is made, with the same message.
 *
 * # Threads
 * Any thread. Other calls do not wait for this one.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_wait(struct vfio_fast *vf,
                   uint64_t iova,
                   uint64_t length,
                   uint64_t timeout_ns);

/**
 * Returns how far the job in the background is. Works on a poisoned handle.
 *
 * - vf: the handle
 * - progress: receives the numbers
 *
 * # Returns
 * 0, or a common error
 *
 * # Threads
 * Any thread; never waits.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_get_progress(struct vfio_fast *vf, struct vfio_fast_progress *progress);

/**
 * Returns a file descriptor for the loop that a program waits in: it is readable from the end of a job, however that
 * ends, until it is read (8 bytes, as of an eventfd) or the next job begins.
 *
 * - vf: the handle, which owns the descriptor and closes it with itself
 * - fd: receives the descriptor; it does not block and is closed on exec
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: fd is NULL
 * - -EMFILE, -ENFILE or -ENOMEM from the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle, but for no commit and no job.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_completion_fd(struct vfio_fast *vf,
                            int *fd);

/**
 * Ends the job in the background, whether it works or has failed.
 *
 * What it has not mapped is no longer wanted, as if it had been unmapped; with VFIO_FAST_CANCEL_UNMAP, what it has mapped
 * is unmapped, too. After a job that has mapped everything, the call does nothing.
 *
 * - vf: the handle
 * - flags: VFIO_FAST_CANCEL_*
 *
 * # Returns
 * 0, a common error, or
 * - -EOPNOTSUPP: unknown flags
 * - -EBUSY: a transaction is open, of this thread or of another one
 * - any error of vfio_fast_unmap()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. When it has returned, the job's threads have ended.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_cancel(struct vfio_fast *vf,
                     uint32_t flags);

/**
 * Maps memory again whose pages were replaced, for example after a memory error.
 *
 * The kernel pins pages, not addresses: if the page at an address is replaced, devices still access the old one. This
 * call unmaps every kernel entry that maps a byte of the memory, at any device address, and maps it again. Unmapping
 * and mapping the region in one transaction does not do this, because the library keeps what is already right. No
 * device can access these entries in between. What is wanted does not change.
 *
 * Replace all pages before the first call: an entry can only be mapped if all of its pages can be pinned.
 *
 * - vf: the handle
 * - memory: the memory; flags must be 0; read only during the call
 * - remapped: receives the number of bytes that were mapped again. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: a transaction is open, of this thread or of another one
 * - -EINVAL: length is 0; the range extends past the end of the address space
 * - any error of vfio_fast_commit(). Nothing is unmapped if a limit would not let the entries be mapped again. After
 *   another error, the library tries to map the entries as they were; what cannot be mapped stays wanted (see Failed
 *   commits).
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
 * before it returns.
 *
 * # Safety
 * See Pointers. What vfio_fast_map_region() demands of the memory of a region holds for the new pages.
 */
int vfio_fast_remap(struct vfio_fast *vf,
                    const struct vfio_fast_memory *memory,
                    uint64_t *remapped);

/**
 * Tries again to unmap what is still mapped although it is not wanted any more, because the kernel refused to unmap it.
 *
 * A call that touches such a range tries again as well. This call needs no range, and does not change what is wanted:
 * other regions may be wanted in these ranges by now. Memory that failed calls have unmapped can be freed once this
 * call has returned 0. It makes no call of the kernel if nothing is left.
 *
 * - vf: the handle
 * - unmapped: receives the number of bytes that were unmapped. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: a transaction is open, of this thread or of another one
 * - any error of vfio_fast_commit()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
 * before it returns.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_retry_unmap(struct vfio_fast *vf,
                          uint64_t *unmapped);

/**
 * Starts or stops tracking the pages that devices write to, as migration needs it.
 *
 * Starting or stopping twice is not an error. If the kernel cannot know what a device writes to, all memory that the
 * device can access counts as written to.
 *
 * - vf: the handle
 * - on: 1 to start, 0 to stop
 *
 * # Returns
 * 0, a common error, or
 * - -EOPNOTSUPP: on is neither 0 nor 1; the container does not track dirty pages (no IOAS does, type1 only since Linux
 *   5.8)
 * - another errno from the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_track_dirty(struct vfio_fast *vf,
                          uint32_t on);

/**
 * Reports which pages of a range were written to since they were last reported, or since tracking started.
 *
 * The call sets the bits of these pages and leaves all other bits unchanged. A call that fails may have set some
 * bits; their pages are not reported again.
 *
 * The range does not have to match a region. The kernel is asked about whole kernel entries, in as many calls as its
 * largest bitmap requires. What it reports for pages outside the range is kept until those pages are read.
 *
 * - vf: the handle
 * - dirty: the range and the bitmap
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: dirty pages are not tracked; page_size is not the smallest IOMMU page; iova or length is not a multiple
 *   of it; length is 0; the range extends past 2^64; bits is NULL, misaligned, larger than the address space, or has
 *   less than one bit for each page
 * - -EOPNOTSUPP: the container does not track dirty pages
 * - another errno from the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers; the array bits is NULL or holds that many words, which nothing else uses during the call.
 */
int vfio_fast_read_dirty(struct vfio_fast *vf,
                         const struct vfio_fast_dirty *dirty);

/**
 * Unmaps a range as vfio_fast_unmap() does, and reports its dirty pages as vfio_fast_read_dirty() does.
 *
 * This cannot be done in a transaction, where the range would be unmapped only later.
 *
 * - vf: the handle
 * - dirty: the range and the bitmap. If the call fails, the bits of pages that it has unmapped are set.
 * - unmapped: receives the number of bytes in the range that were wanted. May be NULL.
 *
 * # Returns
 * 0, or
 * - -EBUSY: a transaction is open, of this thread or of another one
 * - any error of vfio_fast_read_dirty(), or of vfio_fast_unmap() outside a transaction
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * As for vfio_fast_read_dirty().
 */
int vfio_fast_unmap_dirty(struct vfio_fast *vf,
                          const struct vfio_fast_dirty *dirty,
                          uint64_t *unmapped);

/**
 * Suspends a handle, so that another process can take its kernel entries over. Devices keep their access to all of
 * them, without a gap.
 *
 * The two processes do this:
 *   - The old process calls this function, then vfio_fast_get_entries(), and sends the list and the descriptors.
 *   - The new process opens a handle on the same container, begins a transaction, maps the same regions at its own
 *     host addresses, and calls vfio_fast_adopt() with the list.
 *   - If that fails, the old process calls vfio_fast_resume(). Otherwise it closes its handle or ends.
 *
 * Both must map the same pages of memory: shared memory, of which one process passes the descriptor to the other. With
 * iommufd, the new process makes IOMMU_IOAS_CHANGE_PROCESS before it adopts. The kernel refuses that unless every entry
 * was mapped by file (VFIO_FAST_REGION_FD).
 *
 * While a handle is suspended, calls that would change something return -EBUSY, and vfio_fast_close() unmaps nothing.
 *
 * - vf: the handle
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: a transaction is open, of this thread or of another one; memory is left to a job in the background
 *   (vfio_fast_wait()); dirty pages are tracked; the handle is suspended already; the container has a mediated device
 * - -EOPNOTSUPP: the container cannot do this. It takes type1 of Linux 5.12 or later (VFIO_UPDATE_VADDR), or iommufd.
 * - another errno of the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_suspend(struct vfio_fast *vf);

/**
 * Takes the kernel entries of a suspended handle back. No other process may use them any more.
 *
 * If this fails, the handle stays suspended, and the call can be made again.
 *
 * - vf: the handle
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: the handle is not suspended
 * - -ENOENT, -EINVAL: the container does not have all of the entries any more
 * - -ENOMEM: the locked-memory limit is too low
 * - another errno of the kernel
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers. What vfio_fast_map_region() demands of the memory of a region holds again.
 */
int vfio_fast_resume(struct vfio_fast *vf);

/**
 * Lists the kernel entries of a handle, ascending. Works on a suspended handle.
 *
 * - vf: the handle
 * - entries: receives the entries. NULL: only their number is returned.
 * - count: points to the number of elements of entries, and receives the number of kernel entries
 *
 * # Returns
 * 0, a common error, or
 * - -EMSGSIZE: there are more kernel entries than entries has elements; nothing was written
 * - -ENOMEM: there is too little memory for the list of them
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_get_entries(struct vfio_fast *vf, struct vfio_fast_entry *entries, uint64_t *count);

/**
 * Commits the open transaction in a container that has kernel entries already, which another process has handed over
 * (vfio_fast_suspend()).
 *
 * The handle must be the first one of this process on the container, and must not have mapped anything yet. An entry
 * that maps what the transaction wants is kept as it is: it gets its host address in this process, and devices keep
 * their access. Other entries are unmapped, and what is missing is mapped, as in vfio_fast_commit().
 *
 * If this fails, the handle has nothing mapped and nothing wanted, the entries can be resumed by the old process, and
 * the transaction is closed. Only entries that the transaction does not want can be gone. If a struct or array is not
 * valid, nothing is done and the transaction stays open.
 *
 * - vf: the handle
 * - entries: the entries, in any order; read only during the call
 * - count: number of elements of entries
 * - outcome: receives what the commit did; kept_entries has all entries that were kept. May be NULL.
 *
 * # Returns
 * 0, a common error, or
 * - -EBUSY: another thread has a transaction open; the handle has mapped something already
 * - -EINVAL: no transaction is open; two entries overlap; the container has no such entry, or nobody has handed it
 *   over
 * - -ENOENT: the container has no such entry
 * - -EOPNOTSUPP: the container cannot do this (see vfio_fast_suspend()); a flag of an entry is unknown
 * - any error of vfio_fast_commit()
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
 * before it returns.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_adopt(struct vfio_fast *vf,
                    const struct vfio_fast_entry *entries,
                    uint64_t count,
                    struct vfio_fast_outcome *outcome);

/**
 * Returns memory to the system that no device can access any more, on as many threads as a commit uses.
 *
 * The contents of the memory are lost. The range stays mapped in this process. This is for a program that is about
 * to exit, or that has ended a guest: the system frees memory on a single thread.
 *
 * - vf: a handle
 * - memory: the memory to return; read only during the call
 *
 * # Returns
 * 0, a common error, or
 * - -EINVAL: hva or length is not a multiple of the system's page size; length is 0; the range extends past the end
 *   of the address space; or the kernel cannot discard such memory (locked memory, a part of a huge page, or with
 *   VFIO_FAST_MEMORY_SHARED a mapping that is not of a file)
 * - -EOPNOTSUPP: the file system cannot free a part of a file
 * - -EBUSY: a part of the range is wanted or mapped through this handle at this host address. Mappings through other
 *   handles, or at other host addresses of the same memory, are not detected.
 * - -ENOMEM: a part of the range is not mapped in this process
 * - another errno from the kernel
 *
 * After an error from the kernel, a part of the memory may have been discarded.
 *
 * # Threads
 * Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
 * before it returns.
 *
 * # Safety
 * See Pointers. Nothing needs the contents of the memory, and nothing else is mapped in the range during the call.
 */
int vfio_fast_discard(struct vfio_fast *vf,
                      const struct vfio_fast_memory *memory);

/**
 * Returns the statistics of a handle. Works on a poisoned handle.
 *
 * - vf: the handle
 * - stats: receives the statistics
 *
 * # Returns
 * 0, or a common error
 *
 * # Threads
 * Any thread; never waits. While a commit is running, it may be counted in part.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_get_stats(struct vfio_fast *vf, struct vfio_fast_stats *stats);

/**
 * Returns the state of a handle and the properties of its IOMMU. Works on a poisoned handle.
 *
 * An example: whether ram_bytes from iova on can be mapped.
 *
 * ```c
 * struct vfio_fast_info info = {.size = sizeof(info)};
 * int fits = 0;
 * if (vfio_fast_get_info(vf, &info) == 0) {
 *     fits = info.iova_ranges == 0;              // not reported: the kernel decides
 *     for (uint64_t i = 0; i < info.iova_ranges && i < VFIO_FAST_IOVA_LIST; i++) {
 *         const struct vfio_fast_iova_range *range = &info.iova_list[i];
 *         fits |= range->first <= iova && iova + (ram_bytes - 1) <= range->last;
 *     }
 * }
 * ```
 *
 * - vf: the handle
 * - info: receives the properties
 *
 * # Returns
 * 0, or a common error
 *
 * # Threads
 * Any thread; waits for other calls on the same handle.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_get_info(struct vfio_fast *vf, struct vfio_fast_info *info);

/**
 * Returns the last failure of the calling thread, in numbers. A call that succeeds does not change it.
 *
 * - failure: receives the failure; its error is 0 if no call of this thread has failed
 *
 * # Returns
 * 0, or one of the following, which then is the last failure:
 * - -EINVAL: failure is NULL; the struct is too short
 * - -E2BIG: the struct is too long
 *
 * # Threads
 * Any thread; each has its own last failure.
 *
 * # Safety
 * See Pointers.
 */
int vfio_fast_last_failure(struct vfio_fast_failure *failure);

/**
 * Returns a message that describes the last failure of the calling thread: what failed, what was needed, what was
 * available and what to change. A call that succeeds does not change it. The wording may change in any release;
 * programs use vfio_fast_last_failure().
 *
 * # Returns
 * The message, never NULL, and empty if no call of this thread has failed. It belongs to the library and is valid
 * until the thread calls the library again.
 *
 * # Threads
 * Any thread; each has its own last failure.
 */
const char *vfio_fast_last_error(void);

/**
 * Returns the version of the loaded library.
 *
 * # Returns
 * "MAJOR.MINOR.PATCH", never NULL, valid as long as the library is loaded.
 *
 * # Threads
 * Any thread.
 */
const char *vfio_fast_version(void);

/**
 * Returns the version of the binary interface of the loaded library. Compare it with VFIO_FAST_ABI_VERSION.
 *
 * # Returns
 * The number.
 *
 * # Threads
 * Any thread.
 */
uint32_t vfio_fast_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VFIO_FAST_H */
