/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* A thread that is cancelled inside the library ends after the call, and that takes no system call. */
#include "check.h"

#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALLS 1000

static int logged;
/* Whether the cancelled thread came to its own cancellation point, and past it. */
static int reached, passed;

static int cancel_state(void)
{
    int state, ignored;

    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state) == 0);
    CHECK(pthread_setcancelstate(state, &ignored) == 0);
    return state;
}

/* Sleeping is a cancellation point, but not while the library waits for this function. */
static void take(void *opaque, uint32_t level, const char *message)
{
    (void)opaque, (void)level, (void)message;
    CHECK(cancel_state() == PTHREAD_CANCEL_DISABLE);
    usleep(1);
    logged++;
}

/* Calls functions that open and read files, map, unmap, log and start threads. */
static void call_everything(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(&sim);
    struct vfio_fast *vf = NULL;
    struct vfio_fast_region ram = region(0, 32 * MIB, memory(32 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_region bar = region(GIB, MIB, memory(MIB), VFIO_FAST_REGION_DEVICE);
    struct vfio_fast_range all = range(0, 2 * GIB);
    struct vfio_fast_memory gone = host_memory(ram.hva, ram.length, 0);

    sim.fail_nth = 2;
    sim.fail_errno = EFAULT;
    config.log = take;
    config.log_level = VFIO_FAST_LOG_DEBUG;
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_map_region(vf, &bar), 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), -EEXIST);
    CHECK(strlen(vfio_fast_last_error()) > 0);
    CHECK(info(vf).backend == VFIO_FAST_BACKEND_SIM);
    CHECK(stats(vf).mapped_bytes == ram.length);
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), 0);
    CHECK_RC(vfio_fast_discard(vf, &gone), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void *cancelled(void *arg)
{
    (void)arg;
    CHECK(pthread_cancel(pthread_self()) == 0);
    call_everything();
    CHECK(cancel_state() == PTHREAD_CANCEL_ENABLE);
    reached = 1;
    pthread_testcancel();
    passed = 1;
    return NULL;
}

static void *not_to_be_cancelled(void *arg)
{
    int before;

    (void)arg;
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before) == 0);
    CHECK(pthread_cancel(pthread_self()) == 0);
    call_everything();
    CHECK(cancel_state() == PTHREAD_CANCEL_DISABLE);
    return NULL;
}

static void *join(void *(*body)(void *))
{
    pthread_t thread;
    void *result;

    CHECK(pthread_create(&thread, NULL, body, NULL) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    return result;
}

/* Makes system calls impossible for a child, and returns how it ended. */
static int without_system_calls(int with_one)
{
    struct vfio_fast_stats s;
    int status, i;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child > 0) {
        CHECK(waitpid(child, &status, 0) == child);
        return status;
    }
    struct vfio_fast *vf = open_sim(NULL);

    s = stats(vf);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0)
        _exit(2);
    if (with_one)
        syscall(SYS_getppid);
    for (i = 0; i < CALLS; i++)
        s = stats(vf);
    syscall(SYS_exit, s.map_calls == 0 ? 0 : 3);
    return 0;
}

int main(void)
{
    int killed = without_system_calls(1);

    CHECK(join(cancelled) == PTHREAD_CANCELED);
    CHECK(reached && !passed);
    CHECK(join(not_to_be_cancelled) == NULL);
    CHECK(logged > 0);

    CHECK(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL);
    CHECK(without_system_calls(0) == 0);
    return 0;
}
