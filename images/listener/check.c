/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must be mapped, page by page, because of the view, the blocks of virtio-mem and the vIOMMU's translations. */

#include "listener.h"

/* Whether anything but its own device may access a BAR */
static bool is_wanted(const Region *region)
{
    if (region->kind != KIND_BAR || machine.p2p == VFIO_DMA_MAPPER_P2P_ON) {
        return true;
    }
    if (machine.p2p == VFIO_DMA_MAPPER_P2P_OFF) {
        return false;
    }
    for (unsigned i = 0; i < MAX_DEVICES; i++) {
        if (machine.devices[i] && machine.devices[i] != region->device && machine.devices[i]->has_mastered) {
            return true;
        }
    }
    return machine.all_masters;
}

/* The host address that is expected at a page, or 0 */
static uint64_t expected(const Window *window, unsigned page, bool *write)
{
    const Half *first = &window->halves[2 * page], *second = first + 1;
    const Region *region = first->region;
    const Translation *to = &window->translations[page];

    if (!region || second->region != region || second->at != first->at + 1 ||
        second->readonly != first->readonly) {
        return 0;
    }
    *write = !first->readonly;
    switch (region->kind) {
    case KIND_IOMMU:
        *write = to->write;
        return to->pages && !to->failed ? (uintptr_t)to->region->host + to->page * PAGE : 0;
    case KIND_VIRTIO_MEM:
        if (!region->populated[first->at / 2]) {
            return 0;
        }
        break;
    case KIND_BAR:
    case KIND_RAM_DEVICE:
        if (region->refused || !is_wanted(region)) {
            return 0;
        }
        break;
    case KIND_IO:
        return 0;
    default:
        break;
    }
    return (uintptr_t)region->host + first->at * HALF;
}

void check_mappings(unsigned except)
{
    uint64_t mapped = 0;

    for (unsigned w = 0; w < WINDOWS; w++) {
        const Window *window = &machine.windows[w];

        for (unsigned page = 0; page < window->pages; page++) {
            const uint64_t iova = window->base + page * PAGE;
            KernelPage found = { 0 };
            bool write = false;
            const uint64_t hva = expected(window, page, &write);
            const Region *region = window->halves[2 * page].region;
            /* A BAR that could not be mapped is not tried again, and QEMU only reports blocks of virtio-mem */
            const bool may_lack = hva && (region->may_lack ||
                                          (region->mr->ram_device && is_troubled()));

            mapped += kernel_page(iova, &found);
            if (!hva && found.hva) {
                ensure(except & MAY_KEEP, "0x%" PRIx64 " is mapped and not wanted", iova);
            } else if (hva && !found.hva) {
                ensure(except & MAY_LACK || may_lack, "0x%" PRIx64 " is wanted and not mapped", iova);
            } else if (hva && !(may_lack && except & MAY_KEEP)) {
                ensure(found.hva == hva, "0x%" PRIx64 " is mapped to another address, by 0x%" PRIx64, iova,
                       found.hva - hva);
                ensure(found.write == write, "0x%" PRIx64 ": writable is %d", iova, found.write);
            }
        }
    }
    ensure(except & MAY_LACK || mapped == kernel_pages(), "something is mapped elsewhere");
}
