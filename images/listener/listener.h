/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A machine for QEMU's VFIO memory listener and DMA mapper, which are QEMU's own files: memory regions, what the flat
 * view has of them, and what must be mapped because of that.
 */

#ifndef LISTENER_H
#define LISTENER_H

#include "qemu/osdep.h"
#include "hw/vfio/vfio-common.h"
#include "hw/vfio/pci.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/mem/memory-device.h"
#include "qemu/units.h"

#include "kernel.h"

/* Sections begin and end at multiples of half a page */
#define HALF (PAGE / 2)
#define MAX_REGIONS 16
#define MAX_DEVICES 3
#define WINDOWS 3
/* Each block of RAM has a part of the dirty bitmap of its own */
#define BLOCK_SHIFT 33
#define BLOCK_PAGES 512

typedef enum Kind {
    KIND_RAM,
    KIND_ROM,
    KIND_VIRTIO_MEM, /* RAM with a RamDiscardManager */
    KIND_BAR,        /* of a device in the container */
    KIND_RAM_DEVICE, /* another one, such as the memory of an NVDIMM or of a device that is no VFIO device */
    KIND_IO,
    KIND_IOMMU,
    KINDS,
} Kind;

typedef struct Device Device;

typedef struct Region {
    IOMMUMemoryRegion iommu;
    MemoryRegion *mr;       /* of the IOMMU, or of a BAR */
    RAMBlock block;
    Kind kind;
    unsigned pages;
    uint8_t *host;
    unsigned refs;
    bool plugged;
    bool refused;           /* a BAR that the kernel does not map */
    Device *device;
    unsigned granule;       /* virtio-mem: pages of a block */
    bool *populated;        /* virtio-mem: each page */
    bool may_lack;          /* virtio-mem: a section could not be mapped */
    QLIST_HEAD(, RamDiscardListener) listeners;
} Region;

struct Device {
    VFIOPCIDevice vdev;
    VFIOMmap area;
    VFIOMigration migration;
    Region *bar;
    bool has_mastered;      /* its bus mastering was ever on */
};

/* What may go wrong in a run */
typedef enum Trouble {
    NO_TROUBLE,
    UNMAP_REFUSED,
    MAP_FAILS,
    SHORT_UNMAP,
    FEW_ENTRIES,
    TROUBLES,
} Trouble;

/* What the flat view has at half a page */
typedef struct Half {
    Region *region;
    unsigned at;            /* half pages from the start of the region */
    bool readonly;
} Half;

/* What a vIOMMU has for a page */
typedef struct Translation {
    Region *region;
    unsigned page;
    bool write;
    unsigned first, pages;  /* of the entry that it is a part of; no pages: nothing */
    bool failed;            /* the kernel did not map it */
} Translation;

typedef struct Window {
    uint64_t base;
    unsigned pages;
    Half *halves;
    Translation *translations;
    bool *written;          /* what devices wrote to since it was last reported */
    bool iommu;             /* translated by the vIOMMU */
} Window;

typedef struct Machine {
    VFIOContainerBase *bcontainer;
    VFIOAddressSpace space;
    Window windows[WINDOWS];
    Region *regions[MAX_REGIONS];
    Device *devices[MAX_DEVICES];
    Region *viommu;
    Trouble trouble;
    bool has_viommu;
    bool all_masters;       /* anything may access all BARs */
    VFIODMAMapperP2P p2p;
    bool background;
    uint32_t threads;
    bool has_halves;        /* sections may begin and end within a page */
    bool may_fail;          /* there are few entries */
    int fd;
} Machine;

extern Machine machine;

/* Whether the kernel has made trouble, so that QEMU may report errors */
static inline bool is_troubled(void)
{
    return kernel_fired() || machine.may_fail;
}

/* input.c: the choices of a run */
#define MAX_CHOICES 8192

typedef struct Choices {
    unsigned used, given;
    uint8_t bytes[MAX_CHOICES];
} Choices;

void input_is_in(Choices *memory);
void input_begin(uint64_t seed);
bool input_read(const char *path);
bool input_save(const char *path);
bool input_is_over(void);
unsigned choose(unsigned n);            /* a number below n */
static inline bool one_in(unsigned n)
{
    return choose(n) == n - 1;
}
G_NORETURN void fail(const char *format, ...) G_GNUC_PRINTF(1, 2);
void note(const char *format, ...) G_GNUC_PRINTF(1, 2); /* printed where choices are repeated */
#define ensure(what, ...) do { if (!(what)) { fail(__VA_ARGS__); } } while (0)

/* stubs.c: QEMU around the files under test */
typedef struct Qemu {
    unsigned reports;       /* error_report() and its like */
    unsigned unexpected;    /* those that no step has expected */
    char *last_report;
    int64_t now;            /* moves on between steps */
    int64_t leaf_reported;  /* when a failure of a vIOMMU or virtio-mem was reported */
    bool in_callback;       /* of the memory listener */
    unsigned opened, failed;    /* calls of the gate */
    IOHandler *handler;
    void *opaque;
    int fd;
    RunState state;
} Qemu;

extern Qemu qemu;
void qemu_reset(void);
void run_bottom_halves(void);
void run_handler(void);
void notify_exit(void);
int notify_plug(MemoryDevicePlug *plug, Error **errp);
void notify_replaced(void *host, size_t size);
Region *region_of(const MemoryRegion *mr);
void discard_dirty(void);
bool is_dirty(const Region *region, unsigned page);

/* machine.c */
void machine_begin(bool has_viommu);
void machine_end(void);
Region *region_new(Kind kind, unsigned pages, Device *device);
void region_ref(Region *region);
void region_unref(Region *region);
Device *device_new(void);
void device_free(Device *device);
void device_set_master(Device *device);
void view_transaction(Half *const after[WINDOWS]);
void view_register(void);
void view_unregister(void);
void view_sync(void);
Half *view_copy(const Window *window);
void populate(Region *region, unsigned first, unsigned pages, bool populated);
void translate(Window *window, unsigned first, unsigned pages, Region *region, unsigned page, bool write);
void replay(IOMMUNotifier *notifier);

/* check.c */
#define MAY_LACK 1  /* a job still maps memory, or has failed */
#define MAY_KEEP 2  /* the kernel has refused to unmap something */
void check_mappings(unsigned except);

/* steps.c */
void step(void);
void step_plug(void);
void step_change(void);
void change(const Window *window, Half *halves);
void normalize(const Window *window, Half *halves);
bool is_filling(void);
void check(void);

#endif
