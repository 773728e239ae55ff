/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * A witness for VFIO, preloaded into QEMU. It writes one line per ioctl of VFIO or iommufd, in the
 * order in which they returned, to the file named by VFT_WITNESS. It is independent of both QEMU
 * and libvfio_fast, so its record of the mappings depends on neither. It also records the memory
 * that QEMU passes to KVM: that is the guest's physical memory, reported by a part of QEMU that
 * does not use VFIO.
 *
 * Line format (separated by spaces; numbers in hex except errno, nanoseconds and pid):
 *
 *   cmd fd iova size flags vaddr ret errno out start_ns duration_ns pid object
 *
 * "vaddr" of a map by file is the address at which this process maps that part of the file, or that
 * part of the BAR if the file is a dma-buf, according to the kernel; 0 unless all of it is mapped,
 * shared and contiguous. "out" is the byte count that the kernel returned for an unmap, or the
 * number of the KVM slot. "object" is the IOAS that iommufd created, mapped or unmapped in, or the
 * object that it destroyed. Fields that an ioctl does not have are 0.
 *
 * For VFIO_IOMMU_DIRTY_PAGES, "flags" are its flags; if they ask for a bitmap, "iova" and "size" are
 * its range, and "out" is the number of pages in it that are dirty. VFIO_DEVICE_FEATURE has the same
 * number. Its flags contain GET, SET or PROBE, which are above those of the other.
 *
 * A write by QEMU to the command register of a VFIO device, which contains the bus master bit, has
 * a line as well: "cmd" is 1, "flags" the value.
 *
 * With VFT_FAILING_ALLOCATIONS, allocations of the kernel fail in calls that change mappings only, so that the
 * kernel's code for other things need not survive that. What fails, and how often, is set in debugfs.
 *
 * With VFT_FAULTS, it also gives false answers. The file of that name is read at every call that
 * could get one; while it is missing or empty, all answers are the kernel's. It has one line, with
 * numbers in hex except the last:
 *
 *   number kind first last largest count
 *
 * The kinds "busy" and "short" are for unmaps of at most "largest" bytes that touch the addresses
 * from "first" to "last": they are refused with EBUSY, without a call of the kernel, or they are
 * made, and a page too few is returned. The kinds "gone" and "pending" are for reads of a device's
 * configuration space: all bits are 1, or the PCI Express capability reports pending transactions.
 * The kind "full" is for maps, likewise: they are refused with ENOMEM. With the kind "slow", each call
 * that faults memory in takes half a second longer for 16 MiB, and less for less.
 * Only "count" answers are false after the line has got a new number. The record has what the
 * kernel answered, and refused calls with their errno.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/*
 * The part of linux/iommufd.h that is used here: the header may be missing or old. The commands
 * have VFIO's type.
 */
#define IOMMUFD_DESTROY _IO(VFIO_TYPE, 0x80)
#define IOMMUFD_IOAS_ALLOC _IO(VFIO_TYPE, 0x81)
#define IOMMUFD_IOAS_MAP _IO(VFIO_TYPE, 0x85)
#define IOMMUFD_IOAS_UNMAP _IO(VFIO_TYPE, 0x86)
#define IOMMUFD_IOAS_MAP_FILE _IO(VFIO_TYPE, 0x8f)

struct iommufd_destroy {
    uint32_t size, id;
};

struct iommufd_ioas_alloc {
    uint32_t size, flags, out_ioas_id;
};

struct iommufd_ioas_map {
    uint32_t size, flags, ioas_id, reserved;
    uint64_t user_va, length, iova;
};

struct iommufd_ioas_unmap {
    uint32_t size, ioas_id;
    uint64_t iova, length;
};

struct iommufd_ioas_map_file {
    uint32_t size, flags, ioas_id;
    int32_t fd;
    uint64_t start, length, iova;
};

/* VFIO_DEVICE_FEATURE with VFIO_DEVICE_FEATURE_DMA_BUF and one range, newer than the header. */
#define EXPORT_DMA_BUF (VFIO_DEVICE_FEATURE_GET | 11)

struct dma_buf_export {
    uint32_t argsz, flags, region_index, open_flags, reserved, nr_ranges;
    uint64_t offset, length;
};

