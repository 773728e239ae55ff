/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machine: memory regions, and the flat view, whose changes the listener is told as system/memory.c tells them. */

#include "listener.h"
#include "dma-mapper.h"

Machine machine;

static const struct {
    uint64_t base;
    unsigned pages;
} windows[WINDOWS] = {
    { 0, 384 },             /* with the address at which the DMA mapper cuts entries */
    { 4 * GiB - 64 * PAGE, 128 },
    { 1ULL << 40, 64 },
};

Region *region_new(Kind kind, unsigned pages, Device *device)
{
    Region *region = g_new0(Region, 1);
    const bool ram = kind != KIND_IO && kind != KIND_IOMMU;

    for (unsigned i = 0; i <= MAX_REGIONS; i++) {
        g_assert(i < MAX_REGIONS);
        if (!machine.regions[i]) {
            machine.regions[i] = region;
            region->block.offset = (ram_addr_t)i << BLOCK_SHIFT;
            break;
        }
    }
    region->kind = kind;
    region->pages = pages;
    region->device = device;
    region->refs = 1;
    region->plugged = true;
    region->mr = device ? &device->area.mem : &region->iommu.parent_obj;
    region->mr->name = "region";
    region->mr->ram = ram;
    region->mr->readonly = kind == KIND_ROM;
    region->mr->ram_device = kind == KIND_BAR || kind == KIND_RAM_DEVICE;
    region->mr->is_iommu = kind == KIND_IOMMU;
    region->mr->size = int128_make64(pages * PAGE);
    region->mr->owner = device ? OBJECT(&device->vdev) : NULL;
    if (ram) {
        region->host = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        g_assert(region->host != MAP_FAILED);
        region->block.mr = region->mr;
        region->block.host = region->host;
        region->block.used_length = region->block.max_length = pages * PAGE;
        region->block.page_size = PAGE;
        region->block.fd = -1;
        region->mr->ram_block = &region->block;
    }
    if (region->mr->ram_device) {
        region->refused = one_in(3);
        kernel_add_device_memory(region->host, pages * PAGE, region->refused);
        region->block.flags = RAM_PREALLOC;
    }
    if (ram) {
        QLIST_INSERT_HEAD_RCU(&ram_list.blocks, &region->block, next);
    }
    if (kind == KIND_VIRTIO_MEM) {
        region->mr->rdm = (RamDiscardManager *)region;
        region->granule = 1u << choose(4);
        region->populated = g_new0(bool, pages);
    }
    return region;
}

void region_ref(Region *region)
{
    ensure(region->refs, "a reference to a memory region that is gone");
    region->refs++;
}

void region_unref(Region *region)
{
    ensure(region->refs, "more references to a memory region were dropped than taken");
    if (--region->refs) {
        return;
    }
    ensure(!qemu.in_callback, "a memory region is finalized in a callback of the listener");
    /* The kernel has pinned what a vIOMMU maps, and QEMU relies on that */
    ensure(!region->host || machine.has_viommu || !kernel_maps_memory(region->host, region->pages * PAGE),
           "memory is freed while it is mapped");
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        if (machine.regions[i] == region) {
            machine.regions[i] = NULL;
        }
    }
    if (region->host) {
        kernel_forget_device_memory(region->host);
        munmap(region->host, region->pages * PAGE);
        QLIST_REMOVE_RCU(&region->block, next);
    }
    g_free(region->populated);
    if (region->device) {
        g_free(region->device);
    }
    g_free(region);
}

