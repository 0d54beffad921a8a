#!/usr/bin/env bash
# qemu-utils 7.2.22 (Debian 12); 10.0.2 does the same.
# Seen: a raw file of 1,000,001 bytes is exported as 1,000,448 bytes, the next multiple of 512. The
#   tail reads as zeros, so a copy over NBD is longer than its source and has another hash.
# Expected: the size of the file; NBD itself has no sectors.
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

head -c 1000001 /dev/urandom > source
qemu-nbd --read-only -f raw -e 0 -k "$work/socket" --fork --pid-file "$work/pid" --persistent source
uri="nbd+unix:///?socket=$work/socket"
size=$(nbdinfo --size "$uri")
nbdcopy "$uri" copy
truncate -s 1000448 source
echo "exported bytes of 1000001: $size"
[ "$size" = 1000448 ] && cmp source copy ||
    { echo "CHANGED: the size was rounded up to 512 before" >&2; exit 1; }
echo "as described"
