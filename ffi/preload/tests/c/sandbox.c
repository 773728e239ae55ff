/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/* Small map calls in a sandbox that forbids what reads arguments elsewhere than on the stack. */

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void forbid(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pipe2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        exit(1);
    }
}

int main(void)
{
    struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = 3, .vaddr = 0x10000, .size = 4096};
    struct vfio_iommu_type1_dma_map *elsewhere = malloc(sizeof(map));
    int fd = open("/dev/null", O_RDWR);

    *elsewhere = map;
    forbid();
    for (int n = 0; n < 5; n++)
        ioctl(fd, VFIO_IOMMU_MAP_DMA, &map);
    for (int n = 0; n < 3; n++)
        ioctl(fd, VFIO_IOMMU_MAP_DMA, elsewhere);
    free(elsewhere);
    return 0;
}
