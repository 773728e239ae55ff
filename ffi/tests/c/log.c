/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* The log function: its arguments, its thread, and that it cannot deadlock on its own handle. */
#include "check.h"

#include <pthread.h>

struct sink {
    struct vfio_fast *vf;
    pthread_t caller;
    unsigned int count;
    uint32_t level;
    char text[512];
};

static void take(void *opaque, uint32_t level, const char *message)
{
    struct sink *sink = (struct sink *)opaque;
    struct vfio_fast *vf = sink->vf;
    struct vfio_fast_stats s;
    struct vfio_fast_region r = region(0, MIB, 0, 0);

    CHECK(pthread_equal(sink->caller, pthread_self()));
    CHECK(message[0] != '\0' && strchr(message, '\n') == NULL);
    sink->count++;
    sink->level = level;
    snprintf(sink->text, sizeof(sink->text), "%s", message);

    /* A call with the handle is refused: it would wait for itself. */
    memset(&s, 0, sizeof(s));
    s.size = sizeof(s);
    CHECK_RC(vfio_fast_begin(vf), -EDEADLK);
    CHECK_RC(vfio_fast_map_region(vf, &r), -EDEADLK);
    CHECK_RC(vfio_fast_get_stats(vf, &s), -EDEADLK);
    CHECK_RC(vfio_fast_close(&vf), -EDEADLK);
    CHECK(vf == sink->vf);
    CHECK_TEXT("log function");
    CHECK(failure().error == -EDEADLK);
    CHECK(vfio_fast_abi_version() == VFIO_FAST_ABI_VERSION);
}

static void open_logging(struct sink *sink, uint32_t level)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(&sim);

    memset(sink, 0, sizeof(*sink));
    sink->caller = pthread_self();
    sim.fail_nth = 1;
    sim.fail_errno = EPERM;
    config.log = take;
    config.log_opaque = sink;
    config.log_level = level;
    CHECK_RC(vfio_fast_open(&config, &sink->vf), 0);
}

static void refuse_device(struct sink *sink)
{
    struct vfio_fast_region bar = region(0x40000000, MIB, memory(MIB), VFIO_FAST_REGION_DEVICE);

    CHECK_RC(vfio_fast_begin(sink->vf), 0);
    CHECK_RC(vfio_fast_map_region(sink->vf, &bar), 0);
    CHECK_RC(vfio_fast_commit(sink->vf, NULL), 0);
}

int main(void)
{
    struct sink sink;
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), 0);

    /* A device region that the kernel refuses causes a warning, not an error. */
    open_logging(&sink, VFIO_FAST_LOG_WARN);
    refuse_device(&sink);
    CHECK(sink.count == 1 && sink.level == VFIO_FAST_LOG_WARN);
    CHECK(strstr(sink.text, "0x40000000") != NULL);
    CHECK_RC(vfio_fast_close(&sink.vf), 0);
    CHECK(sink.count == 1);

    /* At level ERROR the warning is not delivered. */
    open_logging(&sink, VFIO_FAST_LOG_ERROR);
    refuse_device(&sink);
    CHECK(sink.count == 0);
    CHECK_RC(vfio_fast_close(&sink.vf), 0);

    /* A failed commit is logged as an error before the call returns. It replaces the failure inside the log function as
     * the thread's last failure. */
    open_logging(&sink, VFIO_FAST_LOG_ERROR);
    CHECK_RC(vfio_fast_map_region(sink.vf, &ram), -EPERM);
    CHECK(sink.count == 1 && sink.level == VFIO_FAST_LOG_ERROR);
    CHECK(failure().error == -EPERM && failure().op == VFIO_FAST_OP_MAP);
    CHECK_RC(vfio_fast_close(&sink.vf), 0);

    /* Level 0 delivers nothing. */
    open_logging(&sink, 0);
    CHECK_RC(vfio_fast_map_region(sink.vf, &ram), -EPERM);
    CHECK(sink.count == 0);
    CHECK_RC(vfio_fast_close(&sink.vf), 0);
    return 0;
}
