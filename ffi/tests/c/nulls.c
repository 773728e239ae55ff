/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* NULL for every pointer of every function: an error (or the documented meaning), never a crash, and no output. */
#include "check.h"

int main(void)
{
    struct vfio_fast_config config = sim_config(NULL);
    struct vfio_fast *vf = NULL;
    struct vfio_fast *none = NULL;
    struct vfio_fast_region ram = region(0, MIB, memory(MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range all = range(0, MIB);
    struct vfio_fast_outcome outcome;
    struct vfio_fast_stats s;
    struct vfio_fast_info i;
    const uint64_t one = 0;
    struct vfio_fast_pages nowhere = pages(1, NULL, &one, 0), nothing = pages(1, &one, NULL, 0);
    struct vfio_fast_pages empty = pages(0, NULL, NULL, 0);
    struct vfio_fast_dirty no_bits = dirty(0, MIB, NULL, 4);
    struct vfio_fast_memory spare = host_memory(memory(MIB), MIB, 0);
    uint64_t unmapped = 42;
    struct vfio_fast_progress p;
    int fd = 42;
    unsigned char *bytes;
    size_t at;

    memset(&outcome, 0x5a, sizeof(outcome));
    memset(&s, 0x5a, sizeof(s));
    memset(&i, 0x5a, sizeof(i));
    memset(&p, 0x5a, sizeof(p));
    outcome.size = sizeof(outcome);
    s.size = sizeof(s);
    i.size = sizeof(i);
    p.size = sizeof(p);

    CHECK_RC(vfio_fast_open(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_open(NULL, &vf), -EINVAL);
    CHECK(vf == NULL);
    CHECK_TEXT("NULL");
    CHECK_RC(vfio_fast_open(&config, NULL), -EINVAL);
    CHECK(failure().error == -EINVAL && failure().op == VFIO_FAST_OP_CHECK);

    /* A failed open writes nothing. */
    vf = (struct vfio_fast *)&config;
    CHECK_RC(vfio_fast_open(NULL, &vf), -EINVAL);
    CHECK(vf == (struct vfio_fast *)&config);
    vf = NULL;

    CHECK_RC(vfio_fast_open(&config, &vf), 0);

    CHECK_RC(vfio_fast_begin(NULL), -EINVAL);
    CHECK_RC(vfio_fast_map_region(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_map_region(NULL, &ram), -EINVAL);
    CHECK_RC(vfio_fast_map_region(vf, NULL), -EINVAL);
    CHECK_TEXT("vfio_fast_region");
    CHECK_RC(vfio_fast_track_dirty(NULL, 1), -EINVAL);
    CHECK_RC(vfio_fast_read_dirty(NULL, &no_bits), -EINVAL);
    CHECK_RC(vfio_fast_read_dirty(vf, NULL), -EINVAL);
    CHECK_TEXT("vfio_fast_dirty");
    CHECK_RC(vfio_fast_unmap_dirty(NULL, &no_bits, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_unmap_dirty(vf, NULL, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_track_dirty(vf, 1), 0);
    CHECK_RC(vfio_fast_read_dirty(vf, &no_bits), -EINVAL);
    CHECK_RC(vfio_fast_unmap_dirty(vf, &no_bits, &unmapped), -EINVAL);
    CHECK(unmapped == 42);
    CHECK_RC(vfio_fast_track_dirty(vf, 0), 0);
    CHECK_RC(vfio_fast_unmap(NULL, NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_unmap(NULL, &all, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_unmap(vf, NULL, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_discard(NULL, &spare), -EINVAL);
    CHECK_RC(vfio_fast_discard(vf, NULL), -EINVAL);
    CHECK_RC(vfio_fast_check(NULL), -EINVAL);
    CHECK_RC(vfio_fast_suspend(NULL), -EINVAL);
    CHECK_RC(vfio_fast_resume(NULL), -EINVAL);
    CHECK_RC(vfio_fast_get_entries(NULL, NULL, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_get_entries(vf, NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_adopt(NULL, NULL, 0, &outcome), -EINVAL);
    CHECK_RC(vfio_fast_remap(NULL, &spare, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_remap(vf, NULL, &unmapped), -EINVAL);
    CHECK_TEXT("vfio_fast_memory");
    CHECK_RC(vfio_fast_retry_unmap(NULL, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_map_pages(NULL, &empty), -EINVAL);
    CHECK_RC(vfio_fast_map_pages(vf, NULL), -EINVAL);
    CHECK_TEXT("vfio_fast_pages");
    CHECK_RC(vfio_fast_map_pages(vf, &nowhere), -EINVAL);
    CHECK_TEXT("iovas");
    CHECK_RC(vfio_fast_map_pages(vf, &nothing), -EINVAL);
    CHECK_TEXT("hvas");
    CHECK_RC(vfio_fast_map_pages(vf, &empty), 0);
    CHECK_RC(vfio_fast_unmap_pages(NULL, &empty, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_unmap_pages(vf, NULL, &unmapped), -EINVAL);
    CHECK_RC(vfio_fast_unmap_pages(vf, &nowhere, &unmapped), -EINVAL);
    CHECK(unmapped == 42);
    CHECK_RC(vfio_fast_unmap_pages(vf, &nothing, NULL), 0); /* host addresses are ignored */
    CHECK_RC(vfio_fast_unmap_pages(vf, &empty, &unmapped), 0);
    CHECK(unmapped == 0);
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), 0);
    CHECK_RC(vfio_fast_commit(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_commit(NULL, &outcome), -EINVAL);
    CHECK_RC(vfio_fast_commit(vf, NULL), -EINVAL); /* no transaction */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), 0);
    CHECK_RC(vfio_fast_commit_background(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_wait(NULL, 0, 0, 0), -EINVAL);
    CHECK_RC(vfio_fast_completion_fd(NULL, &fd), -EINVAL);
    CHECK_RC(vfio_fast_completion_fd(vf, NULL), -EINVAL);
    CHECK(fd == 42);
    CHECK_RC(vfio_fast_get_progress(NULL, &p), -EINVAL);
    CHECK_RC(vfio_fast_get_progress(vf, NULL), -EINVAL);
    CHECK_RC(vfio_fast_cancel(NULL, 0), -EINVAL);
    CHECK_RC(vfio_fast_abort(NULL), -EINVAL);
    CHECK_RC(vfio_fast_get_stats(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_get_stats(NULL, &s), -EINVAL);
    CHECK_RC(vfio_fast_get_stats(vf, NULL), -EINVAL);
    CHECK_RC(vfio_fast_get_info(NULL, NULL), -EINVAL);
    CHECK_RC(vfio_fast_get_info(NULL, &i), -EINVAL);
    CHECK_RC(vfio_fast_get_info(vf, NULL), -EINVAL);
    CHECK_RC(vfio_fast_last_failure(NULL), -EINVAL);
    CHECK(vfio_fast_last_error() != NULL && vfio_fast_version() != NULL);

    /* Outputs only on success. */
    for (at = sizeof(uint32_t), bytes = (unsigned char *)&outcome; at < sizeof(outcome); at++)
        CHECK(bytes[at] == 0x5a);
    for (at = sizeof(uint32_t), bytes = (unsigned char *)&s; at < sizeof(s); at++)
        CHECK(bytes[at] == 0x5a);
    for (at = sizeof(uint32_t), bytes = (unsigned char *)&i; at < sizeof(i); at++)
        CHECK(bytes[at] == 0x5a);

    CHECK_RC(vfio_fast_close(NULL), 0);
    CHECK_RC(vfio_fast_close(&none), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
    return 0;
}
