//! The ids of many chunks, on all cores.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use driftline_extent::{CHUNK_LEN, ChunkId};

use crate::ChunkKey;

/// Chunks that a thread reads and names before it looks for more. What was read is named while
/// it is still in the core's own cache.
const PIECE_CHUNKS: usize = 8;

/// A disk that answers one question at a time would be idle between them.
const THREADS_MIN: usize = 4;

/// More would not make a disk faster.
const THREADS_MAX: usize = 16;

/// Runs of chunks that are to be named: the first, and a place for the id of each.
pub type Runs<'a> = Vec<(u64, &'a mut [ChunkId])>;

/// Names chunks of a volume of `size` bytes, on as many threads as pay. `read` fills a buffer
/// from an offset, which both lie within the volume; what lies beyond it counts as zeros.
pub fn name_chunks<E: Send>(
    key: &ChunkKey,
    size: u64,
    runs: Runs<'_>,
    read: impl Fn(u64, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let mut pieces = Vec::new();
    for (first, ids) in runs {
        let starts = (first..).step_by(PIECE_CHUNKS);
        pieces.extend(starts.zip(ids.chunks_mut(PIECE_CHUNKS)));
    }
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.clamp(THREADS_MIN, THREADS_MAX).min(pieces.len() / 2);
    let pieces = Mutex::new(pieces.into_iter());
    let work = || {
        let mut buffer = vec![0; PIECE_CHUNKS * CHUNK_LEN as usize];
        loop {
            let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((first, ids)) = piece else { return Ok(()) };
            name_piece(key, size, first, ids, &mut buffer, &read)?;
        }
    };
    if threads < 2 {
        return work();
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ends = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect()
    })
}

fn name_piece<E>(
    key: &ChunkKey,
    size: u64,
    first: u64,
    ids: &mut [ChunkId],
    buffer: &mut [u8],
    read: &impl Fn(u64, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let buffer = &mut buffer[..ids.len() * CHUNK_LEN as usize];
    let offset = first * CHUNK_LEN;
    let within = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
    let (there, beyond) = buffer.split_at_mut(within);
    beyond.fill(0);
    if !there.is_empty() {
        read(offset, there)?;
    }
    for (id, chunk) in ids.iter_mut().zip(buffer.chunks(CHUNK_LEN as usize)) {
        *id = key.id(chunk);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = CHUNK_LEN as usize;

    #[test]
    fn many_threads_name_what_one_does() {
        let key = ChunkKey::new(&[5; 32]);
        let size = 61 * CHUNK + 700;
        let volume: Vec<u8> = (0..size).map(|i| (i / 1021) as u8).collect();
        let read = |offset: u64, buf: &mut [u8]| {
            buf.copy_from_slice(&volume[offset as usize..][..buf.len()]);
            Ok::<_, ()>(())
        };
        let mut padded = volume.clone();
        padded.resize(64 * CHUNK, 0);
        let expected: Vec<ChunkId> = padded.chunks(CHUNK).map(|chunk| key.id(chunk)).collect();
        for runs in [&[(0, 64)][..], &[(0, 1), (3, 30), (61, 64)], &[(62, 63)], &[]] {
            let mut ids = vec![ChunkId([9; 32]); 64];
            let (mut left, mut at) = (ids.as_mut_slice(), 0);
            let mut places = Vec::new();
            for (start, end) in runs {
                let (now, later) = std::mem::take(&mut left).split_at_mut(end - at);
                places.push((*start as u64, &mut now[start - at..]));
                (left, at) = (later, *end);
            }
            name_chunks(&key, size as u64, places, read).unwrap();
            for (index, id) in ids.iter().enumerate() {
                let named = runs.iter().any(|(start, end)| (*start..*end).contains(&index));
                assert_eq!(*id, if named { expected[index] } else { ChunkId([9; 32]) });
            }
        }
    }

    #[test]
    fn a_failure_is_told() {
        let key = ChunkKey::new(&[5; 32]);
        let mut ids = vec![ChunkId::ZERO; 400];
        let read = |offset: u64, _: &mut [u8]| {
            if offset == 296 * CHUNK_LEN { Err("there is a hole in the disk") } else { Ok(()) }
        };
        let named = name_chunks(&key, 400 * CHUNK_LEN, vec![(0, &mut ids)], read);
        assert_eq!(named, Err("there is a hole in the disk"));
    }
}
