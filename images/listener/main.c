/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random events of a machine, and the check after each.
 *
 *     listener seeds FIRST COUNT FILE      runs that many seeds, and writes the choices of one that fails to the file
 *     listener seconds FIRST SECONDS FILE  the same for some time
 *     listener FILE...                     repeats the choices in the files, and prints what happens
 */

#include "listener.h"
#include "exec/ram_addr.h"
#include "hw/hw.h"
#include "hw/mem/memory-device.h"
#include "exec/address-spaces.h"
#include "qapi/error.h"
#include "dma-mapper.h"

#include <sanitizer/lsan_interface.h>
#include <sys/wait.h>

/* What ends a worker besides success and a failure */
enum {
    EXIT_ENDED = 3,     /* QEMU would have ended, as it has to: the next seed takes another worker */
    EXIT_LEAK = 23,
};

/* The worker tells the parent how far it is */
typedef struct Shared {
    uint64_t seed;
    uint64_t seconds;   /* when to stop, of elapsed() */
    Choices choices;
} Shared;

static Shared *shared;
static bool verbose;

void fail(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    abort();
}

void note(const char *format, ...)
{
    va_list list;

    if (!verbose) {
        return;
    }
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
}

/* The main thread ends in the middle of the listener, as in QEMU. Only where the kernel has made trouble. */
void hw_error(const char *format, ...)
{
    char text[256];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    ensure(is_troubled(), "QEMU ends: %s: %s", text, qemu.last_report);
    if (strstr(text, "bus mastering")) {
        for (unsigned i = 0; i < MAX_DEVICES; i++) {
            uint16_t command;

            if (!machine.devices[i]) {
                continue;
            }
            g_assert(pread(machine.devices[i]->vdev.vbasedev.fd, &command, sizeof(command), PCI_COMMAND) ==
                     sizeof(command));
            ensure(!(command & PCI_COMMAND_MASTER), "a device can access memory after QEMU has ended");
        }
    }
    _exit(EXIT_ENDED);
}

static uint64_t elapsed(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* From some call on, the kernel makes trouble */
static void make_trouble(void)
{
    static const int errnos[] = { ENOMEM, EFAULT, EINVAL };

    switch (machine.trouble) {
    case UNMAP_REFUSED:
        kernel_faults.unmap_in = 1 + choose(40);
        kernel_faults.unmap_count = 1 + choose(6);
        break;
    case MAP_FAILS:
        kernel_faults.map_in = 1 + choose(one_in(2) ? 4 : 60);
        kernel_faults.map_errno = errnos[choose(ARRAY_SIZE(errnos))];
        break;
    case SHORT_UNMAP:
        kernel_faults.short_in = 1 + choose(40);
        break;
    default:
        break;
    }
}

/* What the class of containers in container.c passes on */
static VFIOIOMMUClass container_class = {
    .listener_begin = vfio_dma_mapper_begin,
    .listener_commit = vfio_dma_mapper_commit,
    .dma_map = vfio_dma_mapper_map,
    .dma_unmap = vfio_dma_mapper_unmap,
    .set_dirty_page_tracking = vfio_dma_mapper_track_dirty,
    .query_dirty_bitmap = vfio_dma_mapper_read_dirty,
};

static AddressSpace of_the_device = { .name = (char *)"device" };

/* Attaches the first device. Returns whether that has worked; the view then still has to be left. */
static bool attach(void)
{
    VFIOContainerBase *bcontainer = machine.bcontainer;
    Error *err = NULL;

    machine.devices[0] = device_new();
    if (!vfio_dma_mapper_open_type1(bcontainer, machine.fd, &machine.devices[0]->vdev.vbasedev, &err)) {
        error_free(err);
        return false;
    }
    bcontainer->listener = vfio_memory_listener;
    view_register();
    if (bcontainer->error) {
        ensure(is_troubled(), "attach: %s", error_get_pretty(bcontainer->error));
        error_free(bcontainer->error);
        bcontainer->error = NULL;
        view_unregister();
        vfio_dma_mapper_close(bcontainer);
        return false;
    }
    bcontainer->initialized = true;
    return true;
}

/* Addresses that the IOMMU says it can translate. QEMU only names them in errors. */
static void add_range(uint64_t first, uint64_t last)
{
    Range *range = g_new(Range, 1);

    range_set_bounds(range, first, last);
    machine.bcontainer->iova_ranges = g_list_append(machine.bcontainer->iova_ranges, range);
}

static void begin(void)
{
    qemu_reset();
    machine_begin(one_in(3));
    machine.trouble = one_in(2) ? choose(TROUBLES) : NO_TROUBLE;
    machine.fd = kernel_open(machine.trouble == FEW_ENTRIES ? 20 + choose(100) : 4096);
    machine.background = one_in(4);
    machine.threads = choose(3);
    machine.has_halves = one_in(2);
    machine.may_fail = machine.trouble == FEW_ENTRIES;
    machine.p2p = VFIO_DMA_MAPPER_P2P_ON + choose(3);
    machine.bcontainer = g_new0(VFIOContainerBase, 1);
    machine.bcontainer->parent.class = &container_class.parent_class;
    machine.bcontainer->space = &machine.space;
    machine.space.as = machine.has_viommu ? &of_the_device : &address_space_memory;
    machine.bcontainer->pgsizes = PAGE;
    machine.bcontainer->dirty_pages_supported = true;
    machine.bcontainer->dirty_pgsizes = PAGE;
    if (one_in(2)) {
        add_range(0, 0xfedfffff);
        add_range(0xfef00000, (1ULL << 39) - 1);
    }
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (unsigned n = choose(3); n; n--) {
            step_plug();
        }
        change(&machine.windows[w], machine.windows[w].halves);
        normalize(&machine.windows[w], machine.windows[w].halves);
    }
    make_trouble();
    note("trouble %d, viommu %d, background %d, p2p %d", machine.trouble, machine.has_viommu, machine.background,
         machine.p2p);
}

