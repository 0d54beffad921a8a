#!/usr/bin/env bash
# qemu-utils 7.2.22 (Debian 12); 10.0.2 does the same.
# Seen: a client negotiates structured replies and asks NBD_OPT_SET_META_CONTEXT for a dirty bitmap
#   that the image does not have. The one answer is NBD_REP_ACK (type 1). That no context was
#   selected shows only in the NBD_REP_META_CONTEXT (type 4) that is not there.
# Expected: the protocol allows it, a reader of it hardly expects it: an error as for an unknown
#   export. A client that takes the acknowledgement for the context has a map of nothing.
# Needs: python3, apt-get with Debian 12's main archive.
set -euo pipefail
work=$(mktemp -d)
trap '[ ! -s "$work/pid" ] || kill "$(cat "$work/pid")"; rm -rf "$work"' EXIT
cd "$work"
apt-get -o APT::Sandbox::User=root -qq download 'qemu-utils=1:7.2+dfsg-7+deb12u18+b3'
dpkg -x ./*.deb root
export PATH=$work/root/usr/bin:$PATH
qemu-img --version | head -n 1

qemu-img create -q -f qcow2 image 1M
qemu-img bitmap --add image there
qemu-nbd --read-only -f qcow2 -B there -e 0 -k "$work/socket" --fork --pid-file "$work/pid" \
    --persistent image
cat > ask.py << 'PYTHON'
"""Prints the types of the replies to one request for a metadata context."""
import socket
import struct
import sys

server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
answers = server.makefile("rb")
answers.read(18)
server.sendall(struct.pack(">I", 3))


def option(number, data):
    header = struct.pack(">QII", 0x49484156454F5054, number, len(data))
    server.sendall(header + data)
    types = []
    while not types or not (types[-1] == 1 or types[-1] >> 31):
        _, _, reply, length = struct.unpack(">QIII", answers.read(20))
        answers.read(length)
        types.append(reply)
    return types


option(8, b"")
context = b"qemu:dirty-bitmap:" + sys.argv[2].encode()
print(*option(10, struct.pack(">III", 0, 1, len(context)) + context))
PYTHON
there=$(python3 ask.py "$work/socket" there)
missing=$(python3 ask.py "$work/socket" missing)
echo "replies for a bitmap that exists: $there; for one that does not: $missing"
[ "$there" = "4 1" ] && [ "$missing" = 1 ] ||
    { echo "CHANGED: an unknown bitmap was acknowledged before" >&2; exit 1; }
echo "as described"
