/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules are those of drivers/vfio/vfio_iommu_type1.c. The library reaches this file by its calls of ioctl().
 */

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/vfio.h>

#include "kernel.h"

#define MAX_ENTRIES 4096
#define MAX_PAGES 2048

typedef struct Entry {
    uint64_t iova;
    uint64_t size;
    uint64_t hva;
    bool write;
    unsigned long born;
    uint8_t dirty[MAX_PAGES];
} Entry;

typedef struct DeviceMemory {
    uint64_t start;
    uint64_t length;
    bool refused;
} DeviceMemory;

KernelFaults kernel_faults;

/* The job of the library has a thread of its own */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Entry *entries[MAX_ENTRIES]; /* ascending */
static unsigned count, room;
static unsigned fired;
static unsigned long calls;
static bool tracks;
static int container = -1;
static DeviceMemory device_memory[16];
static unsigned device_memories;

unsigned kernel_fired(void)
{
    return fired;
}

unsigned long kernel_calls(void)
{
    return calls;
}

bool kernel_tracks(void)
{
    return tracks;
}

int kernel_open(unsigned max)
{
    assert(container < 0 && max <= MAX_ENTRIES);
    container = memfd_create("container", MFD_CLOEXEC);
    room = max;
    fired = 0;
    calls = 0;
    tracks = false;
    memset(&kernel_faults, 0, sizeof(kernel_faults));
    return container;
}

unsigned kernel_close(void)
{
    unsigned left = count;

    for (unsigned i = 0; i < count; i++) {
        free(entries[i]);
    }
    count = 0;
    close(container);
    container = -1;
    return left;
}

void kernel_add_device_memory(void *start, uint64_t length, bool refused)
{
    assert(device_memories < sizeof(device_memory) / sizeof(*device_memory));
    device_memory[device_memories++] = (DeviceMemory){(uintptr_t)start, length, refused};
}

void kernel_forget_device_memory(const void *start)
{
    for (unsigned i = 0; i < device_memories; i++) {
        if (device_memory[i].start == (uintptr_t)start) {
            device_memory[i] = device_memory[--device_memories];
        }
    }
}

static const DeviceMemory *is_device_memory(uint64_t hva)
{
    for (unsigned i = 0; i < device_memories; i++) {
        if (hva - device_memory[i].start < device_memory[i].length) {
            return &device_memory[i];
        }
    }
    return NULL;
}

/* The first entry that ends after @iova */
static unsigned find(uint64_t iova)
{
    unsigned low = 0, high = count;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (entries[middle]->iova + (entries[middle]->size - 1) < iova) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static const Entry *at(uint64_t iova)
{
    unsigned i = find(iova);

    return i < count && entries[i]->iova <= iova ? entries[i] : NULL;
}

bool kernel_page(uint64_t iova, KernelPage *page)
{
    const Entry *entry;

    pthread_mutex_lock(&lock);
    entry = at(iova);
    if (entry) {
        *page = (KernelPage){entry->hva + (iova - entry->iova), entry->write, entry->born};
    }
    pthread_mutex_unlock(&lock);
    return entry;
}

bool kernel_maps_memory(const void *start, uint64_t length)
{
    uint64_t hva = (uintptr_t)start;
    bool maps = false;

    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < count; i++) {
        maps |= entries[i]->hva < hva + length && hva < entries[i]->hva + entries[i]->size;
    }
    pthread_mutex_unlock(&lock);
    return maps;
}

uint64_t kernel_pages(void)
{
    uint64_t bytes = 0;

    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < count; i++) {
        bytes += entries[i]->size;
    }
    pthread_mutex_unlock(&lock);
    return bytes / PAGE;
}

bool kernel_write(uint64_t iova)
{
    bool could = false;
    unsigned i;

    pthread_mutex_lock(&lock);
    i = find(iova);
    if (i < count && entries[i]->iova <= iova && entries[i]->write) {
        could = true;
        if (tracks) {
            entries[i]->dirty[(iova - entries[i]->iova) / PAGE] = 1;
        }
    }
    pthread_mutex_unlock(&lock);
    return could;
}

/* Whether a counter says that this call fails */
static bool fires(unsigned *in)
{
    if (!*in || --*in) {
        return false;
    }
    fired++;
    return true;
}

static int map(const struct vfio_iommu_type1_dma_map *m)
{
    const DeviceMemory *device = is_device_memory(m->vaddr);
    unsigned i = find(m->iova);
    Entry *entry;

    assert(m->argsz >= sizeof(*m) && m->flags & VFIO_DMA_MAP_FLAG_READ);
    assert(!(m->flags & ~(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)));
    calls++;
    if (!m->size || (m->iova | m->vaddr | m->size) % PAGE || m->iova + (m->size - 1) < m->iova) {
        return -EINVAL;
    }
    if (i < count && entries[i]->iova <= m->iova + (m->size - 1)) {
        return -EEXIST;
    }
    if (fires(&kernel_faults.map_in)) {
        return -kernel_faults.map_errno;
    }
    if (device && device->refused) {
        return -EFAULT;
    }
    if (count >= room) {
        return -ENOSPC;
    }
    assert(m->size / PAGE <= MAX_PAGES);
    entry = calloc(1, sizeof(*entry));
    entry->iova = m->iova;
    entry->size = m->size;
    entry->hva = m->vaddr;
    entry->write = m->flags & VFIO_DMA_MAP_FLAG_WRITE;
    entry->born = calls;
    memmove(&entries[i + 1], &entries[i], (count - i) * sizeof(*entries));
    entries[i] = entry;
    count++;
    return 0;
}

