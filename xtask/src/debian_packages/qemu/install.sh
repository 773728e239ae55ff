#!/bin/bash
# Installs the packages of the patched QEMU in /shared, starts VMs, and goes back to Debian's own in /shared/debian,
# with the commands of docs/PACKAGING.md. There is no network.
set -euxo pipefail
cd /shared
ours=(./libvfio-fast0_*.deb ./qemu-*+vfiofast1_amd64.deb)
qemu=(qemu-block-extra qemu-system-common qemu-system-gui qemu-system-modules-opengl qemu-system-modules-spice
    qemu-system-x86 qemu-utils)
pin=/etc/apt/preferences.d/qemu-vfio-fast

# Starts a VM with these arguments, lets SeaBIOS look for something to boot, and asks over QMP for $queries.
vm() {
    : > /tmp/bios
    {
        echo '{"execute": "qmp_capabilities"}'
        for _ in $(seq 120); do
            grep --quiet 'No bootable device' /tmp/bios && break
            sleep 1
        done
        for query in query-version query-status $queries; do
            echo "{\"execute\": \"$query\"}"
        done
        echo '{"execute": "quit"}'
    } | timeout 180 qemu-system-x86_64 -accel tcg -display none -nic none -qmp stdio \
        -debugcon file:/tmp/bios -global isa-debugcon.iobase=0x402 "$@" > /tmp/qmp
    cat /tmp/qmp
    grep '^SeaBIOS' /tmp/bios
    grep 'No bootable device' /tmp/bios
    grep '"status": "running"' /tmp/qmp
    if grep '"error"' /tmp/qmp; then exit 1; fi
}

ours_work() {
    qemu-system-x86_64 --version | grep --fixed-strings '+vfiofast1)'
    qemu-img --version | grep --fixed-strings '+vfiofast1)'
    ldd /usr/bin/qemu-system-x86_64 | grep --extended-regexp 'libvfio_fast\.so\.[0-9.]+ => /'
    qemu-system-x86_64 -device vfio-pci,help | grep 'x-dma-mapper='
    # QEMU does not load a module of another build.
    qemu-system-x86_64 -display help | grep gtk
    queries=x-query-vfio-dma vm -global vfio-pci.x-dma-mapper=libvfio-fast
    grep --fixed-strings '+vfiofast1"' /tmp/qmp
}

debians_work() {
    if dpkg-query --show | grep vfiofast; then exit 1; fi
    if qemu-system-x86_64 -device vfio-pci,help | grep x-dma-mapper; then exit 1; fi
    queries= vm
}

# An archive with Debian's packages of QEMU, of this version or their own.
archive() {
    rm -rf /tmp/archive
    mkdir /tmp/archive
    for deb in debian/*.deb; do
        cp "$deb" /tmp/archive/
        dpkg-deb --field "$deb" | sed "${1:+s/^Version: .*/Version: $1/}"
        printf 'Filename: %s\nSize: %s\nSHA256: %s\n\n' "./${deb##*/}" "$(stat --format=%s "$deb")" \
            "$(sha256sum < "$deb" | cut --delimiter=' ' --fields=1)"
    done > /tmp/archive/Packages
    printf 'Codename: trixie\nSHA256:\n %s %s Packages\n' "$(sha256sum < /tmp/archive/Packages | cut --delimiter=' ' \
        --fields=1)" "$(stat --format=%s /tmp/archive/Packages)" > /tmp/archive/Release
    rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
    echo 'deb [trusted=yes] file:/tmp/archive ./' > /etc/apt/sources.list
    apt-get update
}

candidate() { apt-cache policy qemu-system-x86 | sed --quiet 's/ *Candidate: //p'; }

# On a host without QEMU, but with what Debian's needs.
apt-get --yes purge "${qemu[@]}"
# They need the library's package, which no archive has.
if apt-get --yes install ./qemu-*+vfiofast1_amd64.deb; then exit 1; fi
apt-get --yes install "${ours[@]}"
ours_work
dpkg --remove "${qemu[@]}" libvfio-fast0
dpkg --purge "${qemu[@]}" libvfio-fast0
left=$(find /etc /usr /var/lib -name '*vfio[-_]fast*' -o -name 'qemu-system-x86*')
test -z "$left"

# In place of Debian's.
archive
apt-get --yes install "${qemu[@]}"
debians_work
apt-get --yes install "${ours[@]}"
ours_work

# A later version of Debian's replaces it, unless it is pinned.
archive 1:10.0.999+ds-0+deb13u1
test "$(candidate)" = 1:10.0.999+ds-0+deb13u1
printf 'Package: src:qemu\nPin: version /[+]vfiofast/\nPin-Priority: 1001\n' > $pin
candidate | grep --fixed-strings +vfiofast1

# And back.
archive
rm $pin
apt-get --yes install --allow-downgrades \
    $(dpkg-query --show --showformat='${Package}=${Version}\n' | sed --quiet 's,=.*+vfiofast1$,/trixie,p')
apt-get --yes purge libvfio-fast0
debians_work
dpkg --audit