/* Identifies a file. */
struct identity {
    dev_t device;
    ino_t inode;
};

/* A dma-buf of a BAR, the VFIO device, and the offset of its first byte in the device's file. */
struct dma_buf {
    struct identity self, device;
    uint64_t start;
};

#define DMA_BUFS 64
static struct dma_buf dma_bufs[DMA_BUFS];
static unsigned int dma_bufs_made;
static pthread_mutex_t dma_bufs_lock = PTHREAD_MUTEX_INITIALIZER;

static int record = -1;
static const char *faults;
static int allocations_may_fail;

/*
 * The file is opened when the library is loaded, not at the first ioctl: by then QEMU may have dropped
 * privileges or forked into the background. O_APPEND keeps the lines of concurrent threads intact.
 */
__attribute__((constructor)) static void open_record(void)
{
    const char *path = getenv("VFT_WITNESS");
    const struct sched_param lowest = { .sched_priority = 1 };

    /* Nothing runs yet: every thread of the program will inherit it. */
    if (getenv("VFT_REAL_TIME") && sched_setscheduler(0, SCHED_FIFO, &lowest) != 0) {
        perror("witness: no real-time policy");
        _exit(126);
    }

    faults = getenv("VFT_FAULTS");
    allocations_may_fail = getenv("VFT_FAILING_ALLOCATIONS") != NULL;
    if (path) {
        record = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (record < 0) {
            perror("witness: cannot open the record");
            _exit(126);
        }
    }
}

enum fault { NONE, BUSY, SHORT, GONE, PENDING, SLOW, FULL };

/* What a fault is for. */
enum target { UNMAP, CONFIG, MAP, POPULATE };

/* The fault that the call of a range gets. The configuration space has the range from 0 to 0. */
static enum fault fault(enum target target, uint64_t iova, uint64_t size)
{
    static const char *const names[] = { "", "busy", "short", "gone", "pending", "slow", "full" };
    static const enum target targets[] = { UNMAP, UNMAP, UNMAP, CONFIG, CONFIG, POPULATE, MAP };
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static unsigned long seen, made;
    unsigned long long first, last, largest;
    unsigned long number, count;
    enum fault found = NONE;
    char line[256], kind[16];
    ssize_t length;
    int file;