Device *device_new(void)
{
    Device *device = g_new0(Device, 1);
    VFIODevice *vbasedev = &device->vdev.vbasedev;
    uint8_t config[256] = { 0 };

    vbasedev->type = VFIO_DEVICE_TYPE_PCI;
    vbasedev->name = (char *)"device";
    vbasedev->bcontainer = machine.bcontainer;
    vbasedev->fd = memfd_create("device", MFD_CLOEXEC);
    vbasedev->dma_mapper = VFIO_DMA_MAPPER_LIBVFIO_FAST;
    vbasedev->dma_mapper_threads = machine.threads;
    vbasedev->dma_mapper_background = machine.background;
    vbasedev->dma_mapper_p2p = machine.p2p;
    vbasedev->migration = &device->migration;
    vbasedev->pre_copy_dirty_page_tracking = ON_OFF_AUTO_ON;
    device->migration.device_state = VFIO_DEVICE_STATE_RUNNING;
    if (one_in(2)) {
        /* A PCI Express device */
        config[PCI_STATUS] = PCI_STATUS_CAP_LIST;
        config[PCI_CAPABILITY_LIST] = 0x40;
        config[0x40] = PCI_CAP_ID_EXP;
    }
    g_assert(pwrite(vbasedev->fd, config, sizeof(config), 0) == sizeof(config));
    device->vdev.config_size = sizeof(config);
    device->bar = region_new(KIND_BAR, 1 + choose(48), device);
    device->area.mmap = device->bar->host;
    device->vdev.bars[0].region.mmaps = &device->area;
    device->vdev.bars[0].region.nr_mmaps = 1;
    QLIST_INSERT_HEAD(&machine.bcontainer->device_list, vbasedev, container_next);
    QLIST_INSERT_HEAD(&vfio_device_list, vbasedev, global_next);
    return device;
}

/* Its BAR is in no section any more */
void device_free(Device *device)
{
    Region *bar = device->bar;

    note("  %p leaves", device);
    vfio_dma_mapper_leave(&device->vdev.vbasedev);
    machine.all_masters |= device->has_mastered;
    QLIST_REMOVE(&device->vdev.vbasedev, container_next);
    QLIST_REMOVE(&device->vdev.vbasedev, global_next);
    close(device->vdev.vbasedev.fd);
    bar->plugged = false;
    /* Frees the device as well, of which the memory region is a part */
    region_unref(bar);
}

/* The guest turns on bus mastering, which the gate lets pass when the container is mapped */
void device_set_master(Device *device)
{
    const uint16_t command = PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;

    g_assert(pwrite(device->vdev.vbasedev.fd, &command, sizeof(command), PCI_COMMAND) == sizeof(command));
    note("  %p masters", device);
    vfio_dma_mapper_bus_master(machine.bcontainer, &device->vdev.vbasedev);
    device->has_mastered = true;
}

void machine_begin(bool has_viommu)
{
    memset(&machine, 0, sizeof(machine));
    machine.has_viommu = has_viommu;
    for (unsigned i = 0; i < WINDOWS; i++) {
        Window *window = &machine.windows[i];

        window->base = windows[i].base;
        window->pages = windows[i].pages;
        window->halves = g_new0(Half, 2 * window->pages);
        window->translations = g_new0(Translation, window->pages);
        window->written = g_new0(bool, window->pages);
    }
    if (has_viommu) {
        machine.viommu = region_new(KIND_IOMMU, 0, NULL);
    }
}

void machine_end(void)
{
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        Region *region = machine.regions[i];

        if (region && region->plugged && !region->device) {
            region->plugged = false;
            region_unref(region);
        }
    }
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        ensure(!machine.regions[i], "a reference to a memory region is left");
    }
    for (unsigned i = 0; i < WINDOWS; i++) {
        g_free(machine.windows[i].halves);
        g_free(machine.windows[i].translations);
        g_free(machine.windows[i].written);
    }
}

Half *view_copy(const Window *window)
{
    return g_memdup2(window->halves, 2 * window->pages * sizeof(Half));
}

typedef struct Section {
    MemoryRegionSection section;
    Region *region;
} Section;

