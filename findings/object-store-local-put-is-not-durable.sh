#!/usr/bin/env bash
# object_store 0.14.2 (crates.io), LocalFileSystem, on Linux.
# Seen: put, conditional put, multipart upload and rename return success without one fsync, so a
#   loss of power may leave an empty or missing object that was acknowledged. With
#   with_fsync(true) each of them syncs file and folders, but a delete still syncs nothing: a
#   deleted object may come back, also after later puts were acknowledged.
# Expected: what an object store acknowledges is durable, as with the remote stores behind the
#   same trait.
# Needs: cargo, gcc, strace.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
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
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, local::LocalFileSystem, path::Path,
};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let [_, folder, verb, fsync] = &std::env::args().collect::<Vec<_>>()[..] else { panic!() };
    let store = LocalFileSystem::new_with_prefix(folder).unwrap().with_fsync(fsync == "fsync");
    let (name, content) = (Path::from("folder/object"), PutPayload::from(vec![7; 65536]));
    match verb.as_str() {
        "put" => drop(store.put(&name, content).await.unwrap()),
        "create" => {
            let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            drop(store.put_opts(&name, content, create).await.unwrap());
        }
        "multipart" => {
            let mut upload = store.put_multipart(&name).await.unwrap();
            upload.put_part(content).await.unwrap();
            drop(upload.complete().await.unwrap());
        }
        "rename" => store.rename(&Path::from("other"), &name).await.unwrap(),
        "delete" => store.delete(&Path::from("other")).await.unwrap(),
        _ => panic!(),
    }
}
RUST
cargo build --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/build"

changed=0
# Arguments: verb, fsync or not, whether at least one sync is expected.
look() {
    local folder syncs seen
    folder=$(mktemp -d "$work/store.XXXX")
    echo content > "$folder/other"
    strace -f -e trace=fsync,fdatasync,sync,syncfs,sync_file_range -o "$work/trace" \
        "$work/build/debug/probe" "$folder" "$1" "$2"
    syncs=$(grep -c 'sync' "$work/trace" || true)
    if [ "$syncs" -gt 0 ]; then seen=yes; else seen=no; fi
    echo "$1, $2: $syncs syncs"
    [ "$seen" = "$3" ] || changed=1
}
for verb in put create multipart rename delete; do
    look "$verb" default no
done
for verb in put create multipart rename; do
    look "$verb" fsync yes
done
look delete fsync no
[ "$changed" = 0 ] || { echo "CHANGED: object_store 0.14.2 did something else before" >&2; exit 1; }
echo "as described"
