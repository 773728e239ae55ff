/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files under test call in the rest of QEMU, as far as the harness makes them call it. A function that is
 * missing here ends the program with its name, when it is called.
 */

#include "listener.h"
#include "exec/address-spaces.h"
#include "exec/ram_addr.h"
#include "hw/hw.h"
#include "hw/mem/memory-device.h"
#include "migration/blocker.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/async-teardown.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/notify.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "system/system.h"
#include "system/tcg.h"
#include "dma-gate.h"

Qemu qemu;
RAMList ram_list;
unsigned int global_dirty_tracking;
uint64_t total_dirty_pages;
bool tcg_allowed;
bool xen_allowed;
MlockState mlock_state;

/* Objects: the only ones are memory regions and devices */

Object *object_dynamic_cast(Object *obj, const char *name)
{
    for (unsigned i = 0; i < MAX_DEVICES; i++) {
        if (obj && machine.devices[i] && obj == OBJECT(&machine.devices[i]->vdev)) {
            return strcmp(name, TYPE_VFIO_PCI) ? NULL : obj;
        }
    }
    return NULL;
}

Object *object_dynamic_cast_assert(Object *obj, const char *name, const char *file, int line, const char *func)
{
    return obj;
}

ObjectClass *object_get_class(Object *obj)
{
    return obj->class;
}

ObjectClass *object_class_dynamic_cast_assert(ObjectClass *klass, const char *name, const char *file, int line,
                                              const char *func)
{
    return klass;
}

void register_module_init(void (*function)(void), module_init_type type)
{
}

const char *qapi_enum_lookup(const QEnumLookup *lookup, int value)
{
    return lookup->array[value];
}

/* Memory regions */

Region *region_of(const MemoryRegion *mr)
{
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        if (machine.regions[i] && machine.regions[i]->mr == mr) {
            return machine.regions[i];
        }
    }
    fail("a memory region that is gone is used");
}

void memory_region_ref(MemoryRegion *mr)
{
    region_ref(region_of(mr));
}

void memory_region_unref(MemoryRegion *mr)
{
    region_unref(region_of(mr));
}

bool memory_region_is_ram_device(MemoryRegion *mr)
{
    return region_of(mr)->mr->ram_device;
}

bool memory_region_is_protected(MemoryRegion *mr)
{
    region_of(mr);
    return false;
}

const char *memory_region_name(const MemoryRegion *mr)
{
    return region_of(mr)->mr->name;
}

Object *memory_region_owner(MemoryRegion *mr)
{
    return region_of(mr)->mr->owner;
}

void *memory_region_get_ram_ptr(MemoryRegion *mr)
{
    return region_of(mr)->host;
}

ram_addr_t memory_region_get_ram_addr(MemoryRegion *mr)
{
    return region_of(mr)->block.offset;
}

int memory_region_get_fd(MemoryRegion *mr)
{
    return region_of(mr)->block.fd;
}

RamDiscardManager *memory_region_get_ram_discard_manager(MemoryRegion *mr)
{
    return region_of(mr)->mr->rdm;
}

static Region *region_at(const void *host, uint64_t *offset)
{
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        Region *region = machine.regions[i];

        *offset = region && region->host ? (const uint8_t *)host - region->host : 0;
        if (region && region->host && *offset < region->pages * PAGE) {
            return region;
        }
    }
    return NULL;
}

MemoryRegion *memory_region_from_host(void *host, ram_addr_t *offset)
{
    Region *region = region_at(host, offset);

    return region ? region->mr : NULL;
}

ram_addr_t qemu_ram_addr_from_host(void *host)
{
    uint64_t offset;
    const Region *region = region_at(host, &offset);

    return region ? region->block.offset + offset : RAM_ADDR_INVALID;
}

void flatview_for_each_range(FlatView *fv, flatview_cb callback, void *opaque)
{
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (unsigned i = 0; i < 2 * machine.windows[w].pages; i++) {
            const Half *half = &machine.windows[w].halves[i];

            if (half->region && callback(int128_make64(machine.windows[w].base + i * HALF), int128_make64(HALF),
                                         half->region->mr, half->at * HALF, opaque)) {
                return;
            }
        }
    }
}

/* Dirty pages: the bitmap has a few pages from the start of each block */

static unsigned long bits[DIRTY_MEMORY_NUM][MAX_REGIONS][BITS_TO_LONGS(BLOCK_PAGES)];

bool is_dirty(const Region *region, unsigned page)
{
    return test_bit(page, bits[DIRTY_MEMORY_MIGRATION][region->block.offset >> BLOCK_SHIFT]);
}

void discard_dirty(void)
{
    memset(bits, 0, sizeof(bits));
    for (unsigned i = 0; i < DIRTY_MEMORY_NUM && !ram_list.dirty_memory[i]; i++) {
        ram_list.dirty_memory[i] = g_malloc0(sizeof(DirtyMemoryBlocks) + MAX_REGIONS * sizeof(unsigned long *));
        for (unsigned block = 0; block < MAX_REGIONS; block++) {
            ram_list.dirty_memory[i]->blocks[block] = bits[i][block];
        }
    }
}

/* Errors */

static void G_GNUC_PRINTF(1, 0) report(const char *format, va_list list)
{
    g_free(qemu.last_report);
    qemu.last_report = g_strdup_vprintf(format, list);
    qemu.reports++;
    qemu.unexpected++;
    /* A guest must not be able to fill the log */
    if (strstr(qemu.last_report, "for a vIOMMU or virtio-mem")) {
        ensure(!qemu.leaf_reported || qemu.now - qemu.leaf_reported >= 10 * NANOSECONDS_PER_SECOND,
               "two failures of leaves are reported in ten seconds");
        qemu.leaf_reported = qemu.now;
    }
    note("  report: %s", qemu.last_report);
}

