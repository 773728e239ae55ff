#!/bin/bash
# Runs a script in a clean system. What it writes outside of /shared and /ccache is discarded.
#
# Usage: unshare --mount --net --pid --fork --kill-child enter.sh SYSTEM SCRATCH SHARED SCRIPT CCACHE
set -euo pipefail
system=$1 scratch=$2 shared=$3 script=$4 ccache=$5
mkdir -p "$scratch"
mount -t tmpfs none "$scratch"
root=$scratch/root
mkdir "$root" "$scratch/upper" "$scratch/work"
mount -t overlay overlay "$root" -o "lowerdir=$system,upperdir=$scratch/upper,workdir=$scratch/work"
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$ccache" "$root/ccache" "$root/shared"
mount --bind "$ccache" "$root/ccache"
mount --bind "$shared" "$root/shared"
cp "$script" "$root/script"
exec env --ignore-environment HOME=/nonexistent LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" bash /script
