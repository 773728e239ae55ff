/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Reads blocks of an NVMe disk from user space, with no driver in the kernel but vfio-pci, and writes them to standard
 * output. The library maps the queues and the buffer for the disk's DMA.
 *
 *     nvme_read [--iommufd] 0000:01:00.0 FIRST_BLOCK BLOCKS > FILE
 *
 * It resets the disk, so nothing else may use it.
 */
#define _GNU_SOURCE

#include <time.h>

#include "vfio_device.h"

#define PAGE 4096u
/* Entries of each queue: more than one command is never under way. */
#define QUEUE 4u
#define BUFFER (1u << 20)

/* Device addresses. Any will do that the IOMMU translates; below 0xfee00000, where interrupts are, each of them does. */
#define QUEUES_IOVA 0x100000u
#define BUFFER_IOVA 0x200000u

/* What the memory of the queues is divided into: one page each. */
enum { ADMIN_SUBMIT, ADMIN_COMPLETE, READ_SUBMIT, READ_COMPLETE, PAGE_LIST, PAGES };

/* The controller's registers. */
enum { CAP = 0x00, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
/* Commands of the admin queue, and the one of the other queue. */
enum { CREATE_SUBMIT = 0x01, CREATE_COMPLETE = 0x05, IDENTIFY = 0x06, READ = 0x02 };

struct command {
    uint8_t opcode;
    uint8_t flags;
    uint16_t id;
    uint32_t nsid;
    uint64_t reserved;
    uint64_t metadata;
    uint64_t page[2];
    uint32_t word[6];
};

struct completion {
    uint32_t result;
    uint32_t reserved;
    uint16_t head;
    uint16_t queue;
    uint16_t id;
    uint16_t status; /* bit 0 is the phase, which is inverted each time the queue is filled */
};

struct queue {
    volatile struct command *submit;
    volatile struct completion *complete;
    unsigned number, tail, head, phase;
};

struct disk {
    volatile uint8_t *registers;
    unsigned stride;
    struct queue admin, read;
    uint8_t *queues; /* PAGES pages */
    uint8_t *buffer;
    unsigned block; /* bytes */
    uint64_t blocks;
    unsigned maximum; /* blocks that one command may read */
};

static uint32_t get32(struct disk *disk, unsigned offset)
{
    return *(volatile uint32_t *)(disk->registers + offset);
}

static void set32(struct disk *disk, unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(disk->registers + offset) = value;
}

/* Not every controller takes 64 bits in one access. */
static void set64(struct disk *disk, unsigned offset, uint64_t value)
{
    set32(disk, offset, (uint32_t)value);
    set32(disk, offset + 4, (uint32_t)(value >> 32));
}

static uint64_t now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* Ends the program 20 seconds after `start`. */
static void pause_until_late(uint64_t start, const char *what)
{
    const struct timespec pause = {.tv_nsec = 100000};

    if (now_ms() - start > 20000) {
        fprintf(stderr, "%s: no reply from the disk\n", what);
        exit(1);
    }
    nanosleep(&pause, NULL);
}

/* Submits a command, and waits for its completion. */
static void submit(struct disk *disk, struct queue *queue, struct command command, const char *what)
{
    volatile struct completion *done = &queue->complete[queue->head];
    uint64_t start = now_ms();
    unsigned bell = DOORBELLS + 2 * queue->number * disk->stride;
    uint16_t status;

    command.id = (uint16_t)queue->tail;
    queue->submit[queue->tail] = command;
    queue->tail = (queue->tail + 1) % QUEUE;
    /* The disk must not see the doorbell before the command. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    set32(disk, bell, queue->tail);
    while (((status = done->status) & 1) != queue->phase)
        pause_until_late(start, what);
    /* Nor may what the disk wrote be read before its completion. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    queue->head = (queue->head + 1) % QUEUE;
    if (queue->head == 0)
        queue->phase ^= 1;
    set32(disk, bell + disk->stride, queue->head);
    if (status >> 1) {
        fprintf(stderr, "%s: the disk reports status %#x\n", what, status >> 1);
        exit(1);
    }
}

static struct queue make_queue(struct disk *disk, unsigned number, unsigned first_page)
{
    struct queue queue = {.number = number, .phase = 1};

    queue.submit = (volatile struct command *)(disk->queues + first_page * PAGE);
    queue.complete = (volatile struct completion *)(disk->queues + (first_page + 1) * PAGE);
    return queue;
}

static void map_registers(struct disk *disk, int device)
{
    struct vfio_region_info bar = {.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX};
    struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    uint16_t command = 0x6; /* decodes its memory, and may do DMA */
    void *registers;

    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) < 0 ||
        pwrite(device, &command, sizeof(command), (off_t)config.offset + 4) != sizeof(command))
        fail("the command register");
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) < 0)
        fail("VFIO_DEVICE_GET_REGION_INFO");
    registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
    if (registers == MAP_FAILED)
        fail("BAR 0");
    disk->registers = registers;
}

static void wait_for_ready(struct disk *disk, uint32_t ready)
{
    uint64_t start = now_ms();

    while ((get32(disk, CSTS) & 1) != ready)
        pause_until_late(start, "reset");
}

static void start(struct disk *disk)
{
    disk->stride = 4u << (get32(disk, CAP + 4) & 0xf);
    set32(disk, CC, 0);
    wait_for_ready(disk, 0);
    disk->admin = make_queue(disk, 0, ADMIN_SUBMIT);
    disk->read = make_queue(disk, 1, READ_SUBMIT);
    set32(disk, AQA, (QUEUE - 1) << 16 | (QUEUE - 1));
    set64(disk, ASQ, QUEUES_IOVA + ADMIN_SUBMIT * PAGE);
    set64(disk, ACQ, QUEUES_IOVA + ADMIN_COMPLETE * PAGE);
    /* Commands of 64 bytes, completions of 16, pages of 4 KiB; enabled. */
    set32(disk, CC, 6u << 16 | 4u << 20 | 1);
    wait_for_ready(disk, 1);
}

