#!/usr/bin/env bash
# object_store 0.14.2 (crates.io), LocalFileSystem, on Linux.
# Seen: copy makes the destination a hard link of the source: one inode, one set of blocks.
#   Whatever damages or changes that file in place changes both objects. With with_fsync(true) a
#   copy syncs folders and not the content, as it assumes that the source was synced when it was
#   put; for a file that another program wrote nothing says so.
# Expected: a copy has its own bytes, as with the remote stores behind the same trait.
# Needs: cargo, gcc.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src" "$work/store"
cat > "$work/Cargo.toml" << 'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2024"
[dependencies]
object_store = { version = "=0.14.2", default-features = false, features = ["fs"] }
tokio = { version = "1", features = ["macros", "rt"] }
TOML
cat > "$work/src/main.rs" << 'RUST'
use object_store::{ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let store = LocalFileSystem::new_with_prefix(std::env::args().nth(1).unwrap()).unwrap();
    store.put(&Path::from("object"), PutPayload::from(vec![b'a'; 8])).await.unwrap();
    store.copy(&Path::from("object"), &Path::from("copy")).await.unwrap();
}
RUST
cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/build" -- "$work/store"
echo "links of the object: $(stat -c %h "$work/store/object")"
printf b | dd of="$work/store/object" conv=notrunc status=none
echo "one byte of the object was changed; the copy: $(cat "$work/store/copy")"
[ "$work/store/object" -ef "$work/store/copy" ] && [ "$(cat "$work/store/copy")" = baaaaaaa ] ||
    { echo "CHANGED: a copy was the same file before" >&2; exit 1; }
echo "as described"
