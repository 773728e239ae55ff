#!/bin/bash
# Builds the RPM packages of the release archive in /shared, installs them, and uses their files as their users would.
# There is no network, and the system is Debian, so RPM does not know what is installed: dependencies are compared with
# lists.
set -euxo pipefail
archive=$(echo /shared/vfio-fast-*.tar.xz)
version=${archive#/shared/vfio-fast-}
version=${version%.tar.xz}
mkdir --parents /build/SOURCES
cp "$archive" /build/SOURCES/
tar --extract --file "$archive" --directory /tmp "vfio-fast-$version/packaging/rpm/vfio-fast.spec"
spec=/tmp/vfio-fast-$version/packaging/rpm/vfio-fast.spec
# A distribution defines these; Debian's RPM does not.
rpmbuild -ba --nodeps --define '_topdir /build' --define 'dist .test' --define '_libdir /usr/lib64' "$spec"
cd /build/RPMS/x86_64
ls

of() { echo "vfio-fast$1-$version-1.test.x86_64.rpm"; }
provides=$(rpm --query --provides --package "$(of -libs)")
grep --fixed-strings "libvfio_fast.so.$version" <<< "$provides"
# A program that is built with this version depends on it: another version has another SONAME.
test "$(rpm --query --requires --package "$(of -devel)" | grep vfio-fast)" = "vfio-fast-libs(x86-64) = $version-1.test"

rpm --install --nodeps "$(of "")" "$(of -libs)" "$(of -devel)" "$(of -static)"
rpm --verify --nodeps vfio-fast vfio-fast-libs vfio-fast-devel vfio-fast-static
export PKG_CONFIG_PATH=/usr/lib64/pkgconfig
test "$(pkg-config --modversion vfio_fast)" = "$version"
example=$(rpm --query --list vfio-fast-devel | grep '/example\.c$')
cc="cc -Wall -Wextra -Werror"
prints() { test "$("$1")" = "1 calls mapped 64 MiB"; }
# Debian's loader does not look into /usr/lib64.
$cc -o /tmp/shared "$example" $(pkg-config --cflags --libs vfio_fast) -Wl,-rpath,/usr/lib64
readelf --dynamic /tmp/shared | grep --fixed-strings "[libvfio_fast.so.$version]"
prints /tmp/shared
$cc -static -o /tmp/static "$example" $(pkg-config --static --cflags --libs vfio_fast)
prints /tmp/static

test "$(vfio-fast-doctor --version)" = "vfio-fast-doctor $version"
test "$(vfio-fast-run --version)" = "vfio-fast-run $version"
vfio-fast-run -- grep /usr/lib/vfio-fast/libvfio_fast_preload.so /proc/self/maps
for tool in vfio-fast-doctor vfio-fast-run; do
    bash -c "source /usr/share/bash-completion/completions/$tool && complete -p $tool"
    test -s "$(echo /usr/share/man/man1/$tool.1*)"
done
test -s "$(echo /usr/share/man/man3/vfio_fast.3*)"

rpm --erase --nodeps vfio-fast vfio-fast-libs vfio-fast-devel vfio-fast-static
left=$(find /etc /usr -name '*vfio[-_]fast*')
test -z "$left"
