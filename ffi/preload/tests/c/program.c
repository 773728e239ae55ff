/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * A program that maps memory, right and wrong, and prints every answer: the result, errno, and
 * the argument as it is after the call. It knows nothing of the library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (48u << 20)

struct map {
    uint32_t argsz, flags;
    uint64_t vaddr, iova, size;
};

struct unmap {
    uint32_t argsz, flags;
    uint64_t iova, size;
};

struct ioas_map {
    uint32_t size, flags, ioas, reserved;
    uint64_t address, length, iova;
};

static void *memory(void)
{
    void *start = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED) {
        abort();
    }
    return start;
}

/* One call. errno is set before it, because a call that succeeds leaves it alone. */
static int call(const char *what, int fd, unsigned long command, void *argument)
{
    int answer;

    errno = EXDEV;
    answer = ioctl(fd, command, argument);
    printf("%s: %d, errno %d\n", what, answer, errno);
    return answer;
}

static int answer_of_cancelled = -2;

/* It is to end after the call, and not in it. */
static void *cancelled(void *fd)
{
    struct map map = { 32, 3, (uintptr_t)memory(), 0, BYTES };

    pthread_cancel(pthread_self());
    answer_of_cancelled = ioctl(*(int *)fd, 0x3b71, &map);
    pthread_testcancel();
    return NULL;
}

int main(void)
{
    int fd = open("/dev/null", O_RDWR), pipes[2];
    struct map map = { 32, 3, (uintptr_t)memory(), 0, BYTES };
    struct unmap unmap = { 24, 0, 0, BYTES };
    struct ioas_map ioas = { 40, 7, 1, 0, (uintptr_t)memory(), BYTES, 0 };
    unsigned char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t thread;
    void *ended;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (fd < 0 || pipe(pipes) != 0 || edge == MAP_FAILED || munmap(edge + 4096, 4096) != 0) {
        abort();
    }
    call("map", fd, 0x3b71, &map);
    call("map again", fd, 0x3b71, &map);
    call("ioas map", fd, 0x3b85, &ioas);
    call("unmap", fd, 0x3b72, &unmap);
    printf("unmapped %#llx\n", (unsigned long long)unmap.size);
    unmap.size = 0;
    unmap.flags = 2;
    call("unmap all", fd, 0x3b72, &unmap);
    call("ioas unmap", fd, 0x3b86, &unmap);

    map.vaddr = (uintptr_t)memory();
    map.flags = 1;
    call("read only", fd, 0x3b71, &map);
    map.flags = 4;
    call("vaddr", fd, 0x3b71, &map);
    map.flags = 3;
    map.size = 1 << 20;
    call("small", fd, 0x3b71, &map);
    map.size = BYTES;
    map.argsz = 8;
    call("short", fd, 0x3b71, &map);
    map.argsz = 32;
    call("no descriptor", -1, 0x3b71, &map);
    call("pipe", pipes[0], 0x3b71, &map);
    map.vaddr = (uintptr_t)1 << 62;
    call("nothing there", fd, 0x3b71, &map);
    map.iova = 0xbad000;
    call("refused", fd, 0x3b71, &map);
    call("other", fd, 0x3b64, &map);
    call("null", fd, 0x3b71, NULL);
    call("unreadable", fd, 0x3b71, (void *)8);
    call("over the edge", fd, 0x3b85, edge + 4096 - 16);
    call("unmap null", fd, 0x3b72, NULL);

    if (pthread_create(&thread, NULL, cancelled, &fd) != 0 || pthread_join(thread, &ended) != 0) {
        abort();
    }
    printf("answer %d, cancelled: %d\n", answer_of_cancelled, ended == PTHREAD_CANCELED);
    fflush(stdout);
    if (fork() == 0) {
        struct map of_child = { 32, 3, (uintptr_t)memory(), 0, BYTES };

        call("child", fd, 0x3b71, &of_child);
        exit(0);
    }
    wait(NULL);
    return 0;
}