/* The last device leaves. What the kernel refused to unmap before is unmapped, because the container is closed. */
static void end(bool attached)
{
    if (attached) {
        /* Nothing makes trouble any more, so that what was refused is unmapped now */
        memset(&kernel_faults, 0, sizeof(kernel_faults));
        step_change();
        run_bottom_halves();
        if (!is_filling() && !qemu.failed) {
            check_mappings(0);
        }
        view_unregister();
        run_bottom_halves();
        check_mappings(0);
        vfio_dma_mapper_close(machine.bcontainer);
    }
    run_bottom_halves();
    ensure(!kernel_close(), "something is mapped after the end");
    for (unsigned i = 0; i < MAX_DEVICES; i++) {
        if (machine.devices[i]) {
            device_free(machine.devices[i]);
            machine.devices[i] = NULL;
        }
    }
    machine_end();
    g_list_free_full(machine.bcontainer->iova_ranges, g_free);
    g_free(machine.bcontainer);
    global_dirty_tracking = 0;
}

static bool is_in_view(const Region *region)
{
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (unsigned i = 0; i < 2 * machine.windows[w].pages; i++) {
            if (machine.windows[w].halves[i].region == region) {
                return true;
            }
        }
    }
    return false;
}

/* QEMU ends without detaching its devices. The RAM of the guest is discarded, and nothing else. */
static void leave(void)
{
    qemu.state = one_in(2) ? RUN_STATE_SHUTDOWN : RUN_STATE_PRELAUNCH;
    memset(&kernel_faults, 0, sizeof(kernel_faults));
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        if (machine.regions[i] && machine.regions[i]->host) {
            machine.regions[i]->host[0] = 1;
        }
    }
    notify_exit();
    ensure(!kernel_pages(), "something is mapped at exit");
    for (unsigned i = 0; i < MAX_REGIONS; i++) {
        const Region *region = machine.regions[i];

        if (region && region->host) {
            ensure(region->host[0] == (region->mr->ram_device || !is_in_view(region)),
                   "region %u of kind %d is discarded or not: %u", i, region->kind, region->host[0]);
        }
    }
    _exit(EXIT_ENDED);
}

static void run(void)
{
    bool attached;

    alarm(120);
    begin();
    attached = attach();
    if (attached) {
        check();
        for (unsigned n = 0; n < 60 && !input_is_over(); n++) {
            step();
        }
        if (one_in(16)) {
            leave();
        }
    }
    end(attached);
    alarm(0);
}

/* Runs seeds up to one, or the choices of a file */
static int worker(uint64_t end_seed)
{
    if (verbose) {
        run();
    }
    while (shared->seed < end_seed && shared->seconds > elapsed()) {
        input_begin(shared->seed);
        run();
        shared->seed++;
        /* Now and then, because many workers do not reach the end */
        if (shared->seed % 16 == 0 && __lsan_do_recoverable_leak_check()) {
            return EXIT_LEAK;
        }
    }
    return __lsan_do_recoverable_leak_check() ? EXIT_LEAK : 0;
}

/* Runs a worker in a process of its own. Returns how that has ended, as a shell would. */
static int in_child(uint64_t end_seed)
{
    int status;
    const pid_t child = fork();

    if (!child) {
        _exit(worker(end_seed));
    }
    g_assert(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The first seed that leaks by itself, or the last one */
static uint64_t leaking(uint64_t first, uint64_t end)
{
    for (uint64_t seed = first; seed + 1 < end; seed++) {
        shared->seed = seed;
        if (in_child(seed + 1) == EXIT_LEAK) {
            return seed;
        }
    }
    return end - 1;
}

static int run_seeds(uint64_t first, uint64_t count, const char *save)
{
    const uint64_t last = first + count;
    uint64_t ended = 0;

    shared->seed = first;
    while (shared->seed < last && shared->seconds > elapsed()) {
        const uint64_t began = shared->seed;
        const int status = in_child(MIN(last, began + 100));

        if (status == EXIT_ENDED) {
            shared->seed++;
            ended++;
        } else if (status) {
            const uint64_t seed = status == EXIT_LEAK ? leaking(began, shared->seed) : shared->seed;

            printf("seed %" PRIu64 " %s; its choices are in %s\n", seed,
                   status == EXIT_LEAK ? "leaks" : "has failed", save);
            return input_save(save) ? 1 : 2;
        }
    }
    printf("%" PRIu64 " runs, in %" PRIu64 " of which QEMU had to end\n", shared->seed - first, ended);
    return 0;
}

static int run_files(char **names)
{
    verbose = true;
    for (; *names; names++) {
        int status;

        if (!input_read(*names)) {
            perror(*names);
            return 1;
        }
        printf("%s\n", *names);
        status = in_child(0);
        if (status && status != EXIT_ENDED) {
            printf("%s has failed\n", *names);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    /* GLib's own allocator would hide leaks */
    if (!getenv("G_SLICE")) {
        setenv("G_SLICE", "always-malloc", true);
        execv("/proc/self/exe", argv);
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert(shared != MAP_FAILED);
    input_is_in(&shared->choices);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 5 && !strcmp(argv[1], "seeds")) {
        shared->seconds = UINT64_MAX;
        return run_seeds(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0), argv[4]);
    }
    if (argc == 5 && !strcmp(argv[1], "seconds")) {
        shared->seconds = strtoull(argv[3], NULL, 0);
        shared->seconds += elapsed();
        return run_seeds(strtoull(argv[2], NULL, 0), UINT32_MAX, argv[4]);
    }
    return argc > 1 ? run_files(argv + 1) : 1;
}