static void report_dirty(Entry *entry, uint64_t iova, struct vfio_bitmap *bitmap)
{
    for (uint64_t page = 0; page < entry->size / PAGE; page++) {
        uint64_t bit = (entry->iova - iova) / PAGE + page;

        assert(bit / 8 < bitmap->size);
        if (entry->dirty[page]) {
            bitmap->data[bit / 64] |= 1ULL << bit % 64;
            entry->dirty[page] = 0;
        }
    }
}

/* Whether the range cuts an entry at its begin or end */
static bool cuts(uint64_t iova, uint64_t size)
{
    const Entry *first = at(iova), *last = at(iova + (size - 1));

    return (first && first->iova != iova) || (last && last->iova + last->size != iova + size);
}

static int unmap(struct vfio_iommu_type1_dma_unmap *u)
{
    bool all = u->flags & VFIO_DMA_UNMAP_FLAG_ALL;
    struct vfio_bitmap *bitmap = u->flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP ? (void *)u->data : NULL;
    uint64_t last = all ? UINT64_MAX : u->iova + (u->size - 1);
    uint64_t unmapped = 0;
    unsigned i, end;

    assert(u->argsz >= sizeof(*u));
    calls++;
    if (all ? u->iova || u->size : !u->size || (u->iova | u->size) % PAGE || last < u->iova) {
        return -EINVAL;
    }
    if (!all && cuts(u->iova, u->size)) {
        return -EINVAL;
    }
    if (bitmap && !tracks) {
        return -EINVAL;
    }
    if (kernel_faults.unmap_in && !--kernel_faults.unmap_in && kernel_faults.unmap_count) {
        kernel_faults.unmap_count--;
        kernel_faults.unmap_in = 1;
        fired++;
        return -EBUSY;
    }
    i = find(u->iova);
    for (end = i; end < count && entries[end]->iova <= last; end++) {
        if (bitmap) {
            report_dirty(entries[end], u->iova, bitmap);
        }
        unmapped += entries[end]->size;
        free(entries[end]);
    }
    memmove(&entries[i], &entries[end], (count - end) * sizeof(*entries));
    count -= end - i;
    u->size = unmapped && fires(&kernel_faults.short_in) ? unmapped - PAGE : unmapped;
    return 0;
}

static int dirty_pages(struct vfio_iommu_type1_dirty_bitmap *d)
{
    struct vfio_iommu_type1_dirty_bitmap_get *get = (void *)d->data;

    switch (d->flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
        tracks = true;
        return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
        tracks = false;
        for (unsigned i = 0; i < count; i++) {
            memset(entries[i]->dirty, 0, sizeof(entries[i]->dirty));
        }
        return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
        if (!tracks || cuts(get->iova, get->size)) {
            return -EINVAL;
        }
        for (unsigned i = find(get->iova); i < count && entries[i]->iova <= get->iova + (get->size - 1); i++) {
            report_dirty(entries[i], get->iova, &get->bitmap);
        }
        return 0;
    default:
        return -EINVAL;
    }
}

/* The capabilities after the description */
typedef struct Description {
    struct vfio_iommu_type1_info info;
    struct vfio_iommu_type1_info_cap_migration migration;
    struct vfio_iommu_type1_info_dma_avail avail;
} __attribute__((packed)) Description;

static int describe(struct vfio_iommu_type1_info *info)
{
    Description d = {
        .info = {
            .argsz = sizeof(d),
            .flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS,
            .iova_pgsizes = PAGE | 1ULL << 21 | 1ULL << 30,
            .cap_offset = offsetof(Description, migration),
        },
        .migration = {
            .header = {
                .id = VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
                .version = 1,
                .next = offsetof(Description, avail),
            },
            .pgsize_bitmap = PAGE,
            .max_dirty_bitmap_size = 256 << 20,
        },
        .avail = {
            .header = {.id = VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, .version = 1},
            .avail = room - count,
        },
    };
    uint32_t length = info->argsz;

    if (length < sizeof(d)) {
        d.info.cap_offset = 0;
    }
    memcpy(info, &d, length < sizeof(d) ? sizeof(d.info) : sizeof(d));
    return 0;
}

static int answer(unsigned long request, void *argument)
{
    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return (uintptr_t)argument != VFIO_UPDATE_VADDR;
    case VFIO_IOMMU_GET_INFO:
        return describe(argument);
    case VFIO_IOMMU_MAP_DMA:
        return map(argument);
    case VFIO_IOMMU_UNMAP_DMA:
        return unmap(argument);
    case VFIO_IOMMU_DIRTY_PAGES:
        return dirty_pages(argument);
    default:
        return -ENOTTY;
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    void *argument;
    va_list list;
    int result;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if ((request >> 8 & 0xff) != VFIO_TYPE) {
        return syscall(SYS_ioctl, fd, request, argument);
    }
    pthread_mutex_lock(&lock);
    result = answer(request, argument);
    pthread_mutex_unlock(&lock);
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}
