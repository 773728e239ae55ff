/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* The size rule for every struct, and every size from 0 to 64 bytes more than in this header.
 *
 * Each struct ends where an unreadable page begins, so reading or writing one byte too many crashes the program. */
#include "check.h"

#include <unistd.h>

#define BEYOND 64

static unsigned char *edge; /* first byte of the unreadable page */
static struct vfio_fast *vf;

/* A struct of `size` bytes right before the edge: a copy of the template, then `tail` bytes. */
static void *place(const void *template_, size_t known, size_t size, unsigned char tail)
{
    size_t room = size < sizeof(uint32_t) ? sizeof(uint32_t) : size;
    unsigned char *at = edge - room;
    uint32_t written = (uint32_t)size;

    memset(at, tail, room);
    memcpy(at, template_, room < known ? room : known);
    memcpy(at, &written, sizeof(written));
    return at;
}

/* A function that takes one struct; its other arguments are valid. */
typedef int (*call_fn)(void *arg);

static int call_open_sim(void *arg)
{
    struct vfio_fast_config config = sim_config((const struct vfio_fast_sim_config *)arg);
    struct vfio_fast *opened = NULL;
    int rc = vfio_fast_open(&config, &opened);

    CHECK((rc == 0) == (opened != NULL));
    CHECK_RC(vfio_fast_close(&opened), 0);
    return rc;
}

static int call_open(void *arg)
{
    struct vfio_fast *opened = NULL;
    int rc = vfio_fast_open((const struct vfio_fast_config *)arg, &opened);

    CHECK((rc == 0) == (opened != NULL));
    CHECK_RC(vfio_fast_close(&opened), 0);
    return rc;
}

static int call_map_region(void *arg)
{
    struct vfio_fast_range all = range(0, MIB);
    uint64_t unmapped = 0;
    int rc = vfio_fast_map_region(vf, (const struct vfio_fast_region *)arg);

    CHECK_RC(vfio_fast_unmap(vf, &all, &unmapped), 0);
    CHECK(unmapped == (rc == 0 ? MIB : 0));
    return rc;
}

static int call_unmap(void *arg)
{
    return vfio_fast_unmap(vf, (const struct vfio_fast_range *)arg, NULL);
}

static int call_map_pages(void *arg)
{
    struct vfio_fast_range all = range(0, MIB);
    uint64_t unmapped = 0;
    int rc = vfio_fast_map_pages(vf, (const struct vfio_fast_pages *)arg);

    CHECK_RC(vfio_fast_unmap(vf, &all, &unmapped), 0);
    CHECK(unmapped == (rc == 0 ? 4096 : 0));
    return rc;
}

static int call_unmap_pages(void *arg)
{
    return vfio_fast_unmap_pages(vf, (const struct vfio_fast_pages *)arg, NULL);
}

static int call_read_dirty(void *arg)
{
    return vfio_fast_read_dirty(vf, (const struct vfio_fast_dirty *)arg);
}

static int call_unmap_dirty(void *arg)
{
    return vfio_fast_unmap_dirty(vf, (const struct vfio_fast_dirty *)arg, NULL);
}

static int call_discard(void *arg)
{
    return vfio_fast_discard(vf, (const struct vfio_fast_memory *)arg);
}

static int call_remap(void *arg)
{
    return vfio_fast_remap(vf, (const struct vfio_fast_memory *)arg, NULL);
}

static int call_commit(void *arg)
{
    int rc;

    CHECK_RC(vfio_fast_begin(vf), 0);
    rc = vfio_fast_commit(vf, (struct vfio_fast_outcome *)arg);
    /* A rejected outcome leaves the transaction open, so no commit goes unreported. */
    CHECK_RC(vfio_fast_abort(vf), rc == 0 ? -EINVAL : 0);
    return rc;
}

static int call_get_stats(void *arg)
{
    return vfio_fast_get_stats(vf, (struct vfio_fast_stats *)arg);
}

static int call_get_progress(void *arg)
{
    return vfio_fast_get_progress(vf, (struct vfio_fast_progress *)arg);
}

static int call_commit_background(void *arg)
{
    int rc;

    CHECK_RC(vfio_fast_begin(vf), 0);
    rc = vfio_fast_commit_background(vf, (struct vfio_fast_outcome *)arg);
    CHECK_RC(vfio_fast_abort(vf), rc == 0 ? -EINVAL : 0);
    return rc;
}

static int call_get_info(void *arg)
{
    return vfio_fast_get_info(vf, (struct vfio_fast_info *)arg);
}

static int call_last_failure(void *arg)
{
    return vfio_fast_last_failure((struct vfio_fast_failure *)arg);
}

/* The struct had `first` bytes in its first release and has `known` bytes now. */
static void sweep_input(const void *template_, size_t first, size_t known, call_fn call)
{
    size_t size, at;
    unsigned char *bytes;

    for (size = 0; size < first; size++)
        CHECK_RC(call(place(template_, known, size, 0)), -EINVAL);
    for (size = first; size <= known + BEYOND; size++) {
        CHECK_RC(call(place(template_, known, size, 0)), 0);
        for (at = known; at < size; at++) {
            bytes = (unsigned char *)place(template_, known, size, 0);
            bytes[at] = 1;
            CHECK_RC(call(bytes), -E2BIG);
        }
    }
    /* An impossible size is rejected, and nothing after it is read. */
    bytes = (unsigned char *)place(template_, known, known, 0);
    memset(bytes, 0xff, sizeof(uint32_t));
    CHECK_RC(call(bytes), -E2BIG);
}

