/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Discarding memory: it is empty afterwards; memory that a device can access and invalid ranges are refused. */
#include "check.h"

#include <unistd.h>

#define LENGTH (40 * MIB)

static volatile unsigned char *bytes_of(uint64_t hva)
{
    return (volatile unsigned char *)(uintptr_t)hva;
}

static int discard(struct vfio_fast *vf, uint64_t hva, uint64_t length, uint32_t flags)
{
    struct vfio_fast_memory m = host_memory(hva, length, flags);

    return vfio_fast_discard(vf, &m);
}

static void what_is_not_mapped_goes(struct vfio_fast *vf)
{
    uint64_t hva = memory(LENGTH);
    struct vfio_fast_region ram = region(0, 2 * MIB, hva + 2 * MIB, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range all = range(0, 2 * MIB);
    struct vfio_fast_stats before = stats(vf);

    memset((void *)(uintptr_t)hva, 1, LENGTH);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(discard(vf, hva, LENGTH, 0), -EBUSY);
    CHECK_TEXT("must be unmapped first");
    CHECK(failure().op == VFIO_FAST_OP_CHECK && failure().hva == hva);
    CHECK_RC(discard(vf, hva, 2 * MIB, 0), 0);
    CHECK(bytes_of(hva)[2 * MIB - 1] == 0 && bytes_of(hva)[2 * MIB] == 1);

    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), 0);
    CHECK_RC(discard(vf, hva, LENGTH, 0), 0);
    CHECK(bytes_of(hva)[2 * MIB] == 0 && bytes_of(hva)[LENGTH - 1] == 0);
    CHECK(stats(vf).discard_bytes - before.discard_bytes == LENGTH + 2 * MIB);
    CHECK(stats(vf).discard_ns > before.discard_ns);
}

static void a_file_keeps_its_pages_without_the_flag(struct vfio_fast *vf)
{
    int fd = memfd_create("discard", MFD_CLOEXEC);
    void *mapped;
    uint64_t hva;

    CHECK(fd >= 0 && ftruncate(fd, (off_t)MIB) == 0);
    mapped = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED);
    hva = (uint64_t)(uintptr_t)mapped;
    memset(mapped, 1, MIB);
    CHECK_RC(discard(vf, hva, MIB, 0), 0);
    CHECK(bytes_of(hva)[0] == 1);
    CHECK_RC(discard(vf, hva, MIB, VFIO_FAST_MEMORY_SHARED), 0);
    CHECK(bytes_of(hva)[0] == 0);
    CHECK(close(fd) == 0);
}

static void what_makes_no_sense_is_refused(struct vfio_fast *vf)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), hva = memory(4 * page);

    *bytes_of(hva + page) = 1;
    CHECK_RC(discard(vf, hva + 1, page, 0), -EINVAL);
    CHECK_RC(discard(vf, hva, page + 1, 0), -EINVAL);
    CHECK_TEXT("whole pages");
    CHECK(failure().op == VFIO_FAST_OP_CHECK && failure().hva == hva && failure().length == page + 1);
    CHECK_RC(discard(vf, hva, 0, 0), -EINVAL);
    CHECK_RC(discard(vf, (uint64_t)0 - page, 2 * page, 0), -EINVAL);
    CHECK_RC(discard(vf, hva, page, VFIO_FAST_MEMORY_SHARED << 1), -EOPNOTSUPP);
    CHECK(*bytes_of(hva + page) == 1);

    CHECK(munmap((void *)(uintptr_t)(hva + 2 * page), page) == 0);
    CHECK_RC(discard(vf, hva + 2 * page, page, 0), -ENOMEM);
    CHECK(failure().op == VFIO_FAST_OP_DISCARD);
    CHECK_TEXT("Giving memory back");
}

int main(void)
{
    struct vfio_fast *vf = open_sim(NULL);

    what_is_not_mapped_goes(vf);
    a_file_keeps_its_pages_without_the_flag(vf);
    what_makes_no_sense_is_refused(vf);
    CHECK_RC(vfio_fast_close(&vf), 0);
    return 0;
}
