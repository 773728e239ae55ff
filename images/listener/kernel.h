/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A kernel that maps nothing: it answers the ioctls of VFIO's type1 containers, and keeps a book of what is mapped.
 */

#ifndef LISTENER_KERNEL_H
#define LISTENER_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE 4096ULL

/* What is mapped at a page of device addresses */
typedef struct KernelPage {
    uint64_t hva;
    bool write;
    unsigned long born; /* number of the call that mapped it */
} KernelPage;

/* Which calls fail. All counters go down with each call that they are about; 0: never. */
typedef struct KernelFaults {
    unsigned map_in;      /* the map call that fails */
    int map_errno;
    unsigned unmap_in;    /* the first unmap call that is refused */
    unsigned unmap_count; /* how many are refused from then on */
    unsigned short_in;    /* the unmap call that returns one page too few, although it unmaps all */
} KernelFaults;

extern KernelFaults kernel_faults;

/* How many calls have failed because of kernel_faults since the reset */
unsigned kernel_fired(void);

/* Begins an empty container, which has room for so many entries. Returns its descriptor. */
int kernel_open(unsigned entries);

/* Closes the container, which unmaps everything. Returns how many entries there still were. */
unsigned kernel_close(void);

/* Memory that is device memory, which cannot be mapped if @refused. At most a few. */
void kernel_add_device_memory(void *start, uint64_t length, bool refused);
void kernel_forget_device_memory(const void *start);

/* What the device accesses at an address; false: an error */
bool kernel_page(uint64_t iova, KernelPage *page);

/* Whether a byte of the memory is mapped anywhere */
bool kernel_maps_memory(const void *start, uint64_t length);

/* How many pages are mapped */
uint64_t kernel_pages(void);

/* How many map and unmap calls there were */
unsigned long kernel_calls(void);

/* A device writes to an address. Returns whether it could. */
bool kernel_write(uint64_t iova);

/* Whether dirty pages are tracked */
bool kernel_tracks(void);

#endif
