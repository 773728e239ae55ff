#!/bin/bash
# Installs the packages in /shared, and makes an image of the whole system. There is no network.
set -euxo pipefail
dpkg --install /shared/*.deb
rm /shared/*.deb
# What nothing reads.
rm -rf /usr/include /usr/share/doc /usr/share/locale /usr/share/man
find /usr/lib -name '*.a' -delete
# Without what is mounted in it.
mount --bind / /mnt
mke2fs -q -t ext4 -m 0 -O ^has_journal -d /mnt /shared/debian.img 4G