    if (!faults || (file = open(faults, O_RDONLY | O_CLOEXEC)) < 0) {
        return NONE;
    }
    length = read(file, line, sizeof(line) - 1);
    close(file);
    line[length > 0 ? length : 0] = '\0';
    if (sscanf(line, "%lx %15s %llx %llx %llx %lu", &number, kind, &first, &last, &largest, &count) != 6) {
        return NONE;
    }
    for (enum fault n = BUSY; n <= FULL; n++) {
        if (strcmp(kind, names[n]) == 0) {
            found = n;
        }
    }
    if (target != targets[found]) {
        return NONE;
    }
    /* A size of 0 is the whole container, which only closing unmaps. */
    if (target != CONFIG && target != POPULATE && (size == 0 || size > largest || iova > last || iova + (size - 1) < first)) {
        return NONE;
    }
    pthread_mutex_lock(&lock);
    if (number != seen) {
        seen = number;
        made = 0;
    }
    found = made++ < count ? found : NONE;
    pthread_mutex_unlock(&lock);
    return found;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int real_ioctl(int fd, unsigned long cmd, void *arg)
{
    static int (*next)(int, unsigned long, ...);

    if (!next) {
        next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    }
    return next(fd, cmd, arg);
}

static int identify(int fd, struct identity *identity)
{
    struct stat status;

    if (fstat(fd, &status) < 0) {
        return 0;
    }
    identity->device = status.st_dev;
    identity->inode = status.st_ino;
    return 1;
}

static int same(const struct identity *a, const struct identity *b)
{
    return a->device == b->device && a->inode == b->inode;
}

/* Records the BAR of a new dma-buf. The oldest is dropped: each is closed once its map call has returned. */
static void remember_dma_buf(int device, const struct dma_buf_export *export, int fd)
{
    struct vfio_region_info info = { .argsz = sizeof(info), .index = export->region_index };
    struct dma_buf made;

    if (export->nr_ranges == 1 && identify(fd, &made.self) && identify(device, &made.device) &&
        real_ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0) {
        made.start = info.offset + export->offset;
        pthread_mutex_lock(&dma_bufs_lock);
        dma_bufs[dma_bufs_made++ % DMA_BUFS] = made;
        pthread_mutex_unlock(&dma_bufs_lock);
    }
}

/* Converts a dma-buf and an offset in it to the VFIO device's file and the offset in that. */
static void resolve_dma_buf(struct identity *file, uint64_t *start)
{
    pthread_mutex_lock(&dma_bufs_lock);
    for (unsigned int n = 0; n < DMA_BUFS; n++) {
        if (same(&dma_bufs[n].self, file)) {
            *file = dma_bufs[n].device;
            *start += dma_bufs[n].start;
            break;
        }
    }
    pthread_mutex_unlock(&dma_bufs_lock);
}

/* The address at which this process maps "length" bytes of the file from "start" on, shared and contiguous; or 0. */
static uint64_t address_of(int fd, uint64_t start, uint64_t length)
{
    unsigned long long from, to, offset, inode;
    unsigned int device_major, device_minor;
    uint64_t base = 0, known, found = 0;
    struct identity file, mapped;
    char line[512], shared;
    FILE *maps;

    if (!identify(fd, &file)) {
        return 0;
    }
    resolve_dma_buf(&file, &start);
    known = start;
    maps = fopen("/proc/self/maps", "re");
    if (!maps) {
        return 0;
    }
    /* One contiguous range can have several lines, for example after madvise. */
    while (!found && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%llx-%llx %*c%*c%*c%c %llx %x:%x %llu", &from, &to, &shared, &offset, &device_major,
                   &device_minor, &inode) != 7) {
            continue;
        }
        mapped.device = makedev(device_major, device_minor);
        mapped.inode = inode;
        if (shared == 's' && same(&mapped, &file) && offset <= known && known < offset + (to - from) &&
            (known == start || base == from - offset)) {
            base = from - offset;
            known = offset + (to - from);
            found = known - start >= length ? base + start : 0;
        }
    }
    fclose(maps);
    return found;
}

/* What VFIO_IOMMU_DIRTY_PAGES has after its flags if they ask for a bitmap. */
static const struct vfio_iommu_type1_dirty_bitmap_get *dirty_range(const void *arg)
{
    return (const void *)((const struct vfio_iommu_type1_dirty_bitmap *)arg)->data;
}

/* The pages of the range that are dirty. There may be bits of other pages after them. */
static uint64_t dirty_pages(const struct vfio_iommu_type1_dirty_bitmap_get *range)
{
    uint64_t pages = range->size / range->bitmap.pgsize, found = 0;

    for (uint64_t n = 0; n < pages; n++) {
        found += range->bitmap.data[n / 64] >> (n % 64) & 1;
    }
    return found;
}

/* KVM_SET_USER_MEMORY_REGION and its successor, which starts with the same fields. */
static int sets_memory(unsigned long cmd)
{
    return _IOC_TYPE(cmd) == KVMIO && (_IOC_NR(cmd) == 0x46 || _IOC_NR(cmd) == 0x49);
}

/* The fields of one line. */
struct told {
    unsigned long cmd;
    int fd, ret, error;
    uint64_t iova, size, vaddr, out, start, end;
    unsigned int flags, object;
};

/* Lets allocations fail that the kernel makes for this thread, if they are made to fail at all, or not any more. */
static void may_fail(char may)
{
    ssize_t written;
    int fd;

    /* These allocate as well. The number of failures is limited. */
    do {
        fd = open("/proc/thread-self/make-it-fail", O_WRONLY | O_CLOEXEC);
    } while (fd < 0 && errno == ENOMEM);
    do {
        written = write(fd, &may, 1);
    } while (written < 0 && errno == ENOMEM);
    if (written != 1) {
        perror("witness: cannot choose whose allocations fail");
        _exit(126);
    }
    close(fd);
}

/* The calls in which allocations may fail: those that map and unmap. */
static int changes_mappings(unsigned long cmd)
{
    return cmd == VFIO_IOMMU_MAP_DMA || cmd == VFIO_IOMMU_UNMAP_DMA || cmd == IOMMUFD_IOAS_MAP ||
           cmd == IOMMUFD_IOAS_MAP_FILE || cmd == IOMMUFD_IOAS_UNMAP;
}

