/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Arrays of pages: consecutive pages take one call, an array is mapped as a whole or not at all, and pages can be
 * unmapped in the same ways. */
#include "check.h"

#define PAGE 4096u
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static uint64_t ram; /* host address of page 0 */

static uint64_t map_calls(struct vfio_fast *vf)
{
    return stats(vf).map_calls;
}

/* Maps these device pages, each to the host page of the same number. */
static int map(struct vfio_fast *vf, const uint64_t *numbers, size_t count)
{
    uint64_t iovas[512] = { 0 }, hvas[512] = { 0 };
    struct vfio_fast_pages array = pages(count, iovas, hvas, VFIO_FAST_REGION_WRITE);
    size_t n;

    CHECK(count <= COUNT(iovas));
    for (n = 0; n < count; n++) {
        iovas[n] = numbers[n] * PAGE;
        hvas[n] = ram + numbers[n] * PAGE;
    }
    return vfio_fast_map_pages(vf, &array);
}

static uint64_t unmap(struct vfio_fast *vf, const uint64_t *numbers, size_t count)
{
    uint64_t iovas[512] = { 0 }, unmapped = 0;
    struct vfio_fast_pages array = pages(count, iovas, NULL, 0);
    size_t n;

    CHECK(count <= COUNT(iovas));
    for (n = 0; n < count; n++)
        iovas[n] = numbers[n] * PAGE;
    CHECK_RC(vfio_fast_unmap_pages(vf, &array, &unmapped), 0);
    return unmapped / PAGE;
}

static void runs_are_single_calls(void)
{
    static const uint64_t five[] = { 1, 5, 6, 7, 9 }, middle[] = { 6 }, twice[] = { 20, 21, 20 };
    uint64_t many[512];
    struct vfio_fast *vf = open_sim(NULL);
    size_t n;

    CHECK_RC(map(vf, five, COUNT(five)), 0);
    CHECK(map_calls(vf) == 3 && stats(vf).entries == 3);
    CHECK(unmap(vf, middle, 1) == 1);
    CHECK(map_calls(vf) == 5 && stats(vf).entries == 4 && stats(vf).remapped_bytes == 2 * PAGE);
    CHECK_RC(map(vf, twice, COUNT(twice)), -EEXIST);
    CHECK(failure().iova == 20 * PAGE && failure().length == PAGE);
    CHECK_RC(map(vf, five, COUNT(five)), -EEXIST);
    CHECK(map_calls(vf) == 5 && stats(vf).wanted_bytes == 4 * PAGE);
    CHECK(unmap(vf, five, COUNT(five)) == 4);
    CHECK(stats(vf).entries == 0);

    for (n = 0; n < COUNT(many); n++)
        many[n] = 1000 + n;
    CHECK_RC(map(vf, many, COUNT(many)), 0);
    CHECK(map_calls(vf) == 6);
    CHECK(unmap(vf, many, COUNT(many)) == COUNT(many));
    CHECK(stats(vf).unmap_calls == 3); /* one for each vfio_fast_unmap_pages(): a call may cover gaps */
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* Regions and arrays share kernel entries only on request. */
static void joined_on_request(void)
{
    uint64_t flags[] = { VFIO_FAST_REGION_WRITE, VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_JOIN };
    uint64_t iovas[] = { 2 * PAGE, 3 * PAGE }, hvas[] = { ram + 2 * PAGE, ram + 3 * PAGE };
    size_t n;

    for (n = 0; n < COUNT(flags); n++) {
        struct vfio_fast *vf = open_sim(NULL);
        struct vfio_fast_region r = region(0, PAGE, ram, (uint32_t)flags[n]);
        struct vfio_fast_pages array = pages(COUNT(iovas), iovas, hvas, (uint32_t)flags[n]);
        struct vfio_fast_range first = range(0, PAGE);

        r.backing = array.backing = 1;
        CHECK_RC(vfio_fast_begin(vf), 0);
        CHECK_RC(vfio_fast_map_region(vf, &r), 0);
        r.iova += PAGE;
        r.hva += PAGE;
        CHECK_RC(vfio_fast_map_region(vf, &r), 0);
        CHECK_RC(vfio_fast_map_pages(vf, &array), 0);
        CHECK_RC(vfio_fast_commit(vf, NULL), 0);
        CHECK(stats(vf).regions == 3 && stats(vf).entries == (n ? 1 : 3));
        CHECK_RC(vfio_fast_unmap(vf, &first, NULL), 0);
        CHECK(stats(vf).remapped_bytes == (n ? 3 * PAGE : 0));
        CHECK_RC(vfio_fast_close(&vf), 0);
    }
}

static void part_of_a_transaction(void)
{
    static const uint64_t numbers[] = { 3, 4 };
    struct vfio_fast *vf = open_sim(NULL);

    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(map(vf, numbers, COUNT(numbers)), 0);
    CHECK(map_calls(vf) == 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), 0);
    CHECK(map_calls(vf) == 1);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK(unmap(vf, numbers, COUNT(numbers)) == 2);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK(stats(vf).mapped_bytes == 2 * PAGE);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void wrong_arrays(void)
{
    uint64_t odd = 12, fine = 0, host = ram;
    struct vfio_fast *vf = open_sim(NULL);
    struct vfio_fast_pages array = pages(1, &odd, &host, 0);

    CHECK_RC(vfio_fast_map_pages(vf, &array), -EINVAL);
    CHECK_RC(vfio_fast_unmap_pages(vf, &array, NULL), -EINVAL);
    array = pages(1, &fine, &odd, 0);
    CHECK_RC(vfio_fast_map_pages(vf, &array), -EINVAL);
    array = pages(UINT64_MAX, &fine, &host, 0);
    CHECK_RC(vfio_fast_map_pages(vf, &array), -EINVAL);
    array = pages(1, (const uint64_t *)(const void *)((const char *)&fine + 1), &host, 0);
    CHECK_RC(vfio_fast_map_pages(vf, &array), -EINVAL);
    CHECK_TEXT("aligned");
    array = pages(1, &fine, &host, VFIO_FAST_REGION_DEVICE);
    CHECK_RC(vfio_fast_map_pages(vf, &array), -EOPNOTSUPP);
    CHECK_RC(vfio_fast_unmap_pages(vf, &array, NULL), -EOPNOTSUPP);
    CHECK(stats(vf).wanted_bytes == 0 && map_calls(vf) == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    ram = memory(8 * MIB);
    runs_are_single_calls();
    joined_on_request();
    part_of_a_transaction();
    wrong_arrays();
    return 0;
}
