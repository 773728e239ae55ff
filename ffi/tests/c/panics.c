/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* The library panics inside each kernel call in turn: the program continues, the handle is poisoned, and only queries
 * and closing still work. */
#include "check.h"

#include <pthread.h>

#define THREADS 8
#define WHAT_IT_IS (VFIO_FAST_INFO_PARALLEL | VFIO_FAST_INFO_MEMLOCK_PER_USER)

static void check_poisoned(struct vfio_fast *vf)
{
    struct vfio_fast_region ram = region(64 * MIB, MIB, memory(MIB), 0);
    struct vfio_fast_range all = range(0, GIB);
    uint64_t unmapped = 42;

    CHECK(failure().error == -ENOTRECOVERABLE);
    CHECK_TEXT("panic asked for");

    CHECK_RC(vfio_fast_begin(vf), -ENOTRECOVERABLE);
    CHECK_TEXT("panic asked for");
    CHECK_RC(vfio_fast_map_region(vf, &ram), -ENOTRECOVERABLE);
    CHECK_RC(vfio_fast_unmap(vf, &all, &unmapped), -ENOTRECOVERABLE);
    CHECK_RC(vfio_fast_commit(vf, NULL), -ENOTRECOVERABLE);
    CHECK_RC(vfio_fast_abort(vf), -ENOTRECOVERABLE);
    CHECK(unmapped == 42);

    (void)stats(vf);
    CHECK((info(vf).flags & ~WHAT_IT_IS) == VFIO_FAST_INFO_POISONED);
    CHECK(failure().op == VFIO_FAST_OP_CHECK && failure().error == -ENOTRECOVERABLE);
}

/* Call 1: a map outside a transaction. */
static void single_call(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), 0);
    struct vfio_fast *vf;

    sim.panic_nth = 1;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, &ram), -ENOTRECOVERABLE);
    check_poisoned(vf);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
}

/* The nth call of a transaction that replaces an exact region and maps another; on iommufd by two threads at once. */
static void in_commit(uint32_t backend, uint64_t nth)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    uint64_t hva = memory(8 * MIB);
    struct vfio_fast_region a = region(0, 4 * MIB, hva, VFIO_FAST_REGION_EXACT);
    struct vfio_fast_region b = region(GIB, 4 * MIB, hva + 4 * MIB, VFIO_FAST_REGION_EXACT);
    struct vfio_fast_range a_range = range(a.iova, a.length);
    struct vfio_fast_outcome outcome;
    struct vfio_fast *vf;

    memset(&outcome, 0x5a, sizeof(outcome));
    outcome.size = sizeof(outcome);
    sim.backend = backend;
    sim.panic_nth = 1 + nth;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, &a), 0); /* call 1 */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_unmap(vf, &a_range, NULL), 0);
    CHECK_RC(vfio_fast_map_region(vf, &a), 0);
    CHECK_RC(vfio_fast_map_region(vf, &b), 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), -ENOTRECOVERABLE); /* unmap, map, map */
    CHECK(outcome.map_calls == 0x5a5a5a5a);
    check_poisoned(vf);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
}

/* Closing unmaps, and that panics: the handle is gone nevertheless. */
static void in_close(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), 0);
    struct vfio_fast *vf;

    sim.panic_nth = 2;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_close(&vf), -ENOTRECOVERABLE);
    CHECK(vf == NULL);
    CHECK_TEXT("panic asked for");
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* A failure that is rolled back, then a panic. */
static void after_a_failure(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), 0);
    struct vfio_fast *vf;

    sim.fail_nth = 1;
    sim.panic_nth = 2;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_map_region(vf, &ram), -EIO);
    CHECK_RC(vfio_fast_map_region(vf, &ram), -ENOTRECOVERABLE);
    check_poisoned(vf);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
}

struct worker {
    pthread_t thread;
    uint64_t number;
    struct vfio_fast *vf;
};

static void *map_until_it_fails(void *arg)
{
    const struct worker *w = (const struct worker *)arg;
    struct vfio_fast_region r;
    uint64_t i = 0;
    int rc;

    do {
        /* The model never accesses the memory. */
        r = region(w->number * 64 * GIB + i * 4 * KIB, 4 * KIB, MIB, VFIO_FAST_REGION_EXACT);
        i++;
        rc = vfio_fast_map_region(w->vf, &r);
    } while (rc == 0);
    CHECK(rc == -ENOTRECOVERABLE);
    return NULL;
}

/* A thread that waits for the handle while another one panics must not use the state it left: after a kernel call has
 * panicked, there are no further kernel calls. */
static void while_others_wait(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct worker workers[THREADS];
    struct vfio_fast *vf;
    uint64_t i;

    sim.panic_nth = 200;
    vf = open_sim(&sim);
    for (i = 0; i < THREADS; i++) {
        workers[i].number = i;
        workers[i].vf = vf;
        CHECK(pthread_create(&workers[i].thread, NULL, map_until_it_fails, &workers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(workers[i].thread, NULL) == 0);
    CHECK(stats(vf).map_calls == sim.panic_nth - 1);
    check_poisoned(vf);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    int round;
    struct vfio_fast *vf;
    uint64_t nth;

    single_call();
    for (nth = 1; nth <= 3; nth++) {
        in_commit(VFIO_FAST_BACKEND_TYPE1, nth);
        in_commit(VFIO_FAST_BACKEND_IOMMUFD, nth);
    }
    in_close();
    after_a_failure();
    for (round = 0; round < 50; round++)
        while_others_wait();

    /* A poisoned handle does not affect the next one. */
    vf = open_sim(NULL);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
    return 0;
}
