/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Checking a transaction before it is committed or aborted, and mapping memory again whose pages were replaced. */
#include "check.h"

static int check(struct vfio_fast *vf, uint64_t length)
{
    struct vfio_fast_region ram = region(16 * MIB, length, memory(length), VFIO_FAST_REGION_WRITE);
    int rc;

    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    rc = vfio_fast_check(vf);
    CHECK_RC(vfio_fast_abort(vf), 0);
    return rc;
}

static void a_check_refuses_what_a_commit_would(void)
{
    struct vfio_fast_sim_config sim = { .size = sizeof(sim), .memlock_limit = 8 * MIB };
    struct vfio_fast *vf = open_sim(&sim);
    struct vfio_fast_stats before = stats(vf);

    CHECK_RC(vfio_fast_check(vf), -EINVAL);
    CHECK_TEXT("no transaction");
    CHECK_RC(check(vf, 9 * MIB), -ENOMEM);
    CHECK_TEXT("RLIMIT_MEMLOCK");
    CHECK(failure().op == VFIO_FAST_OP_CHECK && failure().needed == 9 * MIB && failure().available == 8 * MIB);
    CHECK_RC(check(vf, 8 * MIB), 0);
    CHECK(stats(vf).map_calls == before.map_calls && stats(vf).regions == before.regions);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void replaced_memory_is_mapped_again(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    uint64_t hva = memory(4 * MIB), bytes = 42;
    struct vfio_fast_region ram = region(0, 4 * MIB, hva, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_memory page = host_memory(hva + MIB, 4 * KIB, 0);
    struct vfio_fast_memory none = host_memory(hva, 0, 0);
    struct vfio_fast_memory flag = host_memory(hva, MIB, VFIO_FAST_MEMORY_SHARED);

    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_remap(vf, &none, &bytes), -EINVAL);
    CHECK_RC(vfio_fast_remap(vf, &flag, &bytes), -EOPNOTSUPP);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_remap(vf, &page, &bytes), -EBUSY);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK(bytes == 42);
    CHECK_RC(vfio_fast_remap(vf, &page, &bytes), 0);
    CHECK(bytes == 4 * MIB && stats(vf).unmap_calls == 1 && stats(vf).map_calls == 2 && stats(vf).regions == 1);
    page.hva = hva + 4 * MIB;
    CHECK_RC(vfio_fast_remap(vf, &page, NULL), 0);
    CHECK(stats(vf).map_calls == 2);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    a_check_refuses_what_a_commit_would();
    replaced_memory_is_mapped_again();
    return 0;
}