static void make_read_queue(struct disk *disk)
{
    struct command complete = {.opcode = CREATE_COMPLETE, .page = {QUEUES_IOVA + READ_COMPLETE * PAGE}};
    struct command submitted = {.opcode = CREATE_SUBMIT, .page = {QUEUES_IOVA + READ_SUBMIT * PAGE}};

    /* Queue 1, contiguous; the second one reports to the first. */
    complete.word[0] = submitted.word[0] = (QUEUE - 1) << 16 | 1;
    complete.word[1] = 1;
    submitted.word[1] = 1u << 16 | 1;
    submit(disk, &disk->admin, complete, "create a completion queue");
    submit(disk, &disk->admin, submitted, "create a submission queue");
}

static void identify(struct disk *disk)
{
    struct command command = {.opcode = IDENTIFY, .nsid = 1, .page = {BUFFER_IOVA}};
    unsigned format, bytes = BUFFER;

    submit(disk, &disk->admin, command, "identify the namespace");
    memcpy(&disk->blocks, disk->buffer, sizeof(disk->blocks));
    format = disk->buffer[26] & 0xf;
    disk->block = 1u << disk->buffer[128 + 4 * format + 2];
    command.nsid = 0;
    command.word[0] = 1;
    submit(disk, &disk->admin, command, "identify the controller");
    /* The largest transfer: a power of two of pages, or 0 for no limit. */
    if (disk->buffer[77] && disk->buffer[77] < 8)
        bytes = PAGE << disk->buffer[77];
    disk->maximum = bytes / disk->block;
    fprintf(stderr, "%.40s: %llu blocks of %u bytes\n", (char *)disk->buffer + 24, (unsigned long long)disk->blocks,
            disk->block);
}

/* Reads into the buffer. A command names its first page; the second word is the next one, or a list of all others. */
static void read_blocks(struct disk *disk, uint64_t first, unsigned blocks)
{
    struct command command = {.opcode = READ, .nsid = 1, .page = {BUFFER_IOVA}};
    unsigned pages = (blocks * disk->block + PAGE - 1) / PAGE;
    uint64_t *list = (uint64_t *)(disk->queues + PAGE_LIST * PAGE);

    for (unsigned i = 1; i < pages; i++)
        list[i - 1] = BUFFER_IOVA + i * PAGE;
    if (pages == 2)
        command.page[1] = list[0];
    else if (pages > 2)
        command.page[1] = QUEUES_IOVA + PAGE_LIST * PAGE;
    command.word[0] = (uint32_t)first;
    command.word[1] = (uint32_t)(first >> 32);
    command.word[2] = blocks - 1;
    submit(disk, &disk->read, command, "read");
}

static void map_memory(struct disk *disk, struct vfio_fast *vf)
{
    struct vfio_fast_region queues = {
        .size = sizeof(queues),
        .flags = VFIO_FAST_REGION_WRITE,
        .iova = QUEUES_IOVA,
        .length = PAGES * PAGE,
    };
    struct vfio_fast_region buffer = {
        .size = sizeof(buffer),
        .flags = VFIO_FAST_REGION_WRITE,
        .iova = BUFFER_IOVA,
        .length = BUFFER,
    };
    struct vfio_fast_outcome outcome = {.size = sizeof(outcome)};

    disk->queues = allocate(PAGES * PAGE);
    disk->buffer = allocate(BUFFER);
    queues.hva = (uintptr_t)disk->queues;
    buffer.hva = (uintptr_t)disk->buffer;
    check(vfio_fast_begin(vf));
    check(vfio_fast_map_region(vf, &queues));
    check(vfio_fast_map_region(vf, &buffer));
    check(vfio_fast_commit(vf, &outcome));
    fprintf(stderr, "%u calls mapped %llu bytes\n", outcome.map_calls, (unsigned long long)outcome.map_bytes);
}

int main(int argc, char **argv)
{
    int by_file = argc > 1 && strcmp(argv[1], "--iommufd") == 0;
    struct vfio_device device;
    struct disk disk = {0};
    struct vfio_fast *vf;
    uint64_t first, left;

    if (argc - by_file != 4) {
        fprintf(stderr, "usage: nvme_read [--iommufd] ADDRESS FIRST_BLOCK BLOCKS\n");
        return 2;
    }
    argv += by_file;
    device = open_device(argv[1], by_file);
    first = strtoull(argv[2], NULL, 0);
    left = strtoull(argv[3], NULL, 0);
    vf = open_library(&device);
    map_memory(&disk, vf);
    map_registers(&disk, device.fd);
    start(&disk);
    identify(&disk);
    if (first > disk.blocks || left > disk.blocks - first) {
        fprintf(stderr, "there are no blocks after block %llu\n", (unsigned long long)disk.blocks - 1);
        return 1;
    }
    make_read_queue(&disk);
    while (left > 0) {
        unsigned blocks = left < disk.maximum ? (unsigned)left : disk.maximum;

        read_blocks(&disk, first, blocks);
        if (fwrite(disk.buffer, disk.block, blocks, stdout) != blocks)
            fail("standard output");
        first += blocks;
        left -= blocks;
    }
    if (fflush(stdout) != 0)
        fail("standard output");
    /* The disk must not write to memory that is given back. */
    set32(&disk, CC, 0);
    wait_for_ready(&disk, 0);
    check(vfio_fast_close(&vf));
    close_device(&device);
    return 0;
}
