#!/usr/bin/env bash
# libnbd-bin 1.14.2 against nbdkit 1.32.5 (both Debian 12).
# Seen: the server announces a maximum block size of 65,536 bytes (NBD_INFO_BLOCK_SIZE) and refuses
#   larger requests. nbdcopy sends reads of 256 KiB all the same, and fails: "Invalid argument".
#   nbdinfo shows that libnbd knows the limit; with --request-size=65536 the copy succeeds.
# Expected: a client that was told the limit keeps to it, as the protocol asks.
# Needs: apt-get with Debian 12's main archive.
set -euo pipefail
work=$(mktemp -d)
trap '[ ! -s "$work/pid" ] || kill "$(cat "$work/pid")"; rm -rf "$work"' EXIT
cd "$work"
apt-get -o APT::Sandbox::User=root -qq download 'libnbd-bin=1.14.2-1' 'libnbd0=1.14.2-1' \
    'nbdkit=1.32.5-1'
for package in ./*.deb; do dpkg -x "$package" root; done
libraries=$work/root/usr/lib/x86_64-linux-gnu
export PATH=$work/root/usr/bin:$work/root/usr/sbin:$PATH LD_LIBRARY_PATH=$libraries
nbdcopy --version | head -n 1

head -c 1M /dev/urandom > source
nbdkit -U "$work/socket" -P "$work/pid" \
    --filter="$libraries/nbdkit/filters/nbdkit-blocksize-policy-filter.so" \
    "$libraries/nbdkit/plugins/nbdkit-file-plugin.so" source \
    blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error
uri="nbd+unix:///?socket=$work/socket"
nbdinfo "$uri" | grep block_size_maximum
failed=0
nbdcopy "$uri" copy 2> message || failed=$?
cat message
nbdcopy --request-size=65536 "$uri" smaller
[ "$failed" != 0 ] && grep -q 'Invalid argument' message && cmp source smaller ||
    { echo "CHANGED: nbdcopy ignored the maximum before" >&2; exit 1; }
echo "as described"
