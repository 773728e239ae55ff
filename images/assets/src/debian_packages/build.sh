#!/bin/bash
# Builds the packages of the release archive in /shared, and lets lintian check them. There is no network.
set -euxo pipefail
archive=$(echo /shared/vfio-fast-*.tar.xz)
version=${archive#/shared/vfio-fast-}
version=${version%.tar.xz}
mkdir /build
cd /build
cp "$archive" "vfio-fast_$version.orig.tar.xz"
tar --extract --file "vfio-fast_$version.orig.tar.xz"
(cd "vfio-fast-$version" && dpkg-buildpackage --unsigned-source --unsigned-changes)
lintian --fail-on error,warning --tag-display-limit 0 ./*.changes
cp ./*.deb /shared/
