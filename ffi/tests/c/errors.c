/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Errors: the errno, the numbers, and a message that says what is needed, what is available and what to change. */
#include "check.h"

#include <unistd.h>

static void check_failure(uint32_t op, int error, uint64_t iova, uint64_t length, uint64_t hva)
{
    struct vfio_fast_failure f = failure();

    CHECK(f.op == op);
    CHECK(f.error == error);
    CHECK(f.iova == iova);
    CHECK(f.length == length);
    CHECK(f.hva == hva);
    CHECK(f.reserved == 0);
}

static void bad_cuts(const struct vfio_fast_sim_config *sim)
{
    static const uint64_t cuts[] = { 64 * MIB, MIB + 2 * KIB };
    struct vfio_fast_config config = sim_config(sim);
    struct vfio_fast *vf = NULL;

    config.cuts = cuts;
    config.cut_count = 2;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("0x100800");
    CHECK_TEXT("4096");
    CHECK(failure().op == VFIO_FAST_OP_OPEN);
    config.cuts = (const uint64_t *)((uintptr_t)cuts + 1);
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("cuts");
    config.cuts = NULL;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("cuts");
    CHECK(vf == NULL);
    /* The array is not read at all if it has no elements. */
    config.cuts = (const uint64_t *)1;
    config.cut_count = 0;
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void bad_cpu_sets(const struct vfio_fast_sim_config *sim)
{
    static const unsigned char empty[200], one[3] = { 0, 0, 1 };
    struct vfio_fast_config config = sim_config(sim);
    struct vfio_fast *vf = NULL;

    config.cpu_set = empty;
    config.cpu_set_size = sizeof(empty);
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("cpu_set");
    config.cpu_set_size = 0;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("cpu_set");
    config.cpu_set = NULL;
    config.cpu_set_size = 8;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("cpu_set");
    CHECK(vf == NULL);
    /* Any size is accepted, and CPUs that do not exist are no error, as with sched_setaffinity(2). */
    config.cpu_set = one;
    config.cpu_set_size = sizeof(one);
    CHECK_RC(vfio_fast_open(&config, &vf), 0);
    CHECK(info(vf).threads == 1);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void bad_configurations(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_config config = sim_config(&sim);
    struct vfio_fast *vf = NULL;

    config.flags = ~VFIO_FAST_CONFIG_NO_HUGEPAGE;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK_TEXT("flags");
    config = sim_config(&sim);
    config.backend = 0;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK_TEXT("backend");
    config = sim_config(&sim);
    config.log_level = VFIO_FAST_LOG_DEBUG + 1;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK_TEXT("log_level");
    config = sim_config(&sim);
    config.entry_size = 3 * MIB;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("entry size");
    config.entry_size = MIB;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    config = sim_config(&sim);
    config.backend = VFIO_FAST_BACKEND_TYPE1;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("VFIO_FAST_BACKEND_SIM");
    config.sim = NULL;
    config.container_fd = -1;
    CHECK_RC(vfio_fast_open(&config, &vf), -EBADF);
    CHECK(failure().op == VFIO_FAST_OP_OPEN);
    config.container_fd = 0; /* the test runner opens /dev/null, which is not a container */
    CHECK_RC(vfio_fast_open(&config, &vf), -ENOTTY);
    config.backend = VFIO_FAST_BACKEND_IOMMUFD;
    config.ioas_id = 1;
    CHECK_RC(vfio_fast_open(&config, &vf), -ENOTTY);
    config.iommufd_fd = -1;
    CHECK_RC(vfio_fast_open(&config, &vf), -EBADF);
    CHECK(failure().op == VFIO_FAST_OP_OPEN);
    config.sim = &sim;
    CHECK_RC(vfio_fast_open(&config, &vf), -EINVAL);
    CHECK_TEXT("VFIO_FAST_BACKEND_SIM");

    bad_cuts(&sim);
    bad_cpu_sets(&sim);

    config = sim_config(&sim);
    sim.backend = VFIO_FAST_BACKEND_SIM;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK_TEXT("struct vfio_fast_sim_config: backend");
    sim.backend = VFIO_FAST_BACKEND_IOMMUFD;
    sim.iova_bits = 32;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK_TEXT("iova_bits");
    sim.iova_bits = 65;
    CHECK_RC(vfio_fast_open(&config, &vf), -EOPNOTSUPP);
    CHECK(vf == NULL);
}

/* Ranges that run past the end of the address space: -EINVAL of the library for both drivers and every kernel, although
 * kernels return EOVERFLOW (iommufd, and type1 since 6.18). A range may end with the last byte. */
static void around_the_end(void)
{
    const uint64_t last = UINT64_MAX - 4 * KIB + 1, longer[] = {8 * KIB, MIB, last, UINT64_MAX - KIB + 1};
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region r;
    struct vfio_fast_range gone;
    struct vfio_fast_memory m;
    struct vfio_fast_dirty d;
    struct vfio_fast *vf;
    uint64_t hva = memory(MIB), bits[1], backend, n;

    for (backend = VFIO_FAST_BACKEND_TYPE1; backend <= VFIO_FAST_BACKEND_IOMMUFD; backend++) {
        sim.backend = (uint32_t)backend;
        vf = open_sim(&sim);
        CHECK(vfio_fast_track_dirty(vf, 1) == (backend == VFIO_FAST_BACKEND_TYPE1 ? 0 : -EOPNOTSUPP));
        for (n = 0; n < sizeof(longer) / sizeof(longer[0]); n++) {
            r = region(last, longer[n], hva, 0);
            CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
            CHECK(failure().op == VFIO_FAST_OP_CHECK);
            r = region(0, longer[n], last, 0);
            CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
            gone = range(last, longer[n]);
            CHECK_RC(vfio_fast_unmap(vf, &gone, NULL), -EINVAL);
            m = host_memory(last, longer[n], 0);
            CHECK_RC(vfio_fast_remap(vf, &m, NULL), -EINVAL);
            CHECK_RC(vfio_fast_discard(vf, &m), -EINVAL);
            d = dirty(last, longer[n], bits, 1);
            CHECK_RC(vfio_fast_read_dirty(vf, &d), -EINVAL);
            CHECK_RC(vfio_fast_unmap_dirty(vf, &d, NULL), -EINVAL);
        }
        CHECK(stats(vf).wanted_bytes == 0 && stats(vf).map_calls == 0 && stats(vf).failed_commits == 0);
        r = region(last, 4 * KIB, hva, 0);
        CHECK_RC(vfio_fast_map_region(vf, &r), 0);
        gone = range(last, 4 * KIB);
        CHECK_RC(vfio_fast_unmap(vf, &gone, NULL), 0);
        CHECK(stats(vf).mapped_bytes == 0 && stats(vf).unmap_bytes == 4 * KIB);
        CHECK_RC(vfio_fast_close(&vf), 0);
    }
}

static void bad_arguments(void)
{
    struct vfio_fast *vf = open_sim(NULL);
    uint64_t hva = memory(8 * MIB);
    struct vfio_fast_region good = region(4 * MIB, 4 * MIB, hva, VFIO_FAST_REGION_WRITE);
    struct vfio_fast_region bad;
    struct vfio_fast_range r;
    uint64_t unmapped = 42;

    CHECK_RC(vfio_fast_map_region(vf, &good), 0);

    bad = region(0x1234, 4 * KIB, hva, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    CHECK_TEXT("0x1234");
    CHECK_TEXT("4096");
    check_failure(VFIO_FAST_OP_CHECK, -EINVAL, 0x1234, 4 * KIB, hva);
    bad = region(0, 0x1001, hva, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    CHECK_TEXT("0x1001");
    bad = region(0, 4 * KIB, hva + 8, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    CHECK_TEXT("multiple");
    bad = region(8 * MIB, 0, hva, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    CHECK_TEXT("length is 0");
    check_failure(VFIO_FAST_OP_CHECK, -EINVAL, 8 * MIB, 0, 0);
    bad = region(UINT64_MAX - 4 * KIB + 1, 8 * KIB, hva, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    CHECK_TEXT("past the end");
    bad = region(0, 8 * KIB, UINT64_MAX - 4 * KIB + 1, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EINVAL);
    bad = region(0, 4 * KIB, hva, 1u << 5);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EOPNOTSUPP);
    CHECK_TEXT("0x20");
    bad = region(0, 4 * KIB, hva, 1u << 31);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EOPNOTSUPP);

    /* The message names the region that it overlaps. */
    bad = region(6 * MIB, 4 * MIB, hva, 0);
    CHECK_RC(vfio_fast_map_region(vf, &bad), -EEXIST);
    CHECK_TEXT("0x600000");
    CHECK_TEXT("[0x400000, 0x7fffff]");
    check_failure(VFIO_FAST_OP_CHECK, -EEXIST, 6 * MIB, 4 * MIB, hva);

    r = range(0x800, 4 * KIB);
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), -EINVAL);
    r = range(0, 0x800);
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), -EINVAL);
    r = range(0, 0);
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), -EINVAL);
    r = range(4 * KIB, UINT64_MAX - 4 * KIB + 1);
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), 0); /* ends at 2^64 exactly */
    CHECK(unmapped == 4 * MIB);
    CHECK_RC(vfio_fast_map_region(vf, &good), 0);
    unmapped = 42;
    r = range(8 * KIB, UINT64_MAX - 4 * KIB + 1);
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), -EINVAL);
    r = range(0, 4 * KIB);
    r.flags = 1;
    CHECK_RC(vfio_fast_unmap(vf, &r, &unmapped), -EOPNOTSUPP);
    CHECK(unmapped == 42);

    /* An exact region can be unmapped only as a whole. */
    bad = region(16 * MIB, 2 * MIB, hva, VFIO_FAST_REGION_EXACT);
    CHECK_RC(vfio_fast_map_region(vf, &bad), 0);
    r = range(16 * MIB, MIB);
    CHECK_RC(vfio_fast_unmap(vf, &r, NULL), -EINVAL);
    CHECK_TEXT("exact");
    check_failure(VFIO_FAST_OP_CHECK, -EINVAL, 16 * MIB, MIB, 0);

    CHECK(stats(vf).mapped_bytes == 6 * MIB);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void bad_descriptors(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf;
    struct vfio_fast_region r = region(4 * MIB, 4 * MIB, memory(4 * MIB), VFIO_FAST_REGION_FD);
    struct vfio_fast_range all = range(0, GIB);
    FILE *other;

    /* type1 ignores descriptors. */
    vf = open_sim(NULL);
    r.fd = -1;
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);

    sim.backend = VFIO_FAST_BACKEND_IOMMUFD;
    vf = open_sim(&sim);
    r.backing = 1;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EBADF);
    check_failure(VFIO_FAST_OP_CHECK, -EBADF, r.iova, r.length, r.hva);
    CHECK_TEXT("descriptor");
    r.fd = STDOUT_FILENO;
    r.backing = 0;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    CHECK_TEXT("backing");
    r.backing = 1;
    r.fd_offset = 0x800;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    CHECK_TEXT("0x800");
    r.fd_offset = UINT64_MAX - 4 * KIB + 1;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    r.fd_offset = MIB;
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    /* The same address at two offsets, and memory that is also a BAR. */
    r.iova = 16 * MIB;
    r.fd_offset = 2 * MIB;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    CHECK_TEXT("other offsets");
    r.fd_offset = MIB;
    /* Another file, and none. */
    other = tmpfile();
    CHECK(other);
    r.fd = fileno(other);
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    CHECK_TEXT("another object");
    r.fd = -1;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EBADF);
    CHECK(fclose(other) == 0);
    r.fd = STDOUT_FILENO;
    r.flags |= VFIO_FAST_REGION_DEVICE;
    CHECK_RC(vfio_fast_map_region(vf, &r), -EINVAL);
    /* Without the flag the fields are ignored. */
    r.flags = 0;
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), 0);
    /* No region with this backing is left, so a BAR may use it. A BAR is exact. */
    r.flags = VFIO_FAST_REGION_FD | VFIO_FAST_REGION_DEVICE;
    r.region_index = 2;
    CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    all = range(0, r.iova + MIB);
    CHECK_RC(vfio_fast_unmap(vf, &all, NULL), -EINVAL);
    CHECK_TEXT("exact");
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void bad_states(void)
{
    struct vfio_fast *vf = open_sim(NULL);

    CHECK_RC(vfio_fast_commit(vf, NULL), -EINVAL);
    CHECK_TEXT("transaction");
    CHECK_RC(vfio_fast_abort(vf), -EINVAL);
    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_begin(vf), -EBUSY);
    CHECK_RC(vfio_fast_abort(vf), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void memlock_too_small(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region small, big;
    struct vfio_fast_failure f;
    struct vfio_fast *vf;

    sim.memlock_limit = 3 * MIB;
    vf = open_sim(&sim);
    small = region(0, MIB, memory(MIB), VFIO_FAST_REGION_WRITE);
    big = region(4 * MIB, 4 * MIB, memory(4 * MIB), VFIO_FAST_REGION_WRITE);
    CHECK_RC(vfio_fast_map_region(vf, &small), 0);
    CHECK(info(vf).memlock_used == MIB && info(vf).memlock_limit == 3 * MIB);

    CHECK_RC(vfio_fast_begin(vf), 0);
    CHECK_RC(vfio_fast_map_region(vf, &big), 0);
    CHECK_RC(vfio_fast_commit(vf, NULL), -ENOMEM);
    CHECK_TEXT("RLIMIT_MEMLOCK");
    CHECK_TEXT("5242880"); /* total needed */
    CHECK_TEXT("3145728"); /* allowed */
    f = failure();
    CHECK(f.op == VFIO_FAST_OP_CHECK && f.error == -ENOMEM);
    CHECK(f.needed == 5 * MIB && f.available == 3 * MIB);

    /* Earlier mappings are still in place, and the handle works. */
    CHECK(stats(vf).mapped_bytes == MIB && stats(vf).wanted_bytes == MIB);
    CHECK(stats(vf).preflight_refusals == 1 && stats(vf).failed_commits == 1);
    CHECK(info(vf).flags == 0);
    big.length = 2 * MIB;
    CHECK_RC(vfio_fast_map_region(vf, &big), 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

static void too_few_entries(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_region r;
    struct vfio_fast_failure f;
    struct vfio_fast *vf;
    uint64_t i, hva = memory(64 * KIB);

    sim.dma_avail = 2;
    vf = open_sim(&sim);
    CHECK_RC(vfio_fast_begin(vf), 0);
    for (i = 0; i < 3; i++) {
        r = region(i * GIB, 4 * KIB, hva + i * 4 * KIB, VFIO_FAST_REGION_EXACT);
        CHECK_RC(vfio_fast_map_region(vf, &r), 0);
    }
    CHECK_RC(vfio_fast_commit(vf, NULL), -ENOSPC);
    CHECK_TEXT("dma_entry_limit");
    CHECK_TEXT("mappings needed: 3");
    CHECK_TEXT("left: 2 of 2 (RAM 0, exact regions 0, device memory 0, not the library's 0)");
    f = failure();
    CHECK(f.iova == 0 && f.length == 0 && f.hva == 0); /* about no region */
    CHECK(f.op == VFIO_FAST_OP_CHECK && f.error == -ENOSPC);
    CHECK(f.needed == 3 && f.available == 2);
    CHECK(stats(vf).entries == 0 && stats(vf).wanted_bytes == 0);
    CHECK(info(vf).dma_avail == 2);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

/* The ranges of valid addresses are listed, and the message has the same ones. */
static void outside_the_ranges(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast_info known;
    struct vfio_fast_region ram;
    struct vfio_fast *vf;
    uint64_t i, hva = memory(64 * KIB);

    sim.iova_bits = 39;
    vf = open_sim(&sim);
    known = info(vf);
    CHECK(known.iova_ranges == 2 && known.iova_ranges_left_out == 0);
    CHECK(known.iova_list[0].first == known.iova_first && known.iova_first == 0);
    CHECK(known.iova_list[0].last == 0xfedfffff && known.iova_list[1].first == 0xfef00000);
    CHECK(known.iova_list[1].last == known.iova_last && known.iova_last == ((uint64_t)1 << 39) - 1);
    for (i = 2; i < VFIO_FAST_IOVA_LIST; i++)
        CHECK(known.iova_list[i].first == 0 && known.iova_list[i].last == 0);
    /* Each range is valid up to its ends. */
    for (i = 0; i < known.iova_ranges; i++) {
        ram = region(known.iova_list[i].first, 4 * KIB, hva, 0);
        CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
        ram = region(known.iova_list[i].last - (4 * KIB - 1), 4 * KIB, hva, 0);
        CHECK_RC(vfio_fast_map_region(vf, &ram), 0);
        ram.iova += 4 * KIB;
        CHECK_RC(vfio_fast_map_region(vf, &ram), -EINVAL);
        CHECK_TEXT("39-bit addresses");
        CHECK_TEXT("[0x0, 0xfedfffff] [0xfef00000, 0x7fffffffff]");
        check_failure(VFIO_FAST_OP_CHECK, -EINVAL, ram.iova, ram.length, hva);
    }
    CHECK_RC(vfio_fast_close(&vf), 0);

    vf = open_sim(NULL);
    known = info(vf);
    CHECK(known.iova_ranges == 0 && known.iova_ranges_left_out == 0 && known.iova_list[0].last == 0);
    CHECK_RC(vfio_fast_close(&vf), 0);
}

int main(void)
{
    bad_configurations();
    around_the_end();
    bad_arguments();
    bad_descriptors();
    bad_states();
    memlock_too_small();
    too_few_entries();
    outside_the_ranges();
    return 0;
}
