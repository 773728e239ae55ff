/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Every kernel call of a sequence fails once, each in a run of its own: the errno is returned, the numbers say where,
 * and the mappings match what is wanted. Then device regions, which do not make a commit fail. */
#include "check.h"

#define REGIONS 3

/* Maps three regions in one transaction, replaces one in a second, unmaps all in a third. Returns the number of kernel
 * calls, or the first error. */
static int script(struct vfio_fast *vf, uint64_t hva, uint64_t *calls)
{
    struct vfio_fast_region r;
    struct vfio_fast_range gone;
    uint64_t i;
    int rc;

    CHECK_RC(vfio_fast_begin(vf), 0);
    for (i = 0; i < REGIONS; i++) {
        r = region(i * 4 * MIB, 2 * MIB, hva + i * 2 * MIB, VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_EXACT);
        CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    }
    rc = vfio_fast_commit(vf, NULL);
    if (rc != 0) {
        CHECK(stats(vf).wanted_bytes == 0);
        return rc;
    }

    CHECK_RC(vfio_fast_begin(vf), 0);
    gone = range(4 * MIB, 2 * MIB);
    CHECK_RC(vfio_fast_unmap(vf, &gone, NULL), 0);
    r = region(4 * MIB, MIB, hva, VFIO_FAST_REGION_EXACT);
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    rc = vfio_fast_commit(vf, NULL);
    if (rc != 0) {
        CHECK(stats(vf).wanted_bytes == 4 * MIB);
        return rc;
    }

    CHECK_RC(vfio_fast_begin(vf), 0);
    gone = range(0, GIB);
    CHECK_RC(vfio_fast_unmap(vf, &gone, NULL), 0);
    rc = vfio_fast_commit(vf, NULL);
    *calls = stats(vf).map_calls + stats(vf).unmap_calls;
    return rc;
}

static void sweep(uint32_t backend)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf;
    uint64_t hva = memory(16 * MIB), calls = 0, nth, ignored;
    int unmap_failures = 0, map_failures = 0;

    sim.backend = backend;
    vf = open_sim(&sim);
    CHECK_RC(script(vf, hva, &calls), 0);
    CHECK(calls >= 2 * REGIONS);
    CHECK_RC(vfio_fast_close(&vf), 0);

    for (nth = 1; nth <= calls; nth++) {
        struct vfio_fast_failure f;

        sim.fail_nth = nth;
        sim.fail_errno = EPERM;
        vf = open_sim(&sim);
        CHECK_RC(script(vf, hva, &ignored), -EPERM);
        f = failure();
        CHECK(f.error == -EPERM);
        CHECK(f.op == VFIO_FAST_OP_MAP || f.op == VFIO_FAST_OP_UNMAP);
        CHECK(f.length > 0 && f.needed == 0 && f.available == 0);
        if (f.op == VFIO_FAST_OP_MAP) {
            CHECK(f.hva >= hva && f.hva < hva + 16 * MIB);
            CHECK_TEXT("Mapping");
            map_failures++;
        } else {
            CHECK_TEXT("Unmapping");
            unmap_failures++;
        }
        /* One failure can be rolled back: the handle is not poisoned, and a second attempt starts clean. */
        CHECK((info(vf).flags & VFIO_FAST_INFO_POISONED) == 0);
        CHECK(stats(vf).mapped_bytes == stats(vf).wanted_bytes);
        CHECK(stats(vf).failed_commits == 1 && stats(vf).rollbacks == 1);
        CHECK_RC(vfio_fast_close(&vf), 0);
    }
    CHECK(map_failures == REGIONS + 1);
    CHECK(unmap_failures >= 2);

    /* One call later nothing fails. */
    sim.fail_nth = calls + 1;
    vf = open_sim(&sim);
    CHECK_RC(script(vf, hva, &ignored), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);

    /* The default errno. */
    sim.fail_nth = 1;
    sim.fail_errno = 0;
    vf = open_sim(&sim);
    CHECK_RC(script(vf, hva, &ignored), -EIO);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void device_regions(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_outcome outcome;
    struct vfio_fast_region bar, ram;
    struct vfio_fast_range bar_range;
    struct vfio_fast *vf;
    uint64_t hva = memory(8 * MIB), unmapped = 0;

    memset(&outcome, 0, sizeof(outcome));
    outcome.size = sizeof(outcome);
    sim.fail_nth = 2; /* RAM is mapped first */
    sim.fail_errno = EFAULT;
    vf = open_sim(&sim);
    bar = region(64 * MIB, 2 * MIB, hva, VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_DEVICE);
    ram = region(128 * MIB, 4 * MIB, hva + 4 * MIB, VFIO_FAST_REGION_WRITE);
    bar_range = range(bar.iova, bar.length);

    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &bar), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), 0);
    CHECK(outcome.device_failures == 1 && outcome.device_error == -EFAULT);
    CHECK(outcome.device_iova == bar.iova && outcome.device_length == bar.length && outcome.device_hva == bar.hva);
    CHECK(stats(vf).mapped_bytes == ram.length && stats(vf).device_failures == 1);
    CHECK(stats(vf).wanted_bytes == ram.length + bar.length);

    /* Not tried again until it is unmapped and mapped. */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_unmap(vf, &bar_range, &unmapped), 0);
    CHECK(unmapped == bar.length);
    CHECK_RC(vfio_fast_map_region(vf, &bar), 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), 0);
    CHECK(outcome.device_failures == 0 && outcome.device_error == 0 && outcome.device_iova == 0);
    CHECK(stats(vf).mapped_bytes == ram.length + bar.length);
    CHECK_RC(vfio_fast_close(&vf), 0);

    /* An errno that does not say that device memory cannot be mapped. */
    sim.fail_errno = EEXIST;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &bar), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), -EEXIST);
    CHECK(stats(vf).wanted_bytes == 0 && stats(vf).mapped_bytes == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);

    /* A single call has no outcome that could report it: the call fails, and nothing stays mapped. */
    sim.fail_nth = 1;
    sim.fail_errno = EFAULT;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, &bar), -EFAULT);
    CHECK(stats(vf).wanted_bytes == 0 && stats(vf).mapped_bytes == 0);
    CHECK_RC(vfio_fast_map_region(vf, &bar), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    sweep(VFIO_FAST_BACKEND_TYPE1);
    sweep(VFIO_FAST_BACKEND_IOMMUFD); /* several threads at once if there is more than one CPU */
    device_regions();
    return 0;
}