/* The sections of a view, ascending */
static GArray *sections_of(const Half *const halves[WINDOWS])
{
    GArray *sections = g_array_new(false, false, sizeof(Section));

    for (unsigned w = 0; w < WINDOWS; w++) {
        const Window *window = &machine.windows[w];
        unsigned end;

        for (unsigned start = 0; start < 2 * window->pages; start = end) {
            const Half *first = &halves[w][start];
            Section section = {
                .section = {
                    .offset_within_address_space = window->base + start * HALF,
                    .readonly = first->readonly,
                },
                .region = first->region,
            };

            for (end = start + 1; end < 2 * window->pages; end++) {
                const Half *half = &halves[w][end];

                if (half->region != first->region || half->readonly != first->readonly ||
                    (first->region && half->at != first->at + (end - start))) {
                    break;
                }
            }
            if (first->region) {
                section.section.mr = first->region->mr;
                section.section.offset_within_region = first->at * HALF;
                section.section.size = int128_make64((end - start) * HALF);
                g_array_append_val(sections, section);
            }
        }
    }
    return sections;
}

static bool equal(const Section *a, const Section *b)
{
    return a->region == b->region && a->section.readonly == b->section.readonly &&
           a->section.offset_within_region == b->section.offset_within_region &&
           a->section.offset_within_address_space == b->section.offset_within_address_space &&
           int128_eq(a->section.size, b->section.size);
}

static bool contains(const GArray *sections, const Section *section)
{
    for (guint i = 0; i < sections->len; i++) {
        if (equal(&g_array_index(sections, Section, i), section)) {
            return true;
        }
    }
    return false;
}

static GArray *current_sections(void)
{
    const Half *halves[WINDOWS];

    for (unsigned w = 0; w < WINDOWS; w++) {
        halves[w] = machine.windows[w].halves;
    }
    return sections_of(halves);
}

static void reference(const GArray *sections, void (*function)(Region *region))
{
    for (guint i = 0; i < sections->len; i++) {
        function(g_array_index(sections, Section, i).region);
    }
}

/* Tells the listener what is in @these and not in @those */
static void tell(const GArray *these, const GArray *those,
                 void (*function)(MemoryListener *listener, MemoryRegionSection *section))
{
    for (guint i = 0; i < these->len; i++) {
        Section section = g_array_index(these, Section, i);

        if (!those || !contains(those, &section)) {
            note("  %s 0x%" PRIx64 "+0x%" PRIx64 " kind %d offset 0x%" PRIx64 "%s%s",
                 function == machine.bcontainer->listener.region_add ? "add" : "del",
                 (uint64_t)section.section.offset_within_address_space,
                 (uint64_t)int128_get64(section.section.size), section.region->kind,
                 (uint64_t)section.section.offset_within_region, section.section.readonly ? " ro" : "",
                 section.region->refused ? " refused" : "");
            if (section.region->device) {
                note("    of %p", section.region->device);
            }
            function(&machine.bcontainer->listener, &section.section);
        }
    }
}

/* A memory transaction, after which the view is @after. The view holds references until the transaction has ended. */
void view_transaction(Half *const after[WINDOWS])
{
    MemoryListener *listener = &machine.bcontainer->listener;
    GArray *old = current_sections(), *new = sections_of((const Half *const *)after);

    reference(new, region_ref);
    qemu.in_callback = true;
    listener->begin(listener);
    tell(old, new, listener->region_del);
    tell(new, old, listener->region_add);
    for (unsigned w = 0; w < WINDOWS; w++) {
        memcpy(machine.windows[w].halves, after[w], 2 * machine.windows[w].pages * sizeof(Half));
    }
    listener->commit(listener);
    qemu.in_callback = false;
    reference(old, region_unref);
    g_array_free(old, true);
    g_array_free(new, true);
}

/* The view exists, and the listener is registered */
void view_register(void)
{
    MemoryListener *listener = &machine.bcontainer->listener;
    GArray *sections = current_sections();

    reference(sections, region_ref);
    qemu.in_callback = true;
    listener->begin(listener);
    tell(sections, NULL, listener->region_add);
    listener->commit(listener);
    qemu.in_callback = false;
    g_array_free(sections, true);
}

void view_unregister(void)
{
    MemoryListener *listener = &machine.bcontainer->listener;
    GArray *sections = current_sections();

    qemu.in_callback = true;
    listener->begin(listener);
    tell(sections, NULL, listener->region_del);
    listener->commit(listener);
    qemu.in_callback = false;
    for (unsigned w = 0; w < WINDOWS; w++) {
        memset(machine.windows[w].halves, 0, 2 * machine.windows[w].pages * sizeof(Half));
        machine.windows[w].iommu = false;
    }
    reference(sections, region_unref);
    g_array_free(sections, true);
}

