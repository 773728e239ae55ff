/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random events of the machine, and what must hold after each. */

#include "listener.h"
#include <vfio_fast.h>
#include "exec/ram_addr.h"
#include "qapi/error.h"
#include "dma-mapper.h"

bool is_filling(void)
{
    return vfio_dma_mapper_is_filling(machine.bcontainer);
}

/* What x-query-vfio-dma says */
static void check_counts(void)
{
    Error *err = NULL;
    VfioDmaStats *stats = vfio_dma_mapper_stats(machine.bcontainer, &err);
    VFIODMAProgress progress;

    ensure(stats, "%s", error_get_pretty(err));
    ensure(is_filling() || stats->mapped_bytes == kernel_pages() * PAGE, "the statistics are wrong");
    g_free(stats);
    vfio_dma_mapper_progress(machine.bcontainer, &progress);
    ensure(progress.filling == is_filling(), "the progress is wrong");
}

/* What must be true now */
void check(void)
{
    unsigned except = is_filling() || qemu.failed ? MAY_LACK : 0;
    struct vfio_fast_info info = { .size = sizeof(info) };

    ensure(!vfio_fast_get_info(vfio_dma_mapper_handle(machine.bcontainer), &info) &&
           !(info.flags & VFIO_FAST_INFO_IN_TRANSACTION), "a transaction is open");
    ensure(!qemu.unexpected || is_troubled(), "QEMU reports: %s", qemu.last_report);

    if (kernel_fired() && machine.trouble == UNMAP_REFUSED) {
        except |= MAY_KEEP;
    }
    check_mappings(except);
    check_counts();
}

/* A virtio-mem device only has whole pages in the view */
void normalize(const Window *window, Half *halves)
{
    for (unsigned i = 0; i < 2 * window->pages; i += 2) {
        Half *first = &halves[i], *second = first + 1;
        const bool whole = first->region == second->region && first->at + 1 == second->at &&
                           first->readonly == second->readonly;

        if (!whole && first->region && first->region->kind == KIND_VIRTIO_MEM) {
            *first = (Half) { 0 };
        }
        if (!whole && second->region && second->region->kind == KIND_VIRTIO_MEM) {
            *second = (Half) { 0 };
        }
    }
}

static Region *any_region(bool (*suits)(const Region *region))
{
    Region *found[MAX_REGIONS];
    unsigned count = 0;

    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        Region *region = machine.regions[i];

        if (region && region->plugged && suits(region)) {
            found[count++] = region;
        }
    }
    return count ? found[choose(count)] : NULL;
}

static bool is_any(const Region *region)
{
    return region->kind != KIND_IOMMU;
}

static bool is_ram(const Region *region)
{
    return region->host && !region->mr->ram_device;
}

static bool is_virtio_mem(const Region *region)
{
    return region->kind == KIND_VIRTIO_MEM;
}

static void place(const Window *window, Half *halves, Region *region)
{
    const unsigned pages = 1 + choose(MIN(region->pages, window->pages));
    const unsigned to = choose(window->pages - pages + 1), from = choose(region->pages - pages + 1);
    const bool readonly = region->mr->readonly || one_in(8);
    unsigned first = 0, end = 2 * pages;

    /* Half a page more or less at the end */
    if (machine.has_halves && one_in(6)) {
        first++;
    }
    if (machine.has_halves && one_in(6)) {
        end--;
    }
    for (unsigned i = first; i < end; i++) {
        halves[2 * to + i] = (Half) { .region = region, .at = 2 * from + i, .readonly = readonly };
    }
}

void change(const Window *window, Half *halves)
{
    const unsigned pages = 1 + choose(window->pages / 2), first = choose(window->pages - pages + 1);
    const unsigned what = choose(8);
    Region *region;

    if (what < 5) {
        region = any_region(is_any);
        if (region) {
            place(window, halves, region);
        }
    } else if (what == 5) {
        /* As firmware write-protects its shadow memory */
        const bool readonly = one_in(2);

        for (unsigned i = 2 * first; i < 2 * (first + pages); i++) {
            halves[i].readonly = halves[i].region && (readonly || halves[i].region->mr->readonly);
        }
    } else {
        memset(halves + 2 * first, 0, 2 * pages * sizeof(*halves));
    }
}

