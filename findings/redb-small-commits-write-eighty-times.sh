#!/usr/bin/env bash
# redb 4.5.0 (crates.io).
# Seen: a table of 500,000 random 32-byte keys with 24-byte values. Durable commits of 1,000 more
#   random rows write about 80 bytes to the file for each byte that they add; of single rows about
#   500; of 20,000 rows still 38. Each row rewrites its leaf and the path above it.
# Expected: some amplification, as of every tree that is copied on write; not that batches of
#   1,000 hardly help. Few large commits of sorted keys do.
# Needs: cargo. The bytes are counted between redb and the file, so no other load disturbs them.
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
redb = "=4.5.0"
TOML
cat > "$work/src/main.rs" << 'RUST'
use redb::{Database, StorageBackend, TableDefinition, backends::FileBackend};
use std::{
    io::Result,
    sync::{Arc, atomic::{AtomicU64, Ordering::Relaxed}},
};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
const ROW: u64 = 32 + 24;

#[derive(Debug)]
struct Counting(FileBackend, Arc<AtomicU64>);

impl StorageBackend for Counting {
    fn len(&self) -> Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.1.fetch_add(data.len() as u64, Relaxed);
        self.0.write(offset, data)
    }
}

/// The `n`-th of a fixed sequence of keys without order.
fn key(n: u64) -> [u8; 32] {
    let (mut key, mut state) = ([0; 32], n);
    for word in key.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    key
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let file =
        std::fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let backend = Counting(FileBackend::new(file).unwrap(), written.clone());
    let database = Database::builder().create_with_backend(backend).unwrap();
    let mut next = 0;
    let mut commit = |rows: u64| {
        let transaction = database.begin_write().unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            for n in next..next + rows {
                table.insert(&key(n)[..], &[1; 24][..]).unwrap();
            }
        }
        transaction.commit().unwrap();
        next += rows;
    };
    commit(500_000);
    for (rows, commits) in [(1, 100), (1000, 20), (20_000, 5)] {
        let before = written.load(Relaxed);
        (0..commits).for_each(|_| commit(rows));
        println!("{rows} {}", (written.load(Relaxed) - before) / (rows * commits * ROW));
    }
}
RUST
cargo run --release --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/build" -- \
    "$work/index" | tee "$work/seen"
awk '{ times[$1] = $2 }
    END { exit !(times[1] > 250 && times[1000] > 50 && times[20000] > 20) }' "$work/seen" ||
    { echo "CHANGED: commits wrote more for each row before" >&2; exit 1; }
echo "as described (rows a commit, bytes written for each byte added)"