static void tell(const struct told *told)
{
    char line[320];
    int length = snprintf(line, sizeof(line), "%lx %x %llx %llx %x %llx %x %d %llx %llu %llu %ld %x\n", told->cmd & 0xffff,
                          told->fd, (unsigned long long)told->iova, (unsigned long long)told->size, told->flags,
                          (unsigned long long)told->vaddr, told->ret, told->ret < 0 ? told->error : 0,
                          (unsigned long long)told->out, (unsigned long long)told->start,
                          (unsigned long long)(told->end - told->start), (long)getpid(), told->object);

    if (write(record, line, (size_t)length) != length) {
        /* An incomplete record is worse than none: report it and stop the run. */
        static const char lost[] = "witness: a record was lost\n";

        (void)!write(STDERR_FILENO, lost, sizeof(lost) - 1);
        _exit(126);
    }
}

/* The offset of the command register in a VFIO device's file: in the region of the configuration space. */
#define COMMAND_REGISTER (((uint64_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4)
#define WROTE_COMMAND 1

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset)
{
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    struct told told = { .cmd = WROTE_COMMAND, .fd = fd, .size = size };
    uint16_t value = 0;
    ssize_t ret;

    if (!next) {
        next = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    }
    if (record < 0 || (uint64_t)offset != COMMAND_REGISTER || size == 0) {
        return next(fd, bytes, size, offset);
    }
    memcpy(&value, bytes, size < sizeof(value) ? size : sizeof(value));
    told.flags = value;
    told.start = now_ns();
    ret = next(fd, bytes, size, offset);
    told.error = errno;
    told.end = now_ns();
    told.ret = ret == (ssize_t)size ? 0 : -1;
    tell(&told);
    errno = told.error;
    return ret;
}

/* What the configuration space of a VFIO device returns. */
ssize_t pread64(int fd, void *bytes, size_t size, off64_t offset)
{
    static ssize_t (*next)(int, void *, size_t, off64_t);
    static uint64_t express;
    uint16_t value;
    ssize_t ret;

    if (!next) {
        next = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
    }
    ret = next(fd, bytes, size, offset);
    if (!faults || (uint64_t)offset >> 40 != VFIO_PCI_CONFIG_REGION_INDEX || ret != (ssize_t)size) {
        return ret;
    }
    switch (fault(CONFIG, 0, 0)) {
    case GONE:
        memset(bytes, 0xff, size);
        break;
    case PENDING:
        /* Whoever looks for the capability finds it before its status register: bit 5 of the word at 10. */
        if (size == sizeof(value)) {
            memcpy(&value, bytes, sizeof(value));
            if ((uint64_t)offset == express + 10) {
                value |= 1 << 5;
                memcpy(bytes, &value, sizeof(value));
            } else if ((offset & 0xff) >= 0x40 && (value & 0xff) == 0x10) {
                express = (uint64_t)offset;
            }
        }
        break;
    default:
        break;
    }
    return ret;
}

int madvise(void *start, size_t size, int advice)
{
    static int (*next)(void *, size_t, int);

    if (!next) {
        next = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
    }
    /* MADV_POPULATE_READ, MADV_POPULATE_WRITE */
    if ((advice == 22 || advice == 23) && fault(POPULATE, 0, 0) == SLOW) {
        usleep(size < 16 << 20 ? size / 32 : 500 * 1000);
    }
    return next(start, size, advice);
}

