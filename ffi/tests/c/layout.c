/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Includes only the header; compiled as C and as C++, with -Wpadded. */
#include <vfio_fast.h>

/* Released programs rely on these values. A struct may grow, but nothing listed here may move. */
#ifdef __cplusplus
#define SAME(a, b) static_assert((a) == (b), #a)
#else
#define SAME(a, b) _Static_assert((a) == (b), #a)
#endif

SAME(VFIO_FAST_ABI_VERSION, 1u);

SAME(VFIO_FAST_BACKEND_TYPE1, 1u);
SAME(VFIO_FAST_BACKEND_IOMMUFD, 2u);
SAME(VFIO_FAST_BACKEND_SIM, 0x7e570001u);
SAME(VFIO_FAST_LOG_ERROR, 1u);
SAME(VFIO_FAST_LOG_WARN, 2u);
SAME(VFIO_FAST_LOG_INFO, 3u);
SAME(VFIO_FAST_LOG_DEBUG, 4u);
SAME(VFIO_FAST_REGION_WRITE, 1u);
SAME(VFIO_FAST_REGION_DEVICE, 2u);
SAME(VFIO_FAST_REGION_EXACT, 4u);
SAME(VFIO_FAST_REGION_FD, 8u);
SAME(VFIO_FAST_REGION_JOIN, 16u);
SAME(VFIO_FAST_OP_NONE, 0u);
SAME(VFIO_FAST_OP_OPEN, 1u);
SAME(VFIO_FAST_OP_CHECK, 2u);
SAME(VFIO_FAST_OP_MAP, 3u);
SAME(VFIO_FAST_OP_UNMAP, 4u);
SAME(VFIO_FAST_OP_INFO, 5u);
SAME(VFIO_FAST_OP_DIRTY, 6u);
SAME(VFIO_FAST_OP_DISCARD, 7u);
SAME(VFIO_FAST_MEMORY_SHARED, 1u);
SAME(VFIO_FAST_INFO_POISONED, 1u);
SAME(VFIO_FAST_INFO_IN_TRANSACTION, 2u);
SAME(VFIO_FAST_INFO_PARALLEL, 4u);
SAME(VFIO_FAST_INFO_MEMLOCK_PER_USER, 8u);

SAME(VFIO_FAST_CONFIG_NO_HUGEPAGE, 1u);
SAME(VFIO_FAST_IOVA_LIST, 32u);
SAME(VFIO_FAST_SUPERPAGES_UNKNOWN, 0u);
SAME(VFIO_FAST_SUPERPAGES_COARSE, 1u);
SAME(VFIO_FAST_SUPERPAGES_FINE, 2u);

/* The last field of the first release of each struct, and the fields added since. */
SAME(offsetof(struct vfio_fast_sim_config, memlock_limit), 32);
SAME(offsetof(struct vfio_fast_sim_config, backend), 40);
SAME(offsetof(struct vfio_fast_sim_config, iova_bits), 44);
SAME(sizeof(struct vfio_fast_sim_config), 48);
SAME(offsetof(struct vfio_fast_config, entry_size), 16);
SAME(offsetof(struct vfio_fast_config, log), 32);
SAME(offsetof(struct vfio_fast_config, sim), 48);
SAME(offsetof(struct vfio_fast_config, iommufd_fd), 56);
SAME(offsetof(struct vfio_fast_config, ioas_id), 60);
SAME(offsetof(struct vfio_fast_config, max_unmap_entries), 64);
SAME(offsetof(struct vfio_fast_config, cut_count), 68);
SAME(offsetof(struct vfio_fast_config, cuts), 72);
SAME(offsetof(struct vfio_fast_config, cpu_set), 80);
SAME(offsetof(struct vfio_fast_config, cpu_set_size), 88);
SAME(sizeof(struct vfio_fast_config), 96);
SAME(offsetof(struct vfio_fast_region, backing), 32);
SAME(offsetof(struct vfio_fast_region, fd), 40);
SAME(offsetof(struct vfio_fast_region, region_index), 44);
SAME(offsetof(struct vfio_fast_region, fd_offset), 48);
SAME(sizeof(struct vfio_fast_region), 56);
SAME(offsetof(struct vfio_fast_range, length), 16);
SAME(sizeof(struct vfio_fast_range), 24);
SAME(offsetof(struct vfio_fast_pages, iovas), 16);
SAME(offsetof(struct vfio_fast_pages, backing), 32);
SAME(sizeof(struct vfio_fast_pages), 40);
SAME(offsetof(struct vfio_fast_dirty, page_size), 24);
SAME(offsetof(struct vfio_fast_dirty, words), 40);
SAME(sizeof(struct vfio_fast_dirty), 48);
SAME(offsetof(struct vfio_fast_memory, length), 16);
SAME(sizeof(struct vfio_fast_memory), 24);
SAME(offsetof(struct vfio_fast_entry, flags), 16);
SAME(sizeof(struct vfio_fast_entry), 24);
SAME(offsetof(struct vfio_fast_outcome, device_error), 32);
SAME(offsetof(struct vfio_fast_outcome, ns), 72);
SAME(sizeof(struct vfio_fast_outcome), 80);
SAME(offsetof(struct vfio_fast_failure, available), 48);
SAME(sizeof(struct vfio_fast_failure), 56);
SAME(offsetof(struct vfio_fast_stats, commits), 8);
SAME(offsetof(struct vfio_fast_stats, populate_skipped), 184);
SAME(offsetof(struct vfio_fast_stats, congruent_1g_bytes), 280);
SAME(offsetof(struct vfio_fast_stats, remapped_bytes), 288);
SAME(offsetof(struct vfio_fast_stats, max_unmap_ns), 296);
SAME(offsetof(struct vfio_fast_stats, superpages), 304);
SAME(offsetof(struct vfio_fast_stats, discard_bytes), 312);
SAME(offsetof(struct vfio_fast_stats, discard_ns), 320);
SAME(sizeof(struct vfio_fast_stats), 328);
SAME(offsetof(struct vfio_fast_info, iova_pgsizes), 16);
SAME(offsetof(struct vfio_fast_info, memlock_used), 72);
SAME(offsetof(struct vfio_fast_info, max_unmap_bytes), 80);
SAME(offsetof(struct vfio_fast_info, superpages), 92);
SAME(offsetof(struct vfio_fast_info, iova_list), 96);
SAME(offsetof(struct vfio_fast_info, iova_ranges_left_out), 608);
SAME(offsetof(struct vfio_fast_info, leftover_entries), 616);
SAME(offsetof(struct vfio_fast_info, missing_bytes), 624);
SAME(sizeof(struct vfio_fast_info), 632);
SAME(offsetof(struct vfio_fast_iova_range, last), 8);
SAME(sizeof(struct vfio_fast_iova_range), 16);

int main(void)
{
    return 0;
}
