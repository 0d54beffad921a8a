//! Entry points for fuzzing: what is found on the disk of the source's side. No part of the
//! interface.
//!
//! It is as trusted as that disk, so it must never panic, and never allocate or work beyond what it
//! allows.

use std::fs::File;

use driftline_extent::{
    ChunkId, Generation, ReplicaId, Root, TargetState, VOLUME_LEN_MAX, chunk_count,
};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    Entry, FileStorage, Files, Held, Incident, Manifest, Pass, Pushed, Storage,
    incident::TITLE as INCIDENT,
    log::Log,
    pushed::TITLE as PUSHED,
    record::{Lines, Record},
    state::{Identity, Sealed, Slots, State, TITLE as STATE},
};

const CONTEXT: [u8; 32] = [5; 32];

/// Opens the manifest whose state file and log are made of `data`: as it is, and read as entries of
/// a log whose checks are mended, sealed by a state that is believed.
#[doc(hidden)]
pub fn manifest(data: &[u8]) {
    let (state, log) = data.split_at(data.len() / 2);
    for files in [raw(state, log), mended(data)] {
        let Some(files) = files else { return };
        exercise(files, data.len() as u64);
    }
}

/// Reads the records of text that `data` is, as it is and with titles and checksums of ours.
#[doc(hidden)]
pub fn records(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let with = |title| {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.fold(Record::new(title), |record, (key, value)| record.line(key, value)).finish()
    };
    for text in [text, &with(INCIDENT)] {
        if let Some(incident) = Incident::decode(text) {
            assert!(Incident::decode(&incident.encode()).is_some(), "{incident:?}");
        }
    }
    for text in [text, &with(PUSHED)] {
        if let Some(pushed) = Pushed::decode(text) {
            assert!(Pushed::decode(&pushed.encode()).is_some(), "{pushed:?}");
        }
    }
    for text in [text, &with(STATE)] {
        let state = Lines::parse(text, STATE).and_then(|lines| State::decode(&lines));
        if let Some((sequence, state)) = state {
            let again = state.encode(sequence);
            let again = Lines::parse(&again, STATE).and_then(|lines| State::decode(&lines));
            assert_eq!(again, Some((sequence, state)));
        }
    }
}

/// What the target says that the manifest is of.
fn target(held: Held) -> TargetState {
    TargetState {
        replica: ReplicaId([1; 16]),
        chunk_key: [2; 32],
        generation: Some(held.generation),
        root: Some(held.root),
        size: held.size,
        ..TargetState::nothing()
    }
}

const fn tip(size: u64) -> Held {
    Held { generation: Generation::zfs(9), size, root: Root([3; 32]) }
}

/// A file in memory, which takes no more room than what is written to it.
fn memory(bytes: &[u8]) -> Option<FileStorage> {
    let storage = FileStorage::of(File::from(memfd_create("fuzzed", MemfdFlags::CLOEXEC).ok()?));
    storage.write_at(0, bytes).ok()?;
    Some(storage)
}

fn raw(state: &[u8], log: &[u8]) -> Option<Files<FileStorage>> {
    Some(Files { state: memory(state)?, log: memory(log)?, ids: memory(&[])?, spans: memory(&[])? })
}

/// A sealed manifest whose log says what `data` can be read as: the size at the tip, and then how
/// many chunks are passed over, and how many follow with ids or as zeros.
fn mended(data: &[u8]) -> Option<Files<FileStorage>> {
    let (size, rest) = data.split_first_chunk().unwrap_or((&[0; 8], &[]));
    let size = u64::from_le_bytes(*size) >> 4;
    let mut log = Log::new(memory(&[])?);
    log.start(CONTEXT).ok()?;
    let (steps, last) = rest.as_chunks::<10>();
    let (mut next, limit) = (0, chunk_count(VOLUME_LEN_MAX));
    for [kind, gap, count @ ..] in steps {
        let count = u64::from_le_bytes(*count) >> (kind / 2 % 60);
        let first = next + u64::from(*gap);
        let ids = vec![ChunkId([*gap | 1; 32]); (count % 64) as usize];
        next = first.saturating_add(if kind % 2 == 0 { ids.len() as u64 } else { count });
        if next > limit {
            break;
        }
        if kind % 2 == 0 {
            log.note(first, &ids).ok()?;
        } else if first < next {
            log.note_zeros(first..next).ok()?;
        }
    }
    let end = log.settle().ok()?;
    let chunks = chunk_count(size);
    let state = State {
        sealed: Some(Sealed {
            tip: tip(size),
            context: CONTEXT,
            end,
            pass: Pass::covering(chunks, 7),
            record: Some(last.iter().copied().take(8).collect()),
            applying: last.len().is_multiple_of(2),
        }),
        ..State::of_nothing(Identity::of(&target(tip(size))))
    };
    let (mut slots, _) = Slots::open(memory(&[])?).ok()?;
    slots.commit(&state).ok()?;
    let (state, log) = (slots.into_storage(), log.into_storage());
    Some(Files { state, log, ids: memory(&[])?, spans: memory(&[])? })
}

/// What a run does with a manifest.
fn exercise(files: Files<FileStorage>, number: u64) {
    let size = number << 12;
    let state = target(tip(size));
    let Ok((mut manifest, _)) = Manifest::open(files, &state) else { return };
    let _ = (manifest.base(&state), manifest.compared_ms(), manifest.suspect());
    let pass = manifest.pass().cloned().unwrap_or_else(|| Pass::covering(chunk_count(size), 0));
    let _ = pass.ranges(pass.share(1 << 40, 1 << 30)).count();
    let generation = Generation::zfs(10);
    let mut told = |entry: &Entry| assert!(entry.chunks().start < 5);
    let Ok(true) = manifest.begin(Some(&generation), 5, &mut told) else { return };
    let _ = manifest.note(5, &[ChunkId([4; 32]); 3]);
    let Ok(root) = manifest.tip_root(size) else { return };
    let _ = manifest.seal(Held { generation, size, root }, pass);
    let _ = manifest.commit(Some(1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_files_are_survived(data in prop::collection::vec(any::<u8>(), 0..400)) {
            manifest(&data);
            records(&data);
        }

        #[test]
        fn any_lines_are_survived(
            lines in prop::collection::vec(("[a-z-]{2,8}", "[ -~]{0,30}"), 0..12),
        ) {
            let text: String = lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            records(text.as_bytes());
        }
    }

    /// The fuzzer gets past the checks.
    #[test]
    fn a_mended_log_is_believed() {
        let mut data = (100_u64 << 20).to_le_bytes().to_vec();
        data.extend([0, 3, 4, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([1, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        let files = mended(&data).unwrap();
        let log = Log::new(files.log);
        let mut frames = log.frames(CONTEXT);
        let first = frames.next().unwrap();
        assert_eq!(first, Some(Entry::Ids(3, vec![ChunkId([3; 32]); 4])));
        assert_eq!(frames.next().unwrap(), Some(Entry::Zeros(7..14)));
        // Only the root that is made up is not what it leads to.
        let files = mended(&data).unwrap();
        let (_, damage) = Manifest::open(files, &target(tip((100 << 20) >> 4))).unwrap();
        assert_eq!(damage, Some("the log does not lead to the root it was sealed with"));
    }
}