int ioctl(int fd, unsigned long cmd, ...)
{
    uint64_t iova = 0, size = 0, vaddr = 0, out = 0, start, end;
    unsigned int flags = 0, object = 0;
    enum fault false_answer = NONE;
    int ret, saved;
    va_list args;
    void *arg;

    va_start(args, cmd);
    arg = va_arg(args, void *);
    va_end(args);

    if (record < 0 || (_IOC_TYPE(cmd) != VFIO_TYPE && !sets_memory(cmd))) {
        return real_ioctl(fd, cmd, arg);
    }
    if (cmd == VFIO_IOMMU_MAP_DMA) {
        const struct vfio_iommu_type1_dma_map *map = arg;

        iova = map->iova;
        size = map->size;
        flags = map->flags;
        vaddr = map->vaddr;
    } else if (cmd == VFIO_IOMMU_UNMAP_DMA) {
        const struct vfio_iommu_type1_dma_unmap *unmap = arg;

        iova = unmap->iova;
        size = unmap->size;
        flags = unmap->flags;
    } else if (cmd == IOMMUFD_IOAS_MAP) {
        const struct iommufd_ioas_map *map = arg;

        iova = map->iova;
        size = map->length;
        flags = map->flags;
        vaddr = map->user_va;
        object = map->ioas_id;
    } else if (cmd == IOMMUFD_IOAS_MAP_FILE) {
        const struct iommufd_ioas_map_file *map = arg;

        iova = map->iova;
        size = map->length;
        flags = map->flags;
        vaddr = address_of(map->fd, map->start, map->length);
        object = map->ioas_id;
    } else if (cmd == IOMMUFD_IOAS_UNMAP) {
        const struct iommufd_ioas_unmap *unmap = arg;

        iova = unmap->iova;
        size = unmap->length;
        object = unmap->ioas_id;
    } else if (cmd == IOMMUFD_DESTROY) {
        object = ((const struct iommufd_destroy *)arg)->id;
    } else if (cmd == VFIO_IOMMU_DIRTY_PAGES) {
        flags = ((const struct vfio_iommu_type1_dirty_bitmap *)arg)->flags;
        if (flags == VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP) {
            iova = dirty_range(arg)->iova;
            size = dirty_range(arg)->size;
        }
    } else if (sets_memory(cmd)) {
        const struct kvm_userspace_memory_region *region = arg;

        iova = region->guest_phys_addr;
        size = region->memory_size;
        flags = region->flags;
        vaddr = region->userspace_addr;
        out = region->slot;
    }

    if (cmd == VFIO_IOMMU_UNMAP_DMA || cmd == IOMMUFD_IOAS_UNMAP) {
        false_answer = fault(UNMAP, iova, size);
    } else if (cmd == VFIO_IOMMU_MAP_DMA || cmd == IOMMUFD_IOAS_MAP || cmd == IOMMUFD_IOAS_MAP_FILE) {
        false_answer = fault(MAP, iova, size);
    }
    start = now_ns();
    ret = -1;
    errno = false_answer == FULL ? ENOMEM : EBUSY;
    if (false_answer != BUSY && false_answer != FULL) {
        int may = allocations_may_fail && changes_mappings(cmd);

        if (may) {
            may_fail('1');
        }
        ret = real_ioctl(fd, cmd, arg);
        saved = errno;
        if (may) {
            may_fail('0');
        }
        errno = saved;
    }
    saved = errno;
    end = now_ns();

    if (cmd == VFIO_IOMMU_UNMAP_DMA && ret == 0) {
        out = ((const struct vfio_iommu_type1_dma_unmap *)arg)->size;
    } else if (cmd == IOMMUFD_IOAS_UNMAP && ret == 0) {
        out = ((const struct iommufd_ioas_unmap *)arg)->length;
    } else if (cmd == IOMMUFD_IOAS_ALLOC && ret == 0) {
        object = ((const struct iommufd_ioas_alloc *)arg)->out_ioas_id;
    } else if (cmd == VFIO_IOMMU_DIRTY_PAGES && flags == VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP && ret == 0) {
        out = dirty_pages(dirty_range(arg));
    } else if (cmd == VFIO_DEVICE_FEATURE && ret >= 0 &&
               ((const struct dma_buf_export *)arg)->flags == EXPORT_DMA_BUF) {
        remember_dma_buf(fd, arg, ret);
    }
    tell(&(struct told){ .cmd = cmd, .fd = fd, .ret = ret, .error = saved, .iova = iova, .size = size, .vaddr = vaddr,
                         .out = out, .start = start, .end = end, .flags = flags, .object = object });
    if (false_answer == SHORT && ret == 0 && cmd == VFIO_IOMMU_UNMAP_DMA) {
        ((struct vfio_iommu_type1_dma_unmap *)arg)->size -= 0x1000;
    } else if (false_answer == SHORT && ret == 0) {
        ((struct iommufd_ioas_unmap *)arg)->length -= 0x1000;
    }
    errno = saved;
    return ret;
}
