/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * A kernel that maps whatever it is asked to map, preloaded after the library under test: what it
 * sees is what a kernel would see. It writes a line for each map call to the file named by
 * KERNEL_RECORD: how many pages of the memory were present, and how many threads there were.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;

    while (tasks && readdir(tasks)) {
        count++;
    }
    if (tasks) {
        closedir(tasks);
    }
    return count - 2;
}

static void record(uint64_t address, uint64_t bytes)
{
    const char *path = getenv("KERNEL_RECORD");
    size_t pages = bytes / 4096, present = 0;
    unsigned char *resident = malloc(pages + 1);
    FILE *file;
    int state;

    /* A kernel's ioctl() is no place where a thread ends, and this must not be one. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    file = path ? fopen(path, "a") : NULL;
    if (!file || !resident) {
        abort();
    }
    if (mincore((void *)(uintptr_t)address, bytes, resident) == 0) {
        for (size_t n = 0; n < pages; n++) {
            present += resident[n] & 1;
        }
    }
    fprintf(file, "%zu of %zu pages, %d threads\n", present, pages, threads());
    fclose(file);
    free(resident);
    pthread_setcancelstate(state, NULL);
}

static int refuse(int error)
{
    errno = error;
    return -1;
}

int ioctl(int fd, unsigned long command, ...)
{
    unsigned char bytes[40] = { 0 };
    uint32_t size, flags;
    uint64_t words[5];
    struct iovec local, remote;
    struct stat status;
    size_t length;
    va_list rest;
    void *argument;

    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    if ((uint32_t)command >> 8 != 0x3b) {
        int (*next)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");

        return next(fd, command, argument);
    }
    if (fstat(fd, &status) != 0) {
        return refuse(EBADF);
    }
    if (!S_ISCHR(status.st_mode)) {
        return refuse(ENOTTY);
    }
    length = command == 0x3b71 ? 32 : command == 0x3b85 ? 40 : 24;
    local = (struct iovec){ .iov_base = bytes, .iov_len = length };
    remote = (struct iovec){ .iov_base = argument, .iov_len = length };
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)length) {
        return refuse(EFAULT);
    }
    memcpy(&size, bytes, sizeof(size));
    memcpy(&flags, bytes + 4, sizeof(flags));
    memcpy(words, bytes, sizeof(words));
    if (size < length) {
        return refuse(EINVAL);
    }
    switch (command) {
    case 0x3b71:
        record(words[1], words[3]);
        /* As a limit of locked memory does. */
        return words[2] == 0xbad000 ? refuse(ENOMEM) : 0;
    case 0x3b85:
        record(words[2], words[3]);
        return 0;
    case 0x3b72:
    case 0x3b86:
        words[0] = 0x123000;
        memcpy((unsigned char *)argument + 16, words, 8);
        return 0;
    default:
        return refuse(ENOTTY);
    }
}
