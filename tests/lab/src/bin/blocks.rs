//! Runs inside the machines: writes blocks whose content is known, and finds those that differ.
//!
//! A block is 4 KiB. What is written depends on the seed and the block's number alone, so that
//! two volumes with the same history are equal and any other two are not.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _},
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use rustix::fs::OFlags;

const BLOCK_LEN: usize = 4096;

/// The largest write of `churn`, in blocks.
const CHURN_BLOCKS_MAX: u64 = 16;

/// Write blocks of known content, and compare volumes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write blocks, past the cache, and return when they are durable.
    Write {
        device: PathBuf,
        seed: u64,
        /// Block numbers: 7, or 10..20 without the last.
        #[arg(required = true, value_parser = range)]
        blocks: Vec<Range<u64>>,
    },
    /// Write single blocks at random places, past the cache, and return when they are durable.
    Scatter { device: PathBuf, seed: u64, count: u64 },
    /// Write at random places, several at the same time, until killed.
    Churn {
        device: PathBuf,
        seed: u64,
        #[arg(long, default_value_t = 2)]
        writers: u64,
        /// How long each rests after a write: an emulated machine has no processor to spare.
        #[arg(long, default_value_t = 0)]
        pause_ms: u64,
    },
    /// Print how many blocks differ, and then each run of them as FIRST..END.
    Diff { one: PathBuf, other: PathBuf },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Action::Write { device, seed, blocks } => {
            let mut buffer = Aligned::new(BLOCK_LEN);
            let file = open_direct(&device)?;
            for block in blocks.into_iter().flatten() {
                fill(buffer.bytes(), seed, block);
                file.write_all_at(buffer.bytes(), block * BLOCK_LEN as u64)?;
            }
            Ok(file.sync_data()?)
        }
        Action::Scatter { device, seed, count } => scatter(&device, seed, count),
        Action::Churn { device, seed, writers, pause_ms } => {
            churn(&device, seed, writers, Duration::from_millis(pause_ms))
        }
        Action::Diff { one, other } => diff(&one, &other),
    }
}

fn range(text: &str) -> Result<Range<u64>> {
    let (start, end) = match text.split_once("..") {
        Some((start, end)) => (start.parse()?, end.parse()?),
        None => (text.parse()?, text.parse::<u64>()? + 1),
    };
    ensure!(start < end, "an empty range");
    Ok(start..end)
}

fn scatter(device: &Path, seed: u64, count: u64) -> Result<()> {
    let blocks = size(&File::open(device)?)? / BLOCK_LEN as u64;
    let file = open_direct(device)?;
    let mut buffer = Aligned::new(BLOCK_LEN);
    let mut random = Random(seed);
    for _ in 0..count {
        let block = random.below(blocks);
        fill(buffer.bytes(), random.next(), block);
        file.write_all_at(buffer.bytes(), block * BLOCK_LEN as u64)?;
    }
    Ok(file.sync_data()?)
}

/// Writes between 512 bytes and 64 KiB, as a database or a file system would.
fn churn(device: &Path, seed: u64, writers: u64, pause: Duration) -> Result<()> {
    let blocks = size(&File::open(device)?)? / BLOCK_LEN as u64;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                scope.spawn(move || -> Result<()> {
                    let file = open_direct(device)?;
                    let mut random = Random(seed ^ (writer << 32));
                    let mut buffer = Aligned::new(BLOCK_LEN * CHURN_BLOCKS_MAX as usize);
                    loop {
                        let count = 1 + random.below(CHURN_BLOCKS_MAX);
                        let first = random.below(blocks - count);
                        let sector = random.next().is_multiple_of(4);
                        let len = if sector { 512 } else { count as usize * BLOCK_LEN };
                        fill(buffer.bytes(), random.next(), first);
                        file.write_all_at(&buffer.bytes()[..len], first * BLOCK_LEN as u64)?;
                        if random.next().is_multiple_of(32) {
                            file.sync_data()?;
                        }
                        thread::sleep(pause);
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a writer does not panic"))
    })
}

fn diff(one: &Path, other: &Path) -> Result<()> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    ensure!(size(&one)? == size(&other)?, "their sizes differ");
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut first = 0;
    loop {
        let len = read_full(&mut one, &mut buffers[0])?;
        ensure!(read_full(&mut other, &mut buffers[1])? == len, "one ended early");
        if len == 0 {
            break;
        }
        let pairs = buffers[0][..len].chunks(BLOCK_LEN).zip(buffers[1][..len].chunks(BLOCK_LEN));
        for (block, _) in (first..).zip(pairs).filter(|(_, (one, other))| one != other) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        first += len.div_ceil(BLOCK_LEN) as u64;
    }
    println!("{}", runs.iter().map(|run| run.end - run.start).sum::<u64>());
    for run in runs {
        println!("{}..{}", run.start, run.end);
    }
    Ok(())
}

/// A device's size is where its end is; its metadata say 0.
fn size(file: &File) -> Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = file;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(size)
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(len)
}

fn open_direct(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path)
        .with_context(|| format!("open {} for direct writes", path.display()))
}

/// Memory at an address that direct I/O accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK_LEN];
        let start = memory.as_ptr().align_offset(BLOCK_LEN);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Content that depends on seed and block, and does not compress.
fn fill(buffer: &mut [u8], seed: u64, block: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block);
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
