#!/usr/bin/env bash
# qemu-utils 7.2.22 (Debian 12); 10.0.2 does the same.
# Seen: a base image has a dirty bitmap, its overlay has none. `qemu-nbd -B NAME overlay` serves
#   without a warning, with the base's bitmap. What was written to the overlay is clean in it, and
#   so is what lies behind the end of the smaller base. base:allocation in the same session shows
#   these writes as data.
# Expected: an error, as the exported image has no bitmap of that name.
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

qemu-img create -q -f qcow2 base 16M
qemu-img bitmap --add base since
qemu-img create -q -f qcow2 -b base -F qcow2 overlay 32M
qemu-io -f qcow2 -c 'write -P 5 1M 1M' -c 'write -P 5 20M 1M' overlay > /dev/null

qemu-nbd --read-only -f qcow2 -B since -e 0 -k "$work/socket" --fork --pid-file "$work/pid" \
    --persistent overlay
uri="nbd+unix:///?socket=$work/socket"
dirty=$(nbdinfo --map=qemu:dirty-bitmap:since "$uri" | tr -s ' ')
data=$(nbdinfo --map "$uri" | grep -c data)
echo "the bitmap says:$dirty; ranges of data written to the overlay: $data"
[ "$dirty" = " 0 33554432 0 clean" ] && [ "$data" = 2 ] ||
    { echo "CHANGED: the base's bitmap was served before" >&2; exit 1; }
echo "as described"
