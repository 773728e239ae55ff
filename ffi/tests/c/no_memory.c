/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* The library cannot allocate memory for itself. A call with a large array is refused and changes nothing. For all other
 * calls it ends the process, and says so. No call returns half-done. */
#include "check.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Pages without a neighbour, each of which the library has to remember: more than the rest of the address space holds. */
#define PAGES (UINT64_C(1) << 20)
#define LEFT (32 * MIB)

static uint64_t iovas[PAGES], hvas[PAGES];

/* Bytes of address space that this process has. */
static uint64_t size(void)
{
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");

    CHECK(statm && fscanf(statm, "%llu", &pages) == 1);
    CHECK(fclose(statm) == 0);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void run_out(void)
{
    struct vfio_fast_sim_config sim = sim_defaults();
    struct vfio_fast *vf;
    uint64_t count = 0;
    struct vfio_fast_pages scattered = pages(PAGES, iovas, hvas, VFIO_FAST_REGION_WRITE);
    struct rlimit limit = {size() + LEFT, size() + LEFT};

    sim.dma_avail = UINT32_MAX;
    vf = open_sim(&sim);
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK_RC(vfio_fast_map_pages(vf, &scattered), -ENOMEM);
    CHECK_TEXT("too little memory for the library's own lists");
    CHECK_RC(vfio_fast_get_entries(vf, NULL, &count), 0);
    CHECK(count == 0);
    for (uint64_t n = 0; n < PAGES; n++) {
        struct vfio_fast_pages one = pages(1, &iovas[n], &hvas[n], VFIO_FAST_REGION_WRITE);

        CHECK_RC(vfio_fast_map_pages(vf, &one), 0);
    }
    _exit(0);
}

int main(void)
{
    const struct rlimit no_core = {0, 0};
    char told[4096];
    size_t length = 0;
    ssize_t part;
    int ends[2], status;
    pid_t child;

    for (uint64_t n = 0; n < PAGES; n++) {
        iovas[n] = 2 * n * 4096;
        hvas[n] = GIB + 2 * n * 4096;
    }
    CHECK(pipe(ends) == 0 && setrlimit(RLIMIT_CORE, &no_core) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(dup2(ends[1], STDERR_FILENO) >= 0);
        run_out();
    }
    CHECK(close(ends[1]) == 0);
    while (length < sizeof(told) - 1 && (part = read(ends[0], told + length, sizeof(told) - 1 - length)) > 0) {
        length += (size_t)part;
    }
    told[length] = '\0';
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(told, "memory allocation of")) {
        fprintf(stderr, "status %#x: %s\n", (unsigned int)status, told);
        return 1;
    }
    return 0;
}
