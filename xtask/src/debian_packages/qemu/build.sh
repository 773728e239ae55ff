#!/bin/bash
# Builds the packages of the patched QEMU of the source package in /shared/source, and compares what lintian says about
# them with what it says about Debian's own in /shared/debian. There is no network.
set -euxo pipefail
mkdir /build
cd /build
tar --extract --file /shared/vfio-fast-*.tar.xz
dpkg-source --no-check --extract /shared/source/qemu_*.dsc qemu
# What dpkg-source needs to pack it again.
cp /shared/source/qemu_*.orig.tar.* .
vfio-fast-*/packaging/qemu/prepare qemu

profiles=$(cat /shared/profiles)
# What Debian's own package needs is there, the library's is not.
if dpkg-checkbuilddeps -B -P "$profiles" qemu/debian/control; then exit 1; fi
apt-get --yes install /shared/libvfio-fast0_*.deb /shared/libvfio-fast-dev_*.deb
dpkg-checkbuilddeps -B -P "$profiles" qemu/debian/control

# The compiler takes less time without optimization and without what a debugger needs. What is checked are the packages,
# not how fast their programs are.
export DEB_CFLAGS_APPEND=-g0 DEB_BUILD_OPTIONS="nocheck noautodbgsym noopt parallel=$(nproc)"
export PATH=/usr/lib/ccache:$PATH CCACHE_DIR=/ccache CCACHE_MAXSIZE=1G
cd qemu
dpkg-buildpackage --unsigned-source --unsigned-changes --build=source,any --build-profiles="$profiles"
cd ..
ccache --show-stats

# The errors and warnings, without versions and line numbers.
tags() {
    lintian --fail-on none --tag-display-limit 0 "$@" > said
    grep '^[EW]:' said | sed -e 's/+vfiofast1//g' -e 's/:[0-9]\+\]/]/g' | sort --unique
}
tags ./*.deb > ours
tags /shared/debian/*.deb > debians
comm -23 ours debians > new
cat new
test ! -s new
# Had lintian not run, nothing would be new.
test -s debians

cp ./*.deb ./qemu_*+vfiofast1.dsc ./qemu_*+vfiofast1.debian.tar.xz /shared/