/* The struct had `first` bytes in its first release and has `known` bytes now. */
static void sweep_output(size_t first, size_t known, call_fn call)
{
    static const unsigned char nothing[4096];
    size_t size, at;
    unsigned char *bytes;
    uint32_t written;

    for (size = 0; size < first; size++) {
        bytes = (unsigned char *)place(nothing, 0, size, 0x5a);
        CHECK_RC(call(bytes), -EINVAL);
        for (at = sizeof(written); at < size; at++)
            CHECK(bytes[at] == 0x5a);
    }
    for (size = first; size <= known + BEYOND; size++) {
        /* It is an output, so the previous contents do not matter. */
        bytes = (unsigned char *)place(nothing, 0, size, 0x5a);
        CHECK_RC(call(bytes), 0);
        memcpy(&written, bytes, sizeof(written));
        CHECK(written == size);
        for (at = known; at < size; at++)
            CHECK(bytes[at] == 0);
    }
    bytes = (unsigned char *)place(nothing, 0, known, 0xff);
    memset(bytes, 0xff, sizeof(uint32_t));
    CHECK_RC(call(bytes), -E2BIG);
}

/* Fields after the size that the program was compiled with are not read and count as zero. */
static void what_an_older_program_did_not_set(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(&sim);
    struct vfio_fast *opened = NULL;

    sim.backend = VFIO_FAST_BACKEND_SIM; /* not a driver that the model imitates */
    CHECK_RC(vfio_fast_open(&config, &opened), -EOPNOTSUPP);
    sim.size = (uint32_t)offsetof(struct vfio_fast_sim_config, backend);
    CHECK_RC(vfio_fast_open(&config, &opened), 0);
    CHECK_RC(vfio_fast_close(&opened), 0);

    config.sim = NULL;
    config.backend = VFIO_FAST_BACKEND_IOMMUFD;
    config.iommufd_fd = -1;
    CHECK_RC(vfio_fast_open(&config, &opened), -EBADF);
    config.size = (uint32_t)offsetof(struct vfio_fast_config, iommufd_fd);
    CHECK_RC(vfio_fast_open(&config, &opened), -ENOTTY); /* descriptor 0 is /dev/null */
}

int main(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *room = (unsigned char *)(uintptr_t)memory(2 * page);
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(NULL);
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range all = range(0, MIB);
    const uint64_t iova = 0, hva = memory(MIB);
    uint64_t bits[4] = { 0 };
    struct vfio_fast_dirty some = dirty(0, MIB, bits, 4);
    struct vfio_fast_pages one = pages(1, &iova, &hva, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_memory spare = host_memory(memory(page), page, 0);

    edge = room + page;
    CHECK(mprotect(edge, page, PROT_NONE) == 0);
    vf = open_sim(NULL);

    sweep_input(&sim, offsetof(struct vfio_fast_sim_config, backend), sizeof(sim), call_open_sim);
    sweep_input(&config, offsetof(struct vfio_fast_config, iommufd_fd), sizeof(config), call_open);
    sweep_input(&ram, offsetof(struct vfio_fast_region, fd), sizeof(ram), call_map_region);
    sweep_input(&all, sizeof(all), sizeof(all), call_unmap);
    sweep_input(&one, sizeof(one), sizeof(one), call_map_pages);
    sweep_input(&one, sizeof(one), sizeof(one), call_unmap_pages);
    CHECK_RC(vfio_fast_track_dirty(vf, 1), 0);
    sweep_input(&some, sizeof(some), sizeof(some), call_read_dirty);
    sweep_input(&some, sizeof(some), sizeof(some), call_unmap_dirty);
    CHECK_RC(vfio_fast_track_dirty(vf, 0), 0);
    sweep_input(&spare, sizeof(spare), sizeof(spare), call_discard);
    sweep_input(&spare, sizeof(spare), sizeof(spare), call_remap);
    what_an_older_program_did_not_set();
    sweep_output(sizeof(struct vfio_fast_outcome), sizeof(struct vfio_fast_outcome), call_commit);
    sweep_output(offsetof(struct vfio_fast_stats, remapped_bytes), sizeof(struct vfio_fast_stats), call_get_stats);
    sweep_output(offsetof(struct vfio_fast_info, max_unmap_bytes), sizeof(struct vfio_fast_info), call_get_info);
    sweep_output(sizeof(struct vfio_fast_progress), sizeof(struct vfio_fast_progress), call_get_progress);
    sweep_output(sizeof(struct vfio_fast_outcome), sizeof(struct vfio_fast_outcome), call_commit_background);
    sweep_output(sizeof(struct vfio_fast_failure), sizeof(struct vfio_fast_failure), call_last_failure);

    CHECK_RC(vfio_fast_close(&vf), 0);
    return 0;
}