/* Whether a change of the view may make the DMA mapper commit more than once */
static bool has_leaves(const Half *half)
{
    return half->region && (half->region->kind == KIND_VIRTIO_MEM || half->region->kind == KIND_IOMMU);
}

/*
 * A memory transaction with this view. What devices wrote to stays known where the view does not change, except where
 * memory is unmapped and mapped again.
 */
static void commit(Half *after[WINDOWS])
{
    bool leaves = false;

    for (unsigned w = 0; w < WINDOWS; w++) {
        const Window *window = &machine.windows[w];

        normalize(window, after[w]);
        for (unsigned i = 0; i < 2 * window->pages; i++) {
            leaves |= has_leaves(&after[w][i]) || has_leaves(&window->halves[i]);
            if (memcmp(&after[w][i], &window->halves[i], sizeof(Half))) {
                machine.windows[w].written[i / 2] = false;
            }
        }
    }
    for (unsigned w = 0; leaves && w < WINDOWS; w++) {
        memset(machine.windows[w].written, 0, machine.windows[w].pages);
    }
    view_transaction(after);
    for (unsigned w = 0; w < WINDOWS; w++) {
        g_free(after[w]);
    }
}

static void copy(Half *after[WINDOWS])
{
    for (unsigned w = 0; w < WINDOWS; w++) {
        after[w] = view_copy(&machine.windows[w]);
    }
}

void step_change(void)
{
    Half *after[WINDOWS];

    copy(after);
    for (unsigned n = choose(5); n; n--) {
        const unsigned w = choose(WINDOWS);

        if (!machine.windows[w].iommu) {
            change(&machine.windows[w], after[w]);
        }
    }
    commit(after);
}

/* The guest turns translation on or off for a part of the addresses */
static void step_toggle(void)
{
    Window *window = &machine.windows[choose(WINDOWS)];
    Half *after[WINDOWS], *halves;

    copy(after);
    halves = after[window - machine.windows];
    for (unsigned i = 0; i < 2 * window->pages; i++) {
        halves[i] = window->iommu ? (Half) { 0 } :
            (Half) { .region = machine.viommu, .at = window->base / HALF + i };
    }
    window->iommu = !window->iommu;
    commit(after);
}

static void remove_region(const Region *region)
{
    Half *after[WINDOWS];

    copy(after);
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (unsigned i = 0; i < 2 * machine.windows[w].pages; i++) {
            if (after[w][i].region == region) {
                after[w][i] = (Half) { 0 };
            }
        }
    }
    commit(after);
}

void step_plug(void)
{
    static const Kind kinds[] = {
        KIND_RAM, KIND_RAM, KIND_ROM, KIND_VIRTIO_MEM, KIND_VIRTIO_MEM, KIND_RAM_DEVICE, KIND_IO,
    };
    unsigned count = 0;

    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        count += !!machine.regions[i];
    }
    if (count < MAX_REGIONS - MAX_DEVICES - 2) {
        region_new(kinds[choose(ARRAY_SIZE(kinds))], 8 + choose(250), NULL);
    }
}

static void step_unplug(void)
{
    Region *region = any_region(is_any);

    if (region && !region->device && !machine.has_viommu) {
        remove_region(region);
        region->plugged = false;
        region_unref(region);
    }
}

/* A device with other options cannot join the container */
static void join_with_other_options(const Device *device)
{
    VFIODevice other = device->vdev.vbasedev;
    Error *err = NULL;

    switch (choose(3)) {
    case 0:
        other.dma_mapper_threads++;
        break;
    case 1:
        other.dma_mapper_background = !other.dma_mapper_background;
        break;
    default:
        other.dma_mapper_p2p = other.dma_mapper_p2p == VFIO_DMA_MAPPER_P2P_ON ? VFIO_DMA_MAPPER_P2P_OFF :
                                                                                VFIO_DMA_MAPPER_P2P_ON;
        break;
    }
    ensure(!vfio_dma_mapper_check_threads(machine.bcontainer, &other, &err) && err, "other options are accepted");
    error_free(err);
}

