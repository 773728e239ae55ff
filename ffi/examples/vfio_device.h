/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Opens a PCI device that is bound to vfio-pci, by its group and a type1 container, or by its own file and iommufd, and
 * opens the library on what its DMA goes through. Shared by the examples of this folder.
 */
#ifndef VFIO_DEVICE_H
#define VFIO_DEVICE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vfio_fast.h>

#include "iommufd.h"

/* A device, and the container or the iommufd that translates its addresses. */
struct vfio_device {
    int container; /* the type1 container, or -1 */
    int group;     /* its group, or -1 */
    int iommufd;   /* or -1 */
    uint32_t ioas;
    int fd;
};

/* Prints what failed, and ends the program. */
static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* The same for a function of the library, whose message has the numbers and the setting that would help. */
static void check(int ret)
{
    if (ret < 0) {
        fprintf(stderr, "%s\n", vfio_fast_last_error());
        exit(1);
    }
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0)
        fail(path);
    return fd;
}

/* The group of the device has a number, which the link in sysfs ends with. */
static void open_by_group(struct vfio_device *device, const char *address)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    char path[128], target[256];
    ssize_t length;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
    length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        fail(path);
    target[length] = '\0';
    snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(target, '/') + 1);
    device->group = open_file(path);
    device->container = open_file("/dev/vfio/vfio");
    if (ioctl(device->group, VFIO_GROUP_GET_STATUS, &status) < 0)
        fail("VFIO_GROUP_GET_STATUS");
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
        fprintf(stderr, "%s: another device of its group has a driver other than vfio-pci\n", path);
        exit(1);
    }
    if (ioctl(device->group, VFIO_GROUP_SET_CONTAINER, &device->container) < 0)
        fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(device->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
        fail("VFIO_SET_IOMMU");
    device->fd = ioctl(device->group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (device->fd < 0)
        fail("VFIO_GROUP_GET_DEVICE_FD");
}

/* The device has a file of its own, whose name is in sysfs. */
static void open_by_file(struct vfio_device *device, const char *address)
{
    struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind)};
    struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach)};
    struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
    char path[128];
    struct dirent *entry;
    DIR *dir;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
    dir = opendir(path);
    if (!dir)
        fail(path);
    do {
        entry = readdir(dir);
        if (!entry)
            fail(path);
    } while (entry->d_name[0] == '.');
    snprintf(path, sizeof(path), "/dev/vfio/devices/%.32s", entry->d_name);
    closedir(dir);
    device->fd = open_file(path);
    device->iommufd = open_file("/dev/iommu");
    bind.iommufd = device->iommufd;
    if (ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
        fail("VFIO_DEVICE_BIND_IOMMUFD");
    if (ioctl(device->iommufd, IOMMU_IOAS_ALLOC, &alloc) < 0)
        fail("IOMMU_IOAS_ALLOC");
    device->ioas = alloc.out_ioas_id;
    /* Before anything is mapped: without a device, mappings are only recorded. */
    attach.pt_id = device->ioas;
    if (ioctl(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
        fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static struct vfio_device open_device(const char *address, int by_file)
{
    struct vfio_device device = {.container = -1, .group = -1, .iommufd = -1, .fd = -1};

    if (by_file)
        open_by_file(&device, address);
    else
        open_by_group(&device, address);
    return device;
}

/* To be called after vfio_fast_close(). The order of the descriptors does not matter. */
static void close_device(struct vfio_device *device)
{
    int fds[] = {device->fd, device->group, device->container, device->iommufd};

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void print_message(void *opaque, uint32_t level, const char *message)
{
    (void)opaque;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

/* The library on the container or the IOAS of the device; without a device, on its model of the kernel. */
static struct vfio_fast *open_library(const struct vfio_device *device)
{
    struct vfio_fast_config config = {
        .size = sizeof(config),
        .backend = VFIO_FAST_BACKEND_SIM,
        .log = print_message,
        .log_level = VFIO_FAST_LOG_INFO,
    };
    struct vfio_fast *vf = NULL;

    if (device && device->iommufd >= 0) {
        config.backend = VFIO_FAST_BACKEND_IOMMUFD;
        config.iommufd_fd = device->iommufd;
        config.ioas_id = device->ioas;
    } else if (device) {
        config.backend = VFIO_FAST_BACKEND_TYPE1;
        config.container_fd = device->container;
    }
    check(vfio_fast_open(&config, &vf));
    return vf;
}

/* Anonymous memory that begins at a multiple of 2 MiB, so that it can be of huge pages. It is not faulted in. */
static void *allocate(size_t length)
{
    const uintptr_t align = 2 << 20;
    char *memory = mmap(NULL, length + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap");
    return (void *)(((uintptr_t)memory + align - 1) & ~(align - 1));
}

#endif
