/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Preloaded into QEMU with VFT_SANDBOX set, this refuses what `-sandbox on,spawn=deny,resourcecontrol=deny` refuses,
 * with the same answers, from before QEMU's first instruction: new processes and programs, clone3 (so that threads are
 * started by clone), affinity and priorities. The QEMU under test is built without libseccomp, which would do it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What clone has to be told for a thread, and what it must not be told. */
#define THREAD                                                                                                        \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |                \
     CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)
#define NO_THREAD                                                                                                     \
    (CLONE_PIDFD | CLONE_PTRACE | CLONE_VFORK | CLONE_PARENT | CLONE_NEWNS | CLONE_UNTRACED | CLONE_NEWCGROUP |       \
     CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_IO)

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSE(number, error)                                                                                         \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), RETURN(SECCOMP_RET_ERRNO | (error))

__attribute__((constructor)) static void enter_sandbox(void)
{
    struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        LOAD(nr),
        REFUSE(SYS_clone3, ENOSYS),
        REFUSE(SYS_fork, EPERM),
        REFUSE(SYS_vfork, EPERM),
        REFUSE(SYS_execve, EPERM),
        REFUSE(SYS_setpriority, EPERM),
        REFUSE(SYS_sched_setparam, EPERM),
        REFUSE(SYS_sched_setscheduler, EPERM),
        REFUSE(SYS_sched_setaffinity, EPERM),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NO_THREAD, 2, 0),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, THREAD),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THREAD, 1, 0),
        RETURN(SECCOMP_RET_ERRNO | EPERM),
        RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof(filter) / sizeof(filter[0]), .filter = filter };

    if (!getenv("VFT_SANDBOX")) {
        return;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
        perror("sandbox: cannot enter");
        _exit(126);
    }
}
