/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Every function once, in the case of success. */
#include "check.h"

#include <sched.h>

static void versions(void)
{
    char text[32];

    snprintf(text, sizeof(text), "%u.%u.%u", VFIO_FAST_VERSION_MAJOR, VFIO_FAST_VERSION_MINOR,
             VFIO_FAST_VERSION_PATCH);
    CHECK(strcmp(text, vfio_fast_version()) == 0);
    CHECK(vfio_fast_abi_version() == VFIO_FAST_ABI_VERSION);
}

static void single_calls(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    struct vfio_fast_region ram = region(0, 4 * MIB, memory(4 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast_range all = range(0, 4 * MIB);
    struct vfio_fast_range nothing = range(8 * GIB, 4 * KIB);
    uint64_t unmapped = 1;

    /* Outside a transaction each call takes effect before it returns. */
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK(stats(vf).mapped_bytes == 4 * MIB);
    CHECK(stats(vf).wanted_bytes == 4 * MIB);
    CHECK(stats(vf).regions == 1);
    CHECK_RC(vfio_fast_unmap(vf, &nothing, &unmapped), 0);
    CHECK(unmapped == 0);
    CHECK_RC(vfio_fast_unmap(vf, &all, &unmapped), 0);
    CHECK(unmapped == 4 * MIB);
    CHECK(stats(vf).mapped_bytes == 0);
    CHECK(stats(vf).entries == 0);
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void transaction(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    uint64_t hva = memory(8 * MIB);
    struct vfio_fast_region low = region(0, 4 * MIB, hva, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_region high = region(4 * GIB, 4 * MIB, hva + 4 * MIB, 0);
    struct vfio_fast_range low_range = range(low.iova, low.length);
    struct vfio_fast_outcome outcome;

    memset(&outcome, 0xff, sizeof(outcome));
    outcome.size = sizeof(outcome);

    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK(info(vf).flags == VFIO_FAST_INFO_IN_TRANSACTION);
    CHECK_RC(vfio_fast_map_region(vf, &low), 0);
    CHECK_RC(vfio_fast_map_region(vf, &high), 0);
    CHECK(stats(vf).mapped_bytes == 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), 0);
    CHECK(outcome.size == sizeof(outcome));
    CHECK(outcome.map_bytes == 8 * MIB && outcome.unmap_bytes == 0 && outcome.unmap_calls == 0);
    CHECK(outcome.map_calls >= 2);
    CHECK(outcome.device_failures == 0 && outcome.device_error == 0 && outcome.device_length == 0);
    CHECK(outcome.ns > 0);
    CHECK(info(vf).flags == 0);

    /* A region that is unmapped and mapped again unchanged is not touched: the purpose of the library. */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_unmap(vf, &low_range, NULL), 0);
    CHECK_RC(vfio_fast_map_region(vf, &low), 0);
    CHECK_RC(vfio_fast_commit(vf, &outcome), 0);
    CHECK(outcome.map_calls == 0 && outcome.unmap_calls == 0);
    CHECK(outcome.kept_bytes == 4 * MIB && outcome.kept_entries >= 1);

    /* An aborted transaction changes nothing. */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_unmap(vf, &low_range, NULL), 0);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK(stats(vf).mapped_bytes == 8 * MIB);
    CHECK(stats(vf).wanted_bytes == 8 * MIB);

    /* An empty transaction is counted as such; outcome may be NULL. */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), 0);
    CHECK(stats(vf).empty_commits == 1);

    /* Closing unmaps what is left and discards an open transaction. */
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK(vf == NULL);
}

static void edges(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    struct vfio_fast_region last = region(UINT64_MAX - 4 * KIB + 1, 4 * KIB, memory(4 * KIB), 0);
    struct vfio_fast_range last_range = range(last.iova, last.length);
    uint64_t unmapped = 0;

    /* The page that ends at 2^64. */
    CHECK_RC(vfio_fast_map_region(vf, &last), 0);
    CHECK(stats(vf).mapped_bytes == 4 * KIB);
    CHECK_RC(vfio_fast_unmap(vf, &last_range, &unmapped), 0);
    CHECK(unmapped == 4 * KIB);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void information(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(&sim);
    struct vfio_fast *vf = NULL;
    struct vfio_fast_info i;

    sim.dma_avail = 100;
    sim.memlock_limit = 64 * MIB;
    config.entry_size = 2 * MIB;
    config.threads = 1;
    config.max_unmap_entries = 7;
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    i = info(vf);
    CHECK(i.flags == 0);
    CHECK(i.max_unmap_entries == 7 && i.max_unmap_bytes >= 2 * MIB);
    CHECK(i.superpages == VFIO_FAST_SUPERPAGES_COARSE); /* the model has VT-d's pages */
    CHECK(i.backend == VFIO_FAST_BACKEND_SIM);
    CHECK(i.threads == 1);
    CHECK((i.iova_pgsizes & (4 * KIB)) != 0);
    CHECK(i.entry_size == 2 * MIB);
    CHECK(i.dma_avail == 100);
    CHECK(i.iova_ranges == 0 && i.iova_first == 0 && i.iova_last == UINT64_MAX); /* the model does not report them */
    CHECK(i.memlock_limit == 64 * MIB);
    CHECK_RC(vfio_fast_close(&vf), 0);

    /* iommufd: calls run concurrently, entries are not limited, and the kernel charges the user. */
    sim.backend = VFIO_FAST_BACKEND_IOMMUFD;
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    i = info(vf);
    CHECK(i.flags == (VFIO_FAST_INFO_PARALLEL | VFIO_FAST_INFO_MEMLOCK_PER_USER));
    CHECK(i.backend == VFIO_FAST_BACKEND_SIM);
    CHECK(i.dma_avail == UINT64_MAX);
    config.max_unmap_entries = 0;
    CHECK_RC(vfio_fast_close(&vf), 0);
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK(info(vf).max_unmap_entries == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* Entries are cut where the caller says, and nowhere else below the entry size. */
static void cuts(void)
{
    uint64_t at[] = { 3 * MIB, MIB };
    struct vfio_fast_config config = sim_config(NULL);
    struct vfio_fast_region ram = region(0, 4 * MIB, memory(4 * MIB), VFIO_FAST_REGION_WRITE);
    struct vfio_fast *vf = NULL;

    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK(stats(vf).entries == 1);
    CHECK_RC(vfio_fast_close(&vf), 0);

    config.cuts = at;
    config.cut_count = 2;
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    memset(at, 0xff, sizeof(at)); /* read only during the call */
    CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
    CHECK(stats(vf).entries == 3);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* The number of threads follows the set; a bound thread may use all CPUs of the process. */
static void cpu_sets(void)
{
    struct vfio_fast_config config = sim_config(NULL);
    struct vfio_fast *vf = open_sim(NULL);
    uint32_t all = info(vf).threads;
    cpu_set_t set;

    CHECK(all >= 1);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    config.cpu_set = &set;
    config.cpu_set_size = sizeof(set);
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CPU_ZERO(&set); /* read only during the call */
    CHECK(info(vf).threads == 1);
    CHECK_RC(vfio_fast_close(&vf), 0);
    CPU_SET(0, &set);
    config.threads = 5; /* more than CPUs in the set */
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK(info(vf).threads == 1);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    versions();
    CHECK(vfio_fast_last_error()[0] == '\0');
    CHECK(failure().error == 0 && failure().op == VFIO_FAST_OP_NONE);
    single_calls();
    transaction();
    edges();
    information();
    cuts();
    cpu_sets();
    /* No call has failed. */
    CHECK(vfio_fast_last_error()[0] == '\0');
    return 0;
}