/*
 * Migration asks which pages are dirty. Not of virtio-mem: there, vfio_sync_ram_discard_listener_dirty_bitmap() of
 * upstream's QEMU passes a pointer to a pointer in place of a pointer.
 */
void view_sync(void)
{
    MemoryListener *listener = &machine.bcontainer->listener;
    GArray *sections = current_sections();

    for (guint i = 0; i < sections->len; i++) {
        Section section = g_array_index(sections, Section, i);

        if (section.region->kind != KIND_VIRTIO_MEM && !section.region->mr->ram_device) {
            listener->log_sync(listener, &section.section);
        }
    }
    g_array_free(sections, true);
}

/* The part of a section of virtio-mem within some of its pages */
static bool intersect(const MemoryRegionSection *section, unsigned first, unsigned pages, MemoryRegionSection *part)
{
    const uint64_t begin = MAX(section->offset_within_region, first * PAGE);
    const uint64_t end = MIN(section->offset_within_region + int128_get64(section->size), (first + pages) * PAGE);

    *part = *section;
    if (begin >= end) {
        return false;
    }
    part->offset_within_region = begin;
    part->offset_within_address_space += begin - section->offset_within_region;
    part->size = int128_make64(end - begin);
    return true;
}

/* Plugs or unplugs blocks of virtio-mem, as virtio_mem_notify_plug() and virtio_mem_notify_unplug() do */
void populate(Region *region, unsigned first, unsigned pages, bool populated)
{
    RamDiscardListener *listener, *notified;
    MemoryRegionSection part;
    int ret = 0;

    note("  %s pages %u+%u", populated ? "populate" : "discard", first, pages);
    QLIST_FOREACH(listener, &region->listeners, next) {
        if (!intersect(listener->section, first, pages, &part)) {
            continue;
        }
        if (!populated) {
            listener->notify_discard(listener, &part);
            continue;
        }
        ret = listener->notify_populate(listener, &part);
        if (ret) {
            break;
        }
    }
    if (ret) {
        QLIST_FOREACH(notified, &region->listeners, next) {
            if (notified == listener) {
                break;
            }
            if (intersect(notified->section, first, pages, &part)) {
                notified->notify_discard(notified, &part);
            }
        }
        return;
    }
    memset(region->populated + first, populated, pages);
}

/* Tells a new listener what is plugged */
static void replay_populated(RamDiscardListener *listener, Region *region)
{
    for (unsigned page = 0, end; page < region->pages; page = end) {
        MemoryRegionSection part;

        for (end = page + 1; end < region->pages && region->populated[end] == region->populated[page]; end++) {
        }
        if (region->populated[page] && intersect(listener->section, page, end - page, &part)) {
            const int ret = listener->notify_populate(listener, &part);

            if (ret) {
                /* QEMU only reports it */
                ensure(is_troubled(), "what is plugged is refused: %d", ret);
                region->may_lack = true;
                return;
            }
        }
    }
}

uint64_t ram_discard_manager_get_min_granularity(const RamDiscardManager *rdm, const MemoryRegion *mr)
{
    return ((const Region *)rdm)->granule * PAGE;
}

void ram_discard_manager_register_listener(RamDiscardManager *rdm, RamDiscardListener *listener,
                                           MemoryRegionSection *section)
{
    Region *region = (Region *)rdm;

    region_ref(region);
    listener->section = g_memdup2(section, sizeof(*section));
    QLIST_INSERT_HEAD(&region->listeners, listener, next);
    replay_populated(listener, region);
}

void ram_discard_manager_unregister_listener(RamDiscardManager *rdm, RamDiscardListener *listener)
{
    Region *region = (Region *)rdm;

    listener->notify_discard(listener, listener->section);
    g_free(listener->section);
    QLIST_REMOVE(listener, next);
    region_unref(region);
}
