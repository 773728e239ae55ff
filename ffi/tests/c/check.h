/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Shared by the test programs: checks that print their line, handles on the sim backend, memory to map. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vfio_fast.h>

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);               \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* The call returns exactly `want`. */
#define CHECK_RC(call, want)                                                              \
    do {                                                                                  \
        int rc_ = (call);                                                                 \
        if (rc_ != (want)) {                                                              \
            fprintf(stderr, "%s:%d: %s: returned %d (%s), expected %d\n", __FILE__,       \
                    __LINE__, #call, rc_, vfio_fast_last_error(), (want));                \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* The last error text of this thread contains `part`. */
#define CHECK_TEXT(part)                                                                  \
    do {                                                                                  \
        if (strstr(vfio_fast_last_error(), (part)) == NULL) {                             \
            fprintf(stderr, "%s:%d: \"%s\" does not contain \"%s\"\n", __FILE__,          \
                    __LINE__, vfio_fast_last_error(), (part));                            \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

static inline struct vfio_fast_sim_config sim_defaults(void)
{
    struct vfio_fast_sim_config sim;

    memset(&sim, 0, sizeof(sim));
    sim.size = sizeof(sim);
    return sim;
}

static inline struct vfio_fast_config sim_config(const struct vfio_fast_sim_config *sim)
{
    struct vfio_fast_config config;

    memset(&config, 0, sizeof(config));
    config.size = sizeof(config);
    config.backend = VFIO_FAST_BACKEND_SIM;
    config.sim = sim;
    return config;
}

static inline struct vfio_fast *open_sim(const struct vfio_fast_sim_config *sim)
{
    struct vfio_fast_config config = sim_config(sim);
    struct vfio_fast *vf = NULL;

    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK(vf != NULL);
    return vf;
}

/* Anonymous memory. Never freed: the programs are short. */
static inline uint64_t memory(uint64_t length)
{
    void *p = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    CHECK(p != MAP_FAILED);
    return (uint64_t)(uintptr_t)p;
}

static inline struct vfio_fast_region region(uint64_t iova, uint64_t length, uint64_t hva, uint32_t flags)
{
    struct vfio_fast_region r;

    memset(&r, 0, sizeof(r));
    r.size = sizeof(r);
    r.flags = flags;
    r.iova = iova;
    r.length = length;
    r.hva = hva;
    return r;
}

static inline struct vfio_fast_range range(uint64_t iova, uint64_t length)
{
    struct vfio_fast_range r;

    memset(&r, 0, sizeof(r));
    r.size = sizeof(r);
    r.iova = iova;
    r.length = length;
    return r;
}

static inline struct vfio_fast_pages pages(uint64_t count, const uint64_t *iovas, const uint64_t *hvas, uint32_t flags)
{
    struct vfio_fast_pages p;

    memset(&p, 0, sizeof(p));
    p.size = sizeof(p);
    p.flags = flags;
    p.count = count;
    p.iovas = iovas;
    p.hvas = hvas;
    return p;
}

static inline struct vfio_fast_dirty dirty(uint64_t iova, uint64_t length, uint64_t *bits, uint64_t words)
{
    struct vfio_fast_dirty d;

    memset(&d, 0, sizeof(d));
    d.size = sizeof(d);
    d.iova = iova;
    d.length = length;
    d.page_size = 4096;
    d.bits = bits;
    d.words = words;
    return d;
}

static inline struct vfio_fast_memory host_memory(uint64_t hva, uint64_t length, uint32_t flags)
{
    struct vfio_fast_memory m;

    memset(&m, 0, sizeof(m));
    m.size = sizeof(m);
    m.flags = flags;
    m.hva = hva;
    m.length = length;
    return m;
}

static inline struct vfio_fast_stats stats(struct vfio_fast *vf)
{
    struct vfio_fast_stats s;

    memset(&s, 0, sizeof(s));
    s.size = sizeof(s);
    CHECK_RC(vfio_fast_get_stats(vf, &s), 0);
    return s;
}

static inline struct vfio_fast_info info(struct vfio_fast *vf)
{
    struct vfio_fast_info i;

    memset(&i, 0, sizeof(i));
    i.size = sizeof(i);
    CHECK_RC(vfio_fast_get_info(vf, &i), 0);
    return i;
}

static inline struct vfio_fast_failure failure(void)
{
    struct vfio_fast_failure f;

    memset(&f, 0, sizeof(f));
    f.size = sizeof(f);
    CHECK_RC(vfio_fast_last_failure(&f), 0);
    return f;
}

#endif