static void step_device(void)
{
    Device **slot = &machine.devices[choose(MAX_DEVICES)];
    Error *err = NULL;
    unsigned count = 0;

    for (unsigned i = 0; i < MAX_DEVICES; i++) {
        count += !!machine.devices[i];
    }
    if (!*slot) {
        *slot = device_new();
        ensure(vfio_dma_mapper_check_threads(machine.bcontainer, &(*slot)->vdev.vbasedev, &err),
               "%s", error_get_pretty(err));
        join_with_other_options(*slot);
    } else if (count > 1 && one_in(2)) {
        remove_region((*slot)->bar);
        device_free(*slot);
        *slot = NULL;
    } else if (!is_filling() && !qemu.failed) {
        device_set_master(*slot);
    }
}

static void step_populate(void)
{
    Region *region = any_region(is_virtio_mem);

    if (region) {
        const unsigned granule = region->granule, blocks = region->pages / granule, first = choose(blocks);
        unsigned count = 1;

        /* Devices refuse requests for blocks that are not all plugged, or not all unplugged */
        for (unsigned n = choose(blocks); n && first + count < blocks; n--, count++) {
            if (region->populated[(first + count) * granule] != region->populated[first * granule]) {
                break;
            }
        }
        populate(region, first * granule, count * granule, !region->populated[first * granule]);
    }
}

static void expect_dirty(const Window *window, unsigned first, unsigned pages)
{
    bool *was = window->written;

    for (unsigned page = first; page < first + pages; page++) {
        const Half *half = &window->halves[2 * page];
        const Translation *to = &window->translations[page];

        if (!was[page] || (window->iommu && (to->failed || !to->pages))) {
            continue;
        }
        /* Devices can still write to what the kernel has refused to unmap */
        if (!half->region) {
            continue;
        }
        if (window->iommu) {
            ensure(is_dirty(to->region, to->page), "page %u is not reported as dirty", page);
        } else if (half->region->kind != KIND_VIRTIO_MEM && !half->region->mr->ram_device) {
            ensure(is_dirty(half->region, half->at / 2), "page %u is not reported as dirty", page);
        }
    }
}

static void step_translate(void)
{
    Window *window = &machine.windows[choose(WINDOWS)];
    unsigned pages = 1 << choose(6), first = choose(window->pages / pages) * pages;
    Region *region = any_region(is_ram);
    bool is_free = true;

    if (!window->iommu) {
        return;
    }
    /* The next entry, as a whole */
    for (unsigned i = first, whole = choose(2); whole && i < window->pages; i++) {
        if (window->translations[i].pages) {
            first = window->translations[i].first;
            pages = window->translations[i].pages;
            window->written[first] |= kernel_tracks() && kernel_write(window->base + first * PAGE);
            break;
        }
    }
    for (unsigned i = first; i < first + pages; i++) {
        is_free &= !window->translations[i].pages;
    }
    if (region && is_free && region->pages >= pages) {
        translate(window, first, pages, region, choose(region->pages - pages + 1), one_in(2));
    } else {
        Translation before[64];

        memcpy(before, window->translations + first, pages * sizeof(*before));
        translate(window, first, pages, NULL, 0, false);
        for (unsigned i = 0; i < pages; i++) {
            const bool is_gone = before[i].pages && !window->translations[first + i].pages;

            if (is_gone && window->written[first + i] && !before[i].failed) {
                ensure(is_dirty(before[i].region, before[i].page), "page %u is not reported as dirty", first + i);
            }
            window->written[first + i] &= !is_gone;
        }
    }
}

