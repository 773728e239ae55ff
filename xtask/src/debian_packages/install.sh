#!/bin/bash
# Installs the packages in /shared, and uses each file of them as its users would. There is no network.
set -euxo pipefail
cd /shared
apt-get --yes install ./libvfio-fast0_*.deb ./libvfio-fast-dev_*.deb ./vfio-fast-tools_*.deb

version=$(pkg-config --modversion vfio_fast)
libdir=$(pkg-config --variable=libdir vfio_fast)
example=/usr/share/doc/libvfio-fast-dev/examples/example.c
cc="cc -Wall -Wextra -Werror"
prints() { test "$("$1")" = "1 calls mapped 64 MiB"; }

$cc -o /tmp/shared $example $(pkg-config --cflags --libs vfio_fast)
readelf --dynamic /tmp/shared | grep --fixed-strings "[libvfio_fast.so.$version]"
prints /tmp/shared

$cc -static -o /tmp/static $example $(pkg-config --static --cflags --libs vfio_fast)
readelf --dynamic /tmp/static | grep 'There is no dynamic section'
prints /tmp/static

# The library alone static, as a program that is not packaged ships it.
private=$(pkg-config --static --libs-only-l vfio_fast | sed 's/-lvfio_fast//')
$cc -o /tmp/mixed $example "$libdir/libvfio_fast.a" $private
readelf --dynamic /tmp/mixed | grep NEEDED
readelf --dynamic /tmp/mixed | grep libvfio_fast && exit 1
prints /tmp/mixed

# With the headers of this system's kernel, which has iommufd.
for name in nvme_read many_pages; do
    $cc -o /tmp/$name ${example%/*}/$name.c $(pkg-config --cflags --libs vfio_fast)
done
/tmp/many_pages | grep 'one transaction  *1  *1 '

# Rust's standard library keeps what valgrind calls possibly lost: a pointer into the handle of the first thread.
for program in /tmp/shared /tmp/many_pages; do
    valgrind --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,indirect $program
done

# A program that is built with this version depends on it: another version has another SONAME.
grep --fixed-strings "libvfio-fast0 #MINVER#, libvfio-fast0 (<< $version.1~)" \
    /var/lib/dpkg/info/libvfio-fast0:amd64.symbols

test "$(vfio-fast-doctor --version)" = "vfio-fast-doctor $version"
# It ends with 1 where something blocks, as without an IOMMU.
vfio-fast-doctor --json > /tmp/report || test $? -eq 1
grep '"can_work"' /tmp/report
test "$(vfio-fast-run --version)" = "vfio-fast-run $version"
vfio-fast-run -- grep /usr/lib/vfio-fast/libvfio_fast_preload.so /proc/self/maps
for tool in vfio-fast-doctor vfio-fast-run; do
    bash -c "source /usr/share/bash-completion/completions/$tool && complete -p $tool"
    test -s /usr/share/man/man1/$tool.1.gz
done
test -s /usr/share/man/man3/vfio_fast.3.gz

apt-get --yes purge libvfio-fast0 libvfio-fast-dev vfio-fast-tools
left=$(find /etc /usr /var/lib -name '*vfio[-_]fast*')
test -z "$left"
