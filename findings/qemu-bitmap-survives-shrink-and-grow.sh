#!/usr/bin/env bash
# qemu-utils 7.2.22 (Debian 12); 10.0.2 does the same.
# Seen: a qcow2 image has data and a persistent dirty bitmap made after them. `qemu-img resize
#   --shrink` cuts the data off, a second resize grows the image to its old size. The data are gone
#   and the bitmap calls the whole image clean. `qemu-img check` finds nothing, no flag is set.
# Expected: the range that was cut off is dirty, or the bitmap is marked as inconsistent.
# Needs: apt-get with Debian 12's main archive.
set -euo pipefail
work=$(mktemp -d)
trap '[ ! -s "$work/pid" ] || kill "$(cat "$work/pid")"; rm -rf "$work"' EXIT
cd "$work"
apt-get -o APT::Sandbox::User=root -qq download 'qemu-utils=1:7.2+dfsg-7+deb12u18+b3' \
    'libnbd-bin=1.14.2-1' 'libnbd0=1.14.2-1'
for package in ./*.deb; do dpkg -x "$package" root; done
export PATH=$work/root/usr/bin:$PATH LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
qemu-img --version | head -n 1

qemu-img create -q -f qcow2 image 64M
qemu-io -f qcow2 -c 'write -P 5 40M 1M' image > /dev/null
qemu-img bitmap --add image since
cp image before
qemu-img resize -q --shrink image 32M
qemu-img resize -q image 64M

qemu-img check -q image
compared=0
qemu-img compare before image || compared=$?
qemu-nbd --read-only -f qcow2 -B since -k "$work/socket" --fork --pid-file "$work/pid" image
map=$(nbdinfo --map=qemu:dirty-bitmap:since "nbd+unix:///?socket=$work/socket" | tr -s ' ')
echo "the bitmap says:$map"
[ "$compared" = 1 ] && [ "$map" = " 0 67108864 0 clean" ] ||
    { echo "CHANGED: the bitmap was clean before" >&2; exit 1; }
echo "as described"