static void step_dirty(void)
{
    MemoryListener *listener = &machine.bcontainer->listener;
    Error *err = NULL;

    /* The kernel has no bits for a part of a page, and QEMU asks for them */
    if (machine.has_halves) {
        return;
    }
    if (!kernel_tracks() && one_in(2)) {
        if (listener->log_global_start(listener, &err)) {
            global_dirty_tracking = GLOBAL_DIRTY_MIGRATION;
        } else {
            ensure(is_troubled(), "%s", error_get_pretty(err));
            error_free(err);
        }
    } else if (kernel_tracks() && one_in(8)) {
        listener->log_global_stop(listener);
        global_dirty_tracking = 0;
        for (unsigned w = 0; w < WINDOWS; w++) {
            memset(machine.windows[w].written, 0, machine.windows[w].pages);
        }
    } else if (kernel_tracks() && one_in(4)) {
        view_sync();
        for (unsigned w = 0; w < WINDOWS; w++) {
            expect_dirty(&machine.windows[w], 0, machine.windows[w].pages);
            memset(machine.windows[w].written, 0, machine.windows[w].pages);
        }
        discard_dirty();
    } else if (kernel_tracks()) {
        for (unsigned n = choose(32); n; n--) {
            const unsigned w = choose(WINDOWS), page = choose(machine.windows[w].pages);

            machine.windows[w].written[page] |= kernel_write(machine.windows[w].base + page * PAGE);
            note("  write %u %u: %d", w, page, machine.windows[w].written[page]);
        }
    }
}

/* Asking changes nothing */
static void step_check_plug(void)
{
    Region *region = any_region(is_ram);
    const unsigned pages = region ? 1 + choose(region->pages) : 0;
    MemoryRegionSection section = {
        .mr = region ? region->mr : NULL,
        .offset_within_address_space = 1ULL << 41,
        .size = int128_make64(pages * PAGE),
    };
    MemoryDevicePlug plug = {
        .sections = &section,
        .nb_sections = 1,
        .granularity = one_in(2) ? PAGE << choose(4) : 0,
    };
    const unsigned long before = kernel_calls();
    Error *err = NULL;

    if (!region) {
        return;
    }
    if (notify_plug(&plug, &err)) {
        ensure(err && (is_troubled()), "plugging is refused: %s", error_get_pretty(err));
        error_free(err);
    }
    ensure(is_filling() || kernel_calls() == before, "a check before plugging has made calls");
}

static void step_replace(void)
{
    Region *region = any_region(is_ram);
    const unsigned page = region ? choose(region->pages) : 0;
    const unsigned long before = kernel_calls();

    if (!region) {
        return;
    }
    notify_replaced(region->host + page * PAGE, PAGE);
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (unsigned i = 0; i < machine.windows[w].pages; i++) {
            KernelPage found;

            if (kernel_page(machine.windows[w].base + i * PAGE, &found) &&
                found.hva == (uintptr_t)region->host + page * PAGE) {
                ensure(found.born > before || kernel_fired(), "a page that was replaced is mapped as before");
            }
        }
    }
}

/* The gate waits, or the main loop learns that the job has ended */
static void step_wait(void)
{
    Error *err = NULL;

    run_handler();
    if (is_filling() && qemu.failed && one_in(2)) {
        /* As when the guest turns on bus mastering after the job has failed */
        if (vfio_dma_mapper_fill_again(machine.bcontainer, &err)) {
            qemu.failed = 0;
        } else {
            error_free(err);
        }
        return;
    }
    if (is_filling() && !qemu.failed && one_in(4) &&
        !vfio_dma_mapper_wait(machine.bcontainer, "test", &err)) {
        ensure(is_troubled(), "%s", error_get_pretty(err));
        error_free(err);
        qemu.failed++;
    }
}

void step(void)
{
    const unsigned what = choose(16);

    qemu.now += choose(4) * NANOSECONDS_PER_SECOND;
    note("step %u%s", what, is_filling() ? ", filling" : "");
    switch (what) {
    case 0:
        step_plug();
        break;
    case 1:
        step_unplug();
        break;
    case 2:
    case 3:
        step_device();
        break;
    case 4:
    case 5:
        step_populate();
        break;
    case 6:
        step_dirty();
        step_dirty();
        break;
    case 7:
        step_check_plug();
        break;
    case 8:
        step_replace();
        break;
    case 9:
        step_wait();
        break;
    case 10:
        if (machine.has_viommu) {
            step_toggle();
        }
        break;
    case 11:
    case 12:
        if (machine.has_viommu) {
            step_translate();
            break;
        }
        /* fall through */
    default:
        step_change();
        break;
    }
    run_bottom_halves();
    check();
}
