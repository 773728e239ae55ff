/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Many threads on one handle, many handles on many threads, and each thread with its own last failure. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 8
#define ROUNDS 32

struct worker {
    pthread_t thread;
    uint64_t number;
    uint64_t hva;
    struct vfio_fast *vf;
};

static pthread_barrier_t barrier;
static atomic_int running;

static void meet(void)
{
    int rc = pthread_barrier_wait(&barrier);

    CHECK(rc == 0 || rc == PTHREAD_BARRIER_SERIAL_THREAD);
}

static void start(struct worker *workers, void *(*body)(void *), struct vfio_fast *shared)
{
    uint64_t i;

    CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (i = 0; i < THREADS; i++) {
        workers[i].number = i;
        workers[i].hva = memory(ROUNDS * MIB);
        workers[i].vf = shared;
        CHECK(pthread_create(&workers[i].thread, NULL, body, &workers[i]) == 0);
    }
}

static void finish(struct worker *workers)
{
    int i;

    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(workers[i].thread, NULL) == 0);
    CHECK(pthread_barrier_destroy(&barrier) == 0);
}

/* Maps a region in each round, in an area of its own, and unmaps every other one. */
static void map_rounds(const struct worker *w)
{
    struct vfio_fast_region r;
    struct vfio_fast_range gone;
    uint64_t round, unmapped;

    for (round = 0; round < ROUNDS; round++) {
        r = region(w->number * 64 * GIB + round * 2 * MIB, MIB, w->hva + round * MIB, VFIO_FAST_REGION_WRITE);
        CHECK_RC(vfio_fast_map_region(w->vf, &r), 0);
        CHECK_RC(vfio_fast_map_region(w->vf, &r), -EEXIST);
        if (round % 2 == 0) {
            gone = range(r.iova, r.length);
            unmapped = 0;
            CHECK_RC(vfio_fast_unmap(w->vf, &gone, &unmapped), 0);
            CHECK(unmapped == MIB);
        }
    }
}

static void *on_shared_handle(void *arg)
{
    meet();
    map_rounds((const struct worker *)arg);
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static void one_handle(void)
{
    struct worker workers[THREADS];
    struct vfio_fast *vf = open_sim(NULL);
    uint64_t before = 0, now;

    atomic_store(&running, THREADS);
    start(workers, on_shared_handle, vf);
    /* Reading statistics is harmless, and totals only grow. */
    while (atomic_load(&running) > 0) {
        now = stats(vf).map_calls;
        CHECK(now >= before);
        before = now;
        CHECK(info(vf).backend == VFIO_FAST_BACKEND_SIM);
    }
    finish(workers);
    CHECK(stats(vf).mapped_bytes == THREADS * ROUNDS / 2 * MIB);
    CHECK(stats(vf).wanted_bytes == THREADS * ROUNDS / 2 * MIB);
    CHECK(stats(vf).map_bytes == THREADS * ROUNDS * MIB);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void *on_own_handle(void *arg)
{
    struct worker *w = (struct worker *)arg;

    w->vf = open_sim(NULL);
    meet();
    map_rounds(w);
    CHECK(stats(w->vf).mapped_bytes == ROUNDS / 2 * MIB);
    CHECK_RC(vfio_fast_close(&w->vf), 0);
    return NULL;
}

static void own_handles(void)
{
    struct worker workers[THREADS];

    start(workers, on_own_handle, NULL);
    finish(workers);
}

/* Every thread fails at its own address and reads that failure back after all have failed. */
static void *own_failure(void *arg)
{
    struct worker *w = (struct worker *)arg;
    struct vfio_fast_region bad = region((w->number + 1) << 12 | 1, MIB, w->hva, 0);
    const char *text;
    char kept[512], address[32];

    CHECK(vfio_fast_last_error()[0] == '\0');
    CHECK(failure().error == 0 && failure().op == VFIO_FAST_OP_NONE);
    meet();
    CHECK_RC(vfio_fast_map_region(w->vf, &bad), -EINVAL);
    text = vfio_fast_last_error();
    snprintf(kept, sizeof(kept), "%s", text);
    meet();
    snprintf(address, sizeof(address), "%#llx", (unsigned long long)bad.iova);
    CHECK_TEXT(address);
    CHECK(vfio_fast_last_error() == text);
    CHECK(strcmp(kept, text) == 0);
    CHECK(failure().iova == bad.iova);
    return NULL;
}

static void own_failures(void)
{
    struct worker workers[THREADS];
    struct vfio_fast *vf = open_sim(NULL);

    start(workers, own_failure, vf);
    finish(workers);
    CHECK(vfio_fast_last_error()[0] == '\0');
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* While a thread has a transaction open, every change of another thread is refused; reading is not. */
static void *refused(void *arg)
{
    struct worker *w = (struct worker *)arg;
    struct vfio_fast_region r = region(GIB, MIB, w->hva, 0);
    struct vfio_fast_range gone = range(0, MIB);
    struct vfio_fast_memory whole = host_memory(w->hva, MIB, 0);

    CHECK_RC(vfio_fast_begin(w->vf), -EBUSY);
    CHECK_TEXT("another thread has a transaction open");
    CHECK_RC(vfio_fast_map_region(w->vf, &r), -EBUSY);
    CHECK_TEXT("another thread has a transaction open");
    CHECK_RC(vfio_fast_unmap(w->vf, &gone, NULL), -EBUSY);
    CHECK_RC(vfio_fast_remap(w->vf, &whole, NULL), -EBUSY);
    CHECK_TEXT("another thread has a transaction open");
    CHECK_RC(vfio_fast_check(w->vf), -EBUSY);
    CHECK_RC(vfio_fast_commit(w->vf, NULL), -EBUSY);
    CHECK_RC(vfio_fast_abort(w->vf), -EBUSY);
    CHECK(info(w->vf).flags & VFIO_FAST_INFO_IN_TRANSACTION);
    CHECK(stats(w->vf).map_calls == 0);
    return NULL;
}

/* After the transaction, another thread may open one, and after that one close the handle. */
static void *next(void *arg)
{
    struct worker *w = (struct worker *)arg;
    struct vfio_fast_region r = region(GIB, MIB, w->hva, 0);

    CHECK_RC(vfio_fast_begin(w->vf), 0);
    CHECK_RC(vfio_fast_map_region(w->vf, &r), 0);
    CHECK(stats(w->vf).mapped_bytes == MIB);
    return NULL;
}

static void owned_by_a_thread(void)
{
    struct worker w;
    struct vfio_fast_region r;

    w.number = 0;
    w.hva = memory(MIB);
    w.vf = open_sim(NULL);
    r = region(0, MIB, w.hva, 0);
    CHECK_RC(vfio_fast_begin(w.vf), 0);
    CHECK_RC(vfio_fast_map_region(w.vf, &r), 0);
    CHECK(pthread_create(&w.thread, NULL, refused, &w) == 0);
    CHECK(pthread_join(w.thread, NULL) == 0);
    CHECK_RC(vfio_fast_commit(w.vf, NULL), 0);
    CHECK(stats(w.vf).mapped_bytes == MIB);
    CHECK(pthread_create(&w.thread, NULL, next, &w) == 0);
    CHECK(pthread_join(w.thread, NULL) == 0);
    /* That thread is gone, and with it the only one that could commit. */
    CHECK_RC(vfio_fast_abort(w.vf), -EBUSY);
    CHECK_RC(vfio_fast_close(&w.vf), 0);
}

int main(void)
{
    own_failures();
    one_handle();
    own_handles();
    owned_by_a_thread();
    return 0;
}
