//! The ids of many chunks, on all cores.

use std::{
    io, mem,
    num::NonZero,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use driftline_extent::{CHUNK_LEN, ChunkId, Volume};

use crate::ChunkKey;

/// Chunks that a thread reads and names before it looks for more. What was read is named while
/// most of it is still in the core's own cache.
const PIECE_CHUNKS: usize = 16;

/// The same while others name chunks as well: with many of them, what they read takes much memory.
const SHORT_CHUNKS: usize = 4;

/// What the place that is read to is aligned to: a cache line. An allocator may give one that
/// begins 16 bytes into a page, and to copy whole pages there takes a fifth longer, as each load
/// waits for the store before it that has the same address within a page.
const LINE_LEN: usize = 64;

/// A disk that answers one question at a time would be idle between them.
const THREADS_MIN: usize = 4;

/// More would not make a disk faster.
const THREADS_MAX: usize = 16;

/// Nor would more than these for all of a process: whoever finds all of them at work names alone.
const THREADS_ALL: usize = 32;

/// Threads that name chunks now.
static WORKING: AtomicUsize = AtomicUsize::new(0);

/// Threads that one caller has.
struct Crew {
    threads: usize,
    /// Whether somebody had some before.
    shared: bool,
}

impl Crew {
    fn of(wanted: usize) -> Self {
        let free = |working: usize| wanted.min(THREADS_ALL.saturating_sub(working)).max(1);
        let before =
            WORKING.fetch_update(Relaxed, Relaxed, |working| Some(working + free(working)));
        let before = before.unwrap_or_else(|working| working);
        Self { threads: free(before), shared: before > 0 }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        WORKING.fetch_sub(self.threads, Relaxed);
    }
}

/// Where a volume may hold data, for somebody who goes over it in order. Its storage is asked once
/// for each run of data: some file systems look at every page to find out where one ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DataRuns {
    /// The chunk from which on it was asked.
    from: u64,
    /// The first run at or after that.
    run: Range<u64>,
}

impl DataRuns {
    /// The first run of chunks at or after `index` that may hold anything but zeros. It begins at
    /// [`u64::MAX`] if all that follows is known to be a hole.
    pub fn next(&mut self, volume: &dyn Volume, index: u64) -> io::Result<Range<u64>> {
        if !(self.from..self.run.end).contains(&index) {
            let data = volume.next_data(index * CHUNK_LEN)?;
            self.run = data.map_or(u64::MAX..u64::MAX, |data| {
                data.offset() / CHUNK_LEN..data.end().div_ceil(CHUNK_LEN)
            });
            self.from = index;
        }
        Ok(self.run.start.max(index)..self.run.end)
    }
}

/// Names a range of chunks of a volume whose first `size` bytes count; what lies beyond is zeros.
/// What is a hole is not read.
pub fn name_range(
    key: &ChunkKey,
    volume: &dyn Volume,
    size: u64,
    chunks: Range<u64>,
    data: &mut DataRuns,
) -> io::Result<Vec<ChunkId>> {
    let mut ids = vec![ChunkId::ZERO; (chunks.end - chunks.start) as usize];
    let mut runs = Vec::new();
    let (mut next, mut rest) = (chunks.start, ids.as_mut_slice());
    while next < chunks.end {
        let run = data.next(volume, next)?;
        let (start, end) = (run.start.min(chunks.end), run.end.min(chunks.end));
        let from = &mut mem::take(&mut rest)[(start - next) as usize..];
        let (run, later) = from.split_at_mut((end - start) as usize);
        runs.push((start, run));
        (next, rest) = (end, later);
    }
    name_chunks(key, volume, size, runs)?;
    Ok(ids)
}

/// Names chunks that are listed, ascending, each of which is read.
pub fn name_listed(
    key: &ChunkKey,
    volume: &dyn Volume,
    size: u64,
    indices: &[u64],
) -> io::Result<Vec<ChunkId>> {
    let mut ids = vec![ChunkId::ZERO; indices.len()];
    let mut runs = Vec::new();
    let mut rest = ids.as_mut_slice();
    for run in indices.chunk_by(|one, next| one + 1 == *next) {
        let (now, later) = mem::take(&mut rest).split_at_mut(run.len());
        runs.push((run[0], now));
        rest = later;
    }
    name_chunks(key, volume, size, runs)?;
    Ok(ids)
}

/// Names runs of chunks, each given by its first and a place for the id of each, on as many
/// threads as pay.
fn name_chunks(
    key: &ChunkKey,
    volume: &dyn Volume,
    size: u64,
    runs: Vec<(u64, &mut [ChunkId])>,
) -> io::Result<()> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let full: usize = runs.iter().map(|(_, ids)| ids.len().div_ceil(PIECE_CHUNKS)).sum();
    let crew = Crew::of(cores.clamp(THREADS_MIN, THREADS_MAX).min(full / 2));
    let len = if crew.shared { SHORT_CHUNKS } else { PIECE_CHUNKS };
    let mut pieces = Vec::new();
    for (first, ids) in runs {
        pieces.extend((first..).step_by(len).zip(ids.chunks_mut(len)));
    }
    // Where chunks are scattered, pieces are short.
    let longest = pieces.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
    let pieces = Mutex::new(pieces.into_iter());
    let work = || {
        let mut room = vec![0; longest * CHUNK_LEN as usize + LINE_LEN];
        let start = room.as_ptr().align_offset(LINE_LEN).min(LINE_LEN);
        let buffer = &mut room[start..];
        loop {
            let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((first, ids)) = piece else { return Ok(()) };
            name_piece(key, volume, size, first, ids, buffer)?;
        }
    };
    if crew.threads < 2 {
        return work();
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..crew.threads).map(|_| scope.spawn(work)).collect();
        let ends = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect()
    })
}