void error_report(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    report(format, list);
    va_end(list);
}

void error_vreport(const char *format, va_list list)
{
    report(format, list);
}

/* Warnings are about BARs */
void warn_report(const char *format, ...)
{
}

void warn_vreport(const char *format, va_list list)
{
}

void info_vreport(const char *format, va_list list)
{
}

bool warn_report_once_cond(bool *printed, const char *format, ...)
{
    return true;
}

int error_printf(const char *format, ...)
{
    return 0;
}

/* Notifiers, handlers and bottom halves */

typedef struct BottomHalf {
    QEMUBHFunc *function;
    void *opaque;
} BottomHalf;

static GArray *bottom_halves;

AioContext *qemu_get_aio_context(void)
{
    return NULL;
}

void aio_bh_schedule_oneshot_full(AioContext *ctx, QEMUBHFunc *function, void *opaque, const char *name)
{
    const BottomHalf bh = { function, opaque };

    g_array_append_val(bottom_halves, bh);
}

void run_bottom_halves(void)
{
    ensure(!qemu.in_callback, "the main loop runs in a callback");
    while (bottom_halves->len) {
        const BottomHalf bh = g_array_index(bottom_halves, BottomHalf, 0);

        g_array_remove_index(bottom_halves, 0);
        bh.function(bh.opaque);
    }
}

void qemu_set_fd_handler(int fd, IOHandler *read, IOHandler *write, void *opaque)
{
    qemu.handler = read;
    qemu.opaque = opaque;
    qemu.fd = fd;
}

/* What the main loop does when the job's descriptor may be readable */
void run_handler(void)
{
    if (qemu.handler) {
        qemu.handler(qemu.opaque);
    }
}

static NotifierList exit_notifiers = NOTIFIER_LIST_INITIALIZER(exit_notifiers);
static NotifierList replaced_notifiers = NOTIFIER_LIST_INITIALIZER(replaced_notifiers);
static NotifierWithReturnList plug_checks = NOTIFIER_WITH_RETURN_LIST_INITIALIZER(plug_checks);

void qemu_add_exit_notifier(Notifier *notifier)
{
    notifier_list_add(&exit_notifiers, notifier);
}

void qemu_remove_exit_notifier(Notifier *notifier)
{
    notifier_remove(notifier);
}

void ram_replaced_notifier_add(Notifier *notifier)
{
    notifier_list_add(&replaced_notifiers, notifier);
}

void memory_device_add_plug_check(NotifierWithReturn *notifier)
{
    notifier_with_return_list_add(&plug_checks, notifier);
}

void notify_exit(void)
{
    notifier_list_notify(&exit_notifiers, NULL);
}

void notify_replaced(void *host, size_t size)
{
    RAMReplaced replaced = { .host = host, .size = size };

    notifier_list_notify(&replaced_notifiers, &replaced);
}

int notify_plug(MemoryDevicePlug *plug, Error **errp)
{
    return notifier_with_return_list_notify(&plug_checks, plug, errp);
}

void migration_add_notifier_mode(NotifierWithReturn *notifier, MigrationNotifyFunc function, MigMode mode)
{
    notifier->notify = (NotifierWithReturnFunc)function;
}

static unsigned blockers;

int migrate_add_blocker_modes(Error **reasonp, Error **errp, MigMode mode, ...)
{
    if (one_in(32)) {
        error_propagate(errp, *reasonp);
        *reasonp = NULL;
        return -EBUSY;
    }
    blockers++;
    return 0;
}

void migrate_del_blocker(Error **reasonp)
{
    ensure(*reasonp && blockers, "a migration blocker is removed twice");
    error_free(*reasonp);
    *reasonp = NULL;
    blockers--;
}

bool migration_is_running(void)
{
    return false;
}

/* The rest of the machine */

bool runstate_check(RunState state)
{
    return qemu.state == state;
}

bool runstate_is_running(void)
{
    return qemu.state == RUN_STATE_RUNNING;
}

bool should_mlock(MlockState state)
{
    return false;
}

bool async_teardown_enabled(void)
{
    return false;
}

int64_t qemu_clock_get_ns(QEMUClockType type)
{
    return qemu.now;
}

static struct rcu_reader_data reader;
unsigned long rcu_gp_ctr = 1;
QemuEvent rcu_gp_event;

struct rcu_reader_data *get_ptr_rcu_reader(void)
{
    return &reader;
}

void vfio_dma_gate_opened(VFIOContainerBase *bcontainer, uint64_t mapped)
{
    qemu.opened++;
}

void vfio_dma_gate_failed(VFIOContainerBase *bcontainer, const Error *err)
{
    qemu.failed++;
}

void qemu_reset(void)
{
    g_free(qemu.last_report);
    memset(&qemu, 0, sizeof(qemu));
    qemu.state = RUN_STATE_RUNNING;
    qemu.now = NANOSECONDS_PER_SECOND;
    ensure(!blockers, "a migration blocker is left");
    ensure(QLIST_EMPTY(&ram_list.blocks), "RAM is left");
    ensure(!reader.depth, "a critical section of RCU is left");
    ensure(QLIST_EMPTY(&exit_notifiers.notifiers) && QLIST_EMPTY(&replaced_notifiers.notifiers) &&
           QLIST_EMPTY(&plug_checks.notifiers), "a notifier is left");
    if (!bottom_halves) {
        bottom_halves = g_array_new(false, false, sizeof(BottomHalf));
    }
    ensure(!bottom_halves->len, "a bottom half is left");
    discard_dirty();
}
