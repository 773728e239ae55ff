/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Commits in the background: the program goes on while memory is mapped, and is told when it is, or why it is not. */
#include "check.h"

#include <poll.h>
#include <unistd.h>

static struct vfio_fast_progress progress(struct vfio_fast *vf)
{
    struct vfio_fast_progress p;

    memset(&p, 0, sizeof(p));
    p.size = sizeof(p);
    CHECK_RC(vfio_fast_get_progress(vf, &p), 0);
    return p;
}

static int readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = {fd, POLLIN, 0};

    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void map(struct vfio_fast *vf, struct vfio_fast_region *r)
{
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, r), 0);
    CHECK_RC(vfio_fast_commit_background(vf, NULL), 0);
}

static void it_is_mapped_in_the_end(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf = open_sim(&sim);
    struct vfio_fast_region r = region(0, 64 * MIB, memory(64 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range first = range(0, 32 * MIB);
    uint64_t count = 0, unmapped = 0;
    int fd = -1;

    CHECK(progress(vf).state == VFIO_FAST_JOB_NONE);
    CHECK_RC(vfio_fast_wait(vf, 0, 0, 0), 0);
    CHECK_RC(vfio_fast_cancel(vf, 0), 0);
    CHECK_RC(vfio_fast_completion_fd(vf, &fd), 0);
    CHECK(!readable(fd, 0));
    map(vf, &r);
    CHECK(readable(fd, 60000));
    CHECK_RC(vfio_fast_wait(vf, 0, 0, UINT64_MAX), 0);
    CHECK_RC(vfio_fast_wait(vf, 0, 64 * MIB, 0), 0);
    CHECK(progress(vf).state == VFIO_FAST_JOB_DONE);
    CHECK(progress(vf).wanted_bytes == 64 * MIB && progress(vf).mapped_bytes == 64 * MIB);
    CHECK(progress(vf).left_ns == 0 && progress(vf).threads == 0);
    CHECK(stats(vf).mapped_bytes == 64 * MIB);
    CHECK(read(fd, &count, sizeof(count)) == sizeof(count));
    CHECK(!readable(fd, 0));
    CHECK_RC(vfio_fast_unmap(vf, &first, &unmapped), 0);
    CHECK(unmapped == 32 * MIB);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* The second call fails. What was mapped stays until it is cancelled. */
static void a_failure_is_told(uint32_t flags)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region one = region(0, 2 * MIB, memory(2 * MIB), 0);
    struct vfio_fast_region two = region(4 * MIB, 2 * MIB, memory(2 * MIB), 0);
    struct vfio_fast *vf;
    int round;

    sim.fail_nth = 2;
    sim.fail_errno = EFAULT;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &one), 0);
    CHECK_RC(vfio_fast_map_region(vf, &two), 0);
    CHECK_RC(vfio_fast_commit_background(vf, NULL), 0);
    for (round = 0; round < 2; round++) {
        CHECK_RC(vfio_fast_wait(vf, 0, 0, UINT64_MAX), -EFAULT);
        CHECK(failure().op == VFIO_FAST_OP_MAP && failure().iova == 4 * MIB && failure().length == 2 * MIB);
    }
    CHECK_RC(vfio_fast_wait(vf, 0, 2 * MIB, 0), 0);
    CHECK(progress(vf).state == VFIO_FAST_JOB_FAILED);
    CHECK(stats(vf).wanted_bytes == 4 * MIB && stats(vf).mapped_bytes == 2 * MIB);
    CHECK_RC(vfio_fast_cancel(vf, flags), 0);
    CHECK(progress(vf).state == VFIO_FAST_JOB_CANCELLED);
    CHECK(stats(vf).wanted_bytes == (flags ? 0 : 2 * MIB) && stats(vf).mapped_bytes == (flags ? 0 : 2 * MIB));
    CHECK_RC(vfio_fast_wait(vf, 0, 0, 0), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void limits_are_checked_first(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region r = region(0, 16 * MIB, memory(16 * MIB), 0);
    struct vfio_fast *vf;

    sim.memlock_limit = 8 * MIB;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    CHECK_RC(vfio_fast_commit_background(vf, NULL), -ENOMEM);
    CHECK(failure().needed == 16 * MIB && failure().available == 8 * MIB);
    CHECK(progress(vf).state == VFIO_FAST_JOB_NONE && stats(vf).wanted_bytes == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void wrong_calls(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf = open_sim(&sim);

    CHECK_RC(vfio_fast_commit_background(vf, NULL), -EINVAL); /* no transaction */
    CHECK_RC(vfio_fast_cancel(vf, 2), -EOPNOTSUPP);
    CHECK_RC(vfio_fast_wait(vf, UINT64_MAX, 2, 0), -EINVAL);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_cancel(vf, 0), -EBUSY);
    CHECK_RC(vfio_fast_commit_background(vf, NULL), 0);
    CHECK(progress(vf).state == VFIO_FAST_JOB_DONE);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* A handle can be closed while its job works. */
static void it_is_closed_early(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region r = region(0, 64 * MIB, memory(64 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast *vf;
    int round;

    for (round = 0; round < 20; round++) {
        vf = open_sim(&sim);
        map(vf, &r);
        CHECK_RC(vfio_fast_close(&vf), 0);
    }
}

int main(void)
{
    it_is_mapped_in_the_end();
    a_failure_is_told(0);
    a_failure_is_told(VFIO_FAST_CANCEL_UNMAP);
    limits_are_checked_first();
    wrong_calls();
    it_is_closed_early();
    return 0;
}