fn name_piece(
    key: &ChunkKey,
    volume: &dyn Volume,
    size: u64,
    first: u64,
    ids: &mut [ChunkId],
    buffer: &mut [u8],
) -> io::Result<()> {
    let buffer = &mut buffer[..ids.len() * CHUNK_LEN as usize];
    let offset = first * CHUNK_LEN;
    let within = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
    let (there, beyond) = buffer.split_at_mut(within);
    beyond.fill(0);
    if !there.is_empty() {
        volume.read_at(offset, there)?;
    }
    for (id, chunk) in ids.iter_mut().zip(buffer.chunks(CHUNK_LEN as usize)) {
        *id = key.id(chunk);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use driftline_extent::Extent;
    use proptest::prelude::*;

    use super::*;

    const CHUNK: usize = CHUNK_LEN as usize;

    /// Bytes of which some runs hold data, and how often it was asked where.
    #[derive(Debug)]
    struct Runs {
        bytes: Vec<u8>,
        data: Vec<Extent>,
        asked: AtomicU64,
        broken_at: u64,
    }

    impl Runs {
        fn new(bytes: Vec<u8>, data: Vec<Extent>) -> Self {
            Self { bytes, data, asked: AtomicU64::new(0), broken_at: u64::MAX }
        }

        fn names(&self) -> Vec<ChunkId> {
            let mut padded = self.bytes.clone();
            padded.resize(self.bytes.len().next_multiple_of(CHUNK), 0);
            padded.chunks(CHUNK).map(|chunk| key().id(chunk)).collect()
        }
    }

    impl Volume for Runs {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            if (offset..offset + buf.len() as u64).contains(&self.broken_at) {
                return Err(io::Error::other("there is a hole in the disk"));
            }
            buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
            Ok(())
        }

        fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let ahead = self.data.iter().find(|data| data.end() > from);
            Ok(ahead.and_then(|data| Extent::from_bounds(data.offset().max(from), data.end())))
        }
    }

    fn key() -> ChunkKey {
        ChunkKey::new(&[5; 32])
    }

    /// A volume of noise and holes, with boundaries anywhere.
    fn volume() -> impl Strategy<Value = Runs> {
        let runs = prop::collection::vec((1..150_000_u64, 1..150_000_u64), 0..6);
        (runs, 0..100_000_u64).prop_map(|(runs, tail)| {
            let (mut data, mut end) = (Vec::new(), 0);
            for (hole, len) in runs {
                data.extend(Extent::new(end + hole, len));
                end += hole + len;
            }
            let mut bytes = vec![0; (end + tail) as usize];
            for run in &data {
                let run = &mut bytes[run.offset() as usize..run.end() as usize];
                run.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 7) as u8 | 1);
            }
            Runs::new(bytes, data)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ranges_and_lists_are_named_as_one_by_one(volume in volume(), step in 1..9_u64) {
            let names = volume.names();
            let (size, chunks) = (volume.size(), names.len() as u64);
            let mut data = DataRuns::default();
            let mut found = Vec::new();
            let mut at = 0;
            while at < chunks {
                let range = at..(at + step).min(chunks);
                at = range.end;
                found.extend(name_range(&key(), &volume, size, range, &mut data).unwrap());
            }
            prop_assert_eq!(&found, &names);
            // Each run of data is asked for once, and once what follows the last; a run that
            // begins in the chunk in which the one before ended is asked for twice at most.
            let asked = volume.asked.load(Ordering::Relaxed);
            prop_assert!(asked <= 2 * volume.data.len() as u64 + 1, "asked {} times", asked);

            let some: Vec<u64> = (0..chunks).filter(|index| index % (step + 1) != 1).collect();
            let listed = name_listed(&key(), &volume, size, &some).unwrap();
            prop_assert!(some.iter().zip(&listed).all(|(at, id)| names[*at as usize] == *id));

            // Whoever goes back is not told of what was ahead then.
            let again = name_range(&key(), &volume, size, 0..chunks, &mut data).unwrap();
            prop_assert_eq!(again, names);
        }
    }

    #[test]
    fn many_threads_name_what_one_does() {
        let size = 61 * CHUNK + 700;
        let whole = Extent::new(0, size as u64).unwrap();
        let bytes = (0..size).map(|i| (i / 1021) as u8).collect();
        let volume = Runs::new(bytes, vec![whole]);
        let names = volume.names();
        for indices in [vec![0], (0..62).collect(), vec![3, 4, 5, 40, 60, 61], vec![]] {
            let named = name_listed(&key(), &volume, size as u64, &indices).unwrap();
            let expected: Vec<_> = indices.iter().map(|index| names[*index as usize]).collect();
            assert_eq!(named, expected);
        }
        // What lies beyond the size that counts is zeros, also where the volume goes on.
        let cut = name_listed(&key(), &volume, CHUNK_LEN + 5, &[0, 1, 2]).unwrap();
        let mut last = volume.bytes[CHUNK..2 * CHUNK].to_vec();
        last[5..].fill(0);
        assert_eq!(cut, [names[0], key().id(&last), ChunkId::ZERO]);
    }

    #[test]
    fn a_failure_is_told() {
        let whole = Extent::new(0, 400 * CHUNK_LEN).unwrap();
        let mut volume = Runs::new(vec![7; 400 * CHUNK], vec![whole]);
        volume.broken_at = 296 * CHUNK_LEN;
        let named = name_range(&key(), &volume, volume.size(), 0..400, &mut DataRuns::default());
        assert_eq!(named.unwrap_err().to_string(), "there is a hole in the disk");
    }
}
