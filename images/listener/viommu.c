/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A vIOMMU: what it translates, and whom it notifies of changes. */

#include "listener.h"
#include "exec/address-spaces.h"

static IOMMUNotifier *notifiers[WINDOWS];

AddressSpace address_space_memory = { .name = (char *)"memory" };

int memory_region_register_iommu_notifier(MemoryRegion *mr, IOMMUNotifier *n, Error **errp)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        if (!notifiers[i]) {
            notifiers[i] = n;
            return 0;
        }
    }
    g_assert_not_reached();
}

void memory_region_unregister_iommu_notifier(MemoryRegion *mr, IOMMUNotifier *n)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        if (notifiers[i] == n) {
            notifiers[i] = NULL;
            return;
        }
    }
    fail("a notifier that is not registered");
}

int memory_region_iommu_attrs_to_index(IOMMUMemoryRegion *iommu_mr, MemTxAttrs attrs)
{
    return 0;
}

/* What is mapped is named by its region and page, which no address of the system has here */
static hwaddr name_of(const Region *region, unsigned page)
{
    return region->block.offset + page * PAGE;
}

bool memory_get_xlat_addr(IOMMUTLBEntry *iotlb, void **vaddr, ram_addr_t *ram_addr, bool *read_only,
                          bool *mr_has_discard_manager, Error **errp)
{
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        Region *region = machine.regions[i];
        const hwaddr offset = region ? iotlb->translated_addr - region->block.offset : 0;

        if (region && region->host && offset < region->pages * PAGE) {
            if (vaddr) {
                *vaddr = region->host + offset;
            }
            if (ram_addr) {
                *ram_addr = region->block.offset + offset;
            }
            if (read_only) {
                *read_only = !(iotlb->perm & IOMMU_WO);
            }
            *mr_has_discard_manager = false;
            return true;
        }
    }
    fail("an entry that translates to nothing");
}

static void notify(IOMMUNotifier *n, const Window *window, unsigned first, unsigned pages, const Translation *to)
{
    IOMMUTLBEntry entry = {
        .target_as = &address_space_memory,
        .iova = window->base + first * PAGE,
        /* As the vIOMMUs do, which name no address when they unmap */
        .translated_addr = to ? name_of(to->region, to->page) : 0,
        .addr_mask = pages * PAGE - 1,
        .perm = to ? IOMMU_ACCESS_FLAG(true, to->write) : IOMMU_NONE,
    };

    n->notify(n, &entry);
}

static IOMMUNotifier *notifier_of(const Window *window)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        if (notifiers[i] && notifiers[i]->start == window->base) {
            return notifiers[i];
        }
    }
    return NULL;
}

/*
 * The guest changes its page table: an entry that maps, or with no region a range that is not translated any more.
 * Entries are not cut, unless the guest breaks the rules of its vIOMMU; the kernel then refuses.
 */
void translate(Window *window, unsigned first, unsigned pages, Region *region, unsigned page, bool write)
{
    IOMMUNotifier *n = notifier_of(window);
    const unsigned reports = qemu.reports;
    Translation *all = window->translations;

    g_assert(n);
    if (region) {
        const Translation to = { .region = region, .page = page, .write = write };

        notify(n, window, first, pages, &to);
        for (unsigned i = 0; i < pages; i++) {
            all[first + i] = (Translation) {
                .region = region, .page = page + i, .write = write, .first = first, .pages = pages,
                .failed = qemu.reports != reports,
            };
        }
        ensure(qemu.reports == reports || is_troubled(), "an entry cannot be mapped: %s", qemu.last_report);
        return;
    }
    notify(n, window, first, pages, NULL);
    for (unsigned i = first; i < first + pages; i++) {
        const bool cut = all[i].pages && (all[i].first < first || all[i].first + all[i].pages > first + pages);

        if (cut) {
            ensure(all[i].failed || qemu.reports != reports, "an entry was cut");
            qemu.unexpected -= qemu.reports - reports;
            return;
        }
    }
    ensure(qemu.reports == reports || is_troubled(), "a range cannot be unmapped: %s", qemu.last_report);
    memset(all + first, 0, pages * sizeof(*all));
}

void memory_region_iommu_replay(IOMMUMemoryRegion *iommu_mr, IOMMUNotifier *n)
{
    for (unsigned w = 0; w < WINDOWS; w++) {
        Window *window = &machine.windows[w];

        if (n->start != window->base) {
            continue;
        }
        for (unsigned page = 0; page < window->pages; page++) {
            Translation *to = &window->translations[page];
            const unsigned reports = qemu.reports;

            if (!to->pages || to->first != page) {
                continue;
            }
            notify(n, window, page, to->pages, to);
            /* A notifier that is not registered asks for dirty pages */
            for (unsigned i = 0; i < to->pages && n == notifier_of(window); i++) {
                to[i].failed = qemu.reports != reports;
            }
        }
    }
}
