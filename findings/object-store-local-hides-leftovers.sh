#!/usr/bin/env bash
# object_store 0.14.2 (crates.io), LocalFileSystem.
# Seen: an upload that its process did not finish stays in the folder as NAME#1, with all of its
#   bytes. list, list_with_delimiter and head do not see it, and nothing ever removes it. A later
#   upload of the same object uses NAME#2.
# Expected: what takes space can be listed, or is removed when the store is opened.
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
futures = "0.3"
object_store = { version = "=0.14.2", default-features = false, features = ["fs"] }
tokio = { version = "1", features = ["macros", "rt"] }
TOML
cat > "$work/src/main.rs" << 'RUST'
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let folder = std::env::args().nth(1).unwrap();
    let name = Path::from("object");
    let store = LocalFileSystem::new_with_prefix(&folder).unwrap();
    // As when a process ends before it completes or aborts its upload.
    let mut upload = store.put_multipart(&name).await.unwrap();
    upload.put_part(PutPayload::from(vec![7; 1 << 20])).await.unwrap();
    std::mem::forget(upload);

    let store = LocalFileSystem::new_with_prefix(&folder).unwrap();
    store.put(&name, PutPayload::from(vec![7; 8])).await.unwrap();
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let levels = store.list_with_delimiter(None).await.unwrap();
    println!("{} {}", listed.len(), levels.objects.len());
}
RUST
listed=$(cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/build" -- "$work/store")
echo "objects listed: $listed"
ls -l "$work/store"
[ "$listed" = "1 1" ] && [ "$(stat -c %s "$work/store/object#1")" = 1048576 ] &&
    [ "$(stat -c %s "$work/store/object")" = 8 ] ||
    { echo "CHANGED: the leftover was kept and hidden before" >&2; exit 1; }
echo "as described"
