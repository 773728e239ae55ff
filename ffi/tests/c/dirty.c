/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Dirty pages: any range, together with an unmap, and requests that are rejected. */
#include "check.h"

#define PAGE 4096u

static void by_any_range(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    struct vfio_fast_region ram = region(MIB, MIB, memory(MIB), VFIO_FAST_REGION_WRITE);
    uint64_t bits[4] = { 0 }, unmapped = 0;
    struct vfio_fast_dirty part = dirty(MIB, MIB, bits, 4);

    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_read_dirty(vf, &part), -EINVAL);
    CHECK_TEXT("not tracked");
    CHECK_RC(vfio_fast_track_dirty(vf, 1), 0);

    /* A part of the only entry, and a page that is not mapped. The model does not know which pages a device
     * writes to. */
    part = dirty(MIB - PAGE, 3 * PAGE, bits, 1);
    CHECK_RC(vfio_fast_read_dirty(vf, &part), 0);
    CHECK(bits[0] == 6);
    /* Bits are added to those already set. */
    bits[0] = 1;
    CHECK_RC(vfio_fast_read_dirty(vf, &part), 0);
    CHECK(bits[0] == 7);

    bits[0] = 0;
    part = dirty(MIB, 2 * PAGE, bits, 1);
    CHECK_RC(vfio_fast_unmap_dirty(vf, &part, &unmapped), 0);
    CHECK(bits[0] == 3 && unmapped == 2 * PAGE);
    CHECK(stats(vf).mapped_bytes == MIB - 2 * PAGE);
    bits[0] = 0;
    CHECK_RC(vfio_fast_unmap_dirty(vf, &part, &unmapped), 0);
    CHECK(bits[0] == 0 && unmapped == 0);
    CHECK_RC(vfio_fast_track_dirty(vf, 0), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void requests_that_are_rejected(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf = open_sim(NULL);
    uint64_t bits[1] = { 0 };
    struct vfio_fast_dirty part = dirty(0, PAGE, bits, 1);

    CHECK_RC(vfio_fast_track_dirty(vf, 2), -EOPNOTSUPP);
    CHECK_RC(vfio_fast_track_dirty(vf, 1), 0);
    CHECK_RC(vfio_fast_read_dirty(vf, &part), 0);
    part.length = 65 * PAGE;
    CHECK_RC(vfio_fast_read_dirty(vf, &part), -EINVAL);
    CHECK_TEXT("bitmap");
    part.length = PAGE;
    part.page_size = 2 * MIB;
    CHECK_RC(vfio_fast_read_dirty(vf, &part), -EINVAL);
    CHECK_TEXT("4096");
    part.page_size = PAGE;
    part.flags = 1;
    CHECK_RC(vfio_fast_read_dirty(vf, &part), -EOPNOTSUPP);
    part.flags = 0;
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_read_dirty(vf, &part), 0);
    CHECK_RC(vfio_fast_unmap_dirty(vf, &part, NULL), -EBUSY);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK(bits[0] == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);

    sim.backend = VFIO_FAST_BACKEND_IOMMUFD;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_track_dirty(vf, 1), -EOPNOTSUPP);
    CHECK(failure().op == VFIO_FAST_OP_DIRTY);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    by_any_range();
    requests_that_are_rejected();
    return 0;
}
