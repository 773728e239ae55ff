/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* What cannot be unmapped, or not mapped again, does not poison: the error and vfio_fast_get_info() tell it, what was unmapped
 * is not wanted, and the same call tries again. */
#include "check.h"

static void check_usable(struct vfio_fast *vf, uint64_t leftovers, uint64_t missing)
{
    CHECK((info(vf).flags & VFIO_FAST_INFO_POISONED) == 0);
    CHECK(info(vf).leftover_entries == leftovers);
    CHECK(info(vf).missing_bytes == missing);
}

/* One entry is all that the container holds: the rest of an unmap in the middle would be two. */
static void no_room_for_the_rest(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_range middle = range(4 * MIB, MIB), all = range(0, 16 * MIB);
    struct vfio_fast_region r;
    struct vfio_fast *vf;
    uint64_t unmapped = 1;
    int round;

    sim.dma_avail = 1;
    vf = open_sim(&sim);
    r = region(0, 16 * MIB, memory(16 * MIB), VFIO_FAST_REGION_WRITE);
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    for (round = 0; round < 2; round++) {
        CHECK_RC(vfio_fast_unmap(vf, &middle, &unmapped), -ENOSPC);
        CHECK_TEXT("still mapped, though not wanted as a whole");
        CHECK(failure().op == VFIO_FAST_OP_CHECK && failure().needed == 2 && failure().available == 1);
        CHECK(failure().iova == 0 && failure().length == 16 * MIB);
        CHECK(stats(vf).mapped_bytes == 16 * MIB && stats(vf).wanted_bytes == 15 * MIB);
        CHECK(stats(vf).unmap_calls == 0);
        check_usable(vf, 1, 0);
    }
    CHECK_RC(vfio_fast_unmap(vf, &all, &unmapped), 0);
    CHECK(unmapped == 15 * MIB && stats(vf).mapped_bytes == 0);
    check_usable(vf, 0, 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* A fresh handle with a region, of which the middle is unmapped; from call fail_nth on, that call fails. */
static struct vfio_fast *with_failure(uint64_t fail_nth, struct vfio_fast_region *r)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf;

    sim.fail_nth = fail_nth;
    sim.fail_errno = EFAULT;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, r), 0);
    return vf;
}

/* One failed call is made up for by the rollback, which makes it again: nothing is left. */
static void one_failure(void)
{
    struct vfio_fast_region r = region(0, 16 * MIB, memory(16 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range middle = range(4 * MIB, MIB);
    struct vfio_fast *vf;
    uint64_t nth;

    for (nth = 2; nth <= 4; nth++) {
        vf = with_failure(nth, &r);
        CHECK_RC(vfio_fast_unmap(vf, &middle, NULL), -EFAULT);
        CHECK(failure().op == (nth == 2 ? VFIO_FAST_OP_UNMAP : VFIO_FAST_OP_MAP));
        CHECK(stats(vf).mapped_bytes == 15 * MIB && stats(vf).wanted_bytes == 15 * MIB);
        check_usable(vf, 0, 0);
        CHECK_RC(vfio_fast_close(&vf), 0);
    }
}

/* The handle is freed, and the error says that something is still mapped. */
static void a_failed_close(void)
{
    struct vfio_fast_region r = region(0, 16 * MIB, memory(16 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast *vf = with_failure(2, &r);

    CHECK_RC(vfio_fast_close(&vf), -EFAULT);
    CHECK(vf == NULL);
    CHECK_TEXT("still mapped, until the container itself is closed");
    CHECK(failure().op == VFIO_FAST_OP_UNMAP && failure().iova == 0 && failure().length == 16 * MIB);
}

int main(void)
{
    no_room_for_the_rest();
    one_failure();
    a_failed_close();
    return 0;
}
