/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Maps memory in pages of 2 MiB, as programs do that manage their own memory (DPDK, SPDK): with one ioctl for each page,
 * with one call of the library for each page, and with one transaction. Prints the kernel entries, the calls to the
 * kernel and the time of each.
 *
 *     many_pages [--iommufd] [--pages N] [0000:01:00.0]
 *
 * Without a device, on the library's model of the kernel, where only the counts mean something.
 */
#define _GNU_SOURCE

#include <time.h>

#include "vfio_device.h"

#define PAGE (2ull << 20)

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void print(const char *how, uint64_t calls, uint64_t entries, uint64_t ns)
{
    printf("%-28s %8llu %8llu %10.3f ms\n", how, (unsigned long long)calls, (unsigned long long)entries,
           (double)ns / 1e6);
}

/* What a program does without the library. */
static void with_ioctls(const struct vfio_device *device, char *memory, uint64_t pages)
{
    uint64_t begin = now_ns();

    for (uint64_t i = 0; i < pages; i++) {
        struct vfio_iommu_type1_dma_map type1 = {
            .argsz = sizeof(type1),
            .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            .vaddr = (uintptr_t)memory + i * PAGE,
            .iova = (i + 1) * PAGE,
            .size = PAGE,
        };
        struct iommu_ioas_map ioas = {
            .size = sizeof(ioas),
            .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
            .ioas_id = device->ioas,
            .user_va = type1.vaddr,
            .iova = type1.iova,
            .length = PAGE,
        };

        if (device->iommufd >= 0 ? ioctl(device->iommufd, IOMMU_IOAS_MAP, &ioas)
                                 : ioctl(device->container, VFIO_IOMMU_MAP_DMA, &type1))
            fail("map");
    }
    print("one ioctl a page", pages, pages, now_ns() - begin);
    for (uint64_t i = 0; i < pages; i++) {
        struct vfio_iommu_type1_dma_unmap type1 = {.argsz = sizeof(type1), .iova = (i + 1) * PAGE, .size = PAGE};
        struct iommu_ioas_unmap ioas = {
            .size = sizeof(ioas),
            .ioas_id = device->ioas,
            .iova = type1.iova,
            .length = PAGE,
        };

        if (device->iommufd >= 0 ? ioctl(device->iommufd, IOMMU_IOAS_UNMAP, &ioas)
                                 : ioctl(device->container, VFIO_IOMMU_UNMAP_DMA, &type1))
            fail("unmap");
    }
}

/* With `at_once`, in one transaction, and as parts of one memory object that one entry may cover. */
static void with_library(struct vfio_fast *vf, char *memory, uint64_t pages, int at_once)
{
    struct vfio_fast_range all = {.size = sizeof(all), .iova = PAGE, .length = pages * PAGE};
    struct vfio_fast_stats before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
    uint64_t begin = now_ns();

    check(vfio_fast_get_stats(vf, &before));
    if (at_once)
        check(vfio_fast_begin(vf));
    for (uint64_t i = 0; i < pages; i++) {
        struct vfio_fast_region region = {
            .size = sizeof(region),
            .flags = VFIO_FAST_REGION_WRITE | (at_once ? VFIO_FAST_REGION_JOIN : 0),
            .iova = (i + 1) * PAGE,
            .length = PAGE,
            .hva = (uintptr_t)memory + i * PAGE,
            .backing = 1,
        };

        check(vfio_fast_map_region(vf, &region));
    }
    if (at_once)
        check(vfio_fast_commit(vf, NULL));
    check(vfio_fast_get_stats(vf, &after));
    print(at_once ? "the library, one transaction" : "the library, page by page", after.map_calls - before.map_calls,
          after.entries, now_ns() - begin);
    check(vfio_fast_unmap(vf, &all, NULL));
}

int main(int argc, char **argv)
{
    struct vfio_device opened, *device = NULL;
    const char *address = NULL;
    uint64_t pages = 256;
    struct vfio_fast *vf;
    int by_file = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--iommufd") == 0)
            by_file = 1;
        else if (strcmp(argv[i], "--pages") == 0 && i + 1 < argc)
            pages = strtoull(argv[++i], NULL, 0);
        else
            address = argv[i];
    }
    if (pages == 0 || pages > 1024) {
        fprintf(stderr, "usage: many_pages [--iommufd] [--pages 1 to 1024] [ADDRESS]\n");
        return 2;
    }
    if (address) {
        opened = open_device(address, by_file);
        device = &opened;
    }
    printf("%-28s %8s %8s %13s\n", "", "calls", "entries", "time");
    /* Memory of their own, so that each is faulted in anew. */
    if (device)
        with_ioctls(device, allocate(pages * PAGE), pages);
    vf = open_library(device);
    with_library(vf, allocate(pages * PAGE), pages, 0);
    with_library(vf, allocate(pages * PAGE), pages, 1);
    check(vfio_fast_close(&vf));
    if (device)
        close_device(device);
    return 0;
}
