/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Handing entries over: lists, sizes and errors. Two handles of the model do not share a container; the engine's tests
 * have two on one.
 */
#include "check.h"

static void lists_entries(struct vfio_fast *vf)
{
    struct vfio_fast_entry entries[3];
    uint64_t count = 0;

    CHECK_RC(vfio_fast_get_entries(vf, NULL, &count), 0);
    CHECK(count == 2);
    memset(entries, 0x5a, sizeof(entries));
    count = 1;
    CHECK_RC(vfio_fast_get_entries(vf, entries, &count), -EMSGSIZE);
    CHECK_TEXT("2 are needed");
    CHECK(count == 1 && entries[0].iova == 0x5a5a5a5a5a5a5a5aULL);
    count = 3;
    CHECK_RC(vfio_fast_get_entries(vf, entries, &count), 0);
    CHECK(count == 2);
    CHECK(entries[0].iova == 0 && entries[0].length == 2 * MIB && entries[0].flags == VFIO_FAST_REGION_WRITE);
    CHECK(entries[1].iova == 4 * MIB && entries[1].length == MIB && entries[1].flags == 0);
    CHECK(entries[2].iova == 0x5a5a5a5a5a5a5a5aULL);
}

static void suspends_and_resumes(struct vfio_fast *vf, uint64_t hva)
{
    struct vfio_fast_region more = region(8 * MIB, MIB, hva, 0);
    struct vfio_fast_range all = range(0, 2 * MIB);

    CHECK_RC(vfio_fast_resume(vf), -EINVAL);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_suspend(vf), -EBUSY);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK_RC(vfio_fast_suspend(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &more), -EBUSY);
    CHECK_TEXT("handed over to another process");
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), -EBUSY);
    lists_entries(vf);
    CHECK_RC(vfio_fast_resume(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &more), 0);
}

static void refuses_what_it_cannot_adopt(struct vfio_fast *vf, uint64_t hva)
{
    struct vfio_fast_entry entry = {.iova = 64 * MIB, .length = MIB};
    struct vfio_fast_region ram = region(64 * MIB, MIB, hva, 0);
    struct vfio_fast_outcome outcome = {.size = sizeof(outcome)};
    struct vfio_fast_config config = sim_config(NULL);
    struct vfio_fast *fresh = NULL;

    CHECK_RC(vfio_fast_adopt(vf, &entry, 1, &outcome), -EINVAL);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_adopt(vf, &entry, 1, &outcome), -EBUSY);
    CHECK_TEXT("mapped something already");

    CHECK_RC(vfio_fast_open(&config, &fresh), 0);
    CHECK_RC(vfio_fast_begin(fresh), 0);
    CHECK_RC(vfio_fast_map_region(fresh, &ram), 0);
    entry.flags = 1ULL << 40;
    CHECK_RC(vfio_fast_adopt(fresh, &entry, 1, &outcome), -EOPNOTSUPP);
    entry.flags = 0;
    entry.length = 0;
    CHECK_RC(vfio_fast_adopt(fresh, &entry, 1, &outcome), -EINVAL);
    CHECK_RC(vfio_fast_adopt(fresh, NULL, 1, &outcome), -EINVAL);
    /* The transaction is still open; the container has no such entry. */
    entry.length = MIB;
    CHECK_RC(vfio_fast_adopt(fresh, &entry, 1, &outcome), -ENOENT);
    CHECK_TEXT("no mapping of exactly this range");
    CHECK_RC(vfio_fast_abort(fresh), -EINVAL);
    /* Nothing to adopt is a commit. */
    CHECK_RC(vfio_fast_begin(fresh), 0);
    CHECK_RC(vfio_fast_map_region(fresh, &ram), 0);
    CHECK_RC(vfio_fast_adopt(fresh, NULL, 0, &outcome), 0);
    CHECK(outcome.map_calls == 1 && outcome.kept_entries == 0);
    CHECK_RC(vfio_fast_close(&fresh), 0);
}

int main(void)
{
    struct vfio_fast_config config = sim_config(NULL);
    uint64_t hva = memory(4 * MIB);
    struct vfio_fast_region ram = region(0, 2 * MIB, hva, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_region rom = region(4 * MIB, MIB, hva + 2 * MIB, 0);
    struct vfio_fast *vf = NULL;

    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK_RC(vfio_fast_map_region(vf, &rom), 0);
    lists_entries(vf);
    suspends_and_resumes(vf, hva + 3 * MIB);
    refuses_what_it_cannot_adopt(vf, hva);
    CHECK_RC(vfio_fast_close(&vf), 0);
    return 0;
}
