//! The state file of a manifest: of which replica it is, which generation it lists, and which one
//! its log leads to.
//!
//! Two slots of 8192 bytes, written in turn (slot = sequence number mod 2), each synced before
//! anything relies on it. A slot is a record of text, see [`crate::record`], padded with zeros.
//! Of two whole ones the one with the higher sequence number counts.

use std::io;

use driftline_extent::{
    Generation, RECORD_LEN_MAX, Reason, ReplicaId, Root, TargetState, VOLUME_LEN_MAX, chunk_count,
};

use crate::{
    ManifestError, Pass, Storage,
    log::Position,
    record::{Lines, Record, hex, unhex, unhex_all},
};

pub(crate) const TITLE: &str = "driftline manifest 1";
const SLOT_LEN: usize = 8192;

/// A generation whose content is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which.
    pub generation: Generation,
    /// Size of the volume in bytes.
    pub size: u64,
    /// The root over it.
    pub root: Root,
}

impl Held {
    /// What a target says that it holds.
    pub const fn of(state: &TargetState) -> Option<Self> {
        match (state.generation, state.root) {
            (Some(generation), Some(root)) => Some(Self { generation, size: state.size, root }),
            _ => None,
        }
    }

    /// How many chunks it has.
    pub const fn chunks(&self) -> u64 {
        chunk_count(self.size)
    }
}

/// Of which replica a manifest is, without the secret under which it names chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) replica: ReplicaId,
    pub(crate) key_check: [u8; 32],
}

impl Identity {
    pub(crate) fn of(state: &TargetState) -> Self {
        let key_check = blake3::derive_key("driftline manifest v1 check", &state.chunk_key);
        Self { replica: state.replica, key_check }
    }
}

/// What the log leads to, once it is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sealed {
    pub(crate) tip: Held,
    pub(crate) context: [u8; 32],
    pub(crate) end: Position,
    pub(crate) pass: Pass,
    /// What the source wants to know again of that instant.
    pub(crate) record: Option<Vec<u8>>,
    /// Whether the target has committed it: the lists are somewhere between base and tip.
    pub(crate) applying: bool,
}

/// What the state file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) held: Option<(Held, Pass)>,
    /// What the source wanted to know again of the instant that is held.
    pub(crate) record: Option<Vec<u8>>,
    pub(crate) sealed: Option<Sealed>,
    /// Why the next increment is not to rely on a map.
    pub(crate) suspect: Option<Reason>,
    /// When a run began that compared all of the source with the target, in milliseconds since
    /// 1970, and came to its end.
    pub(crate) compared_ms: Option<u64>,
}

impl State {
    pub(crate) const fn of_nothing(identity: Identity) -> Self {
        Self { identity, held: None, record: None, sealed: None, suspect: None, compared_ms: None }
    }

    pub(crate) fn encode(&self, sequence: u64) -> String {
        let mut record = Record::new(TITLE)
            .line("sequence", sequence)
            .line("replica", self.identity.replica)
            .line("key", Root(self.identity.key_check))
            .option("suspect", self.suspect)
            .option("compared", self.compared_ms);
        if let Some((held, pass)) = &self.held {
            record = encode_held(record, "held", held, pass)
                .option("held-record", self.record.as_deref().map(hex));
        }
        if let Some(Sealed { tip, context, end, pass, record: of_tip, applying }) = &self.sealed {
            record = encode_held(record, "tip", tip, pass)
                .option("tip-record", of_tip.as_deref().map(hex))
                .line("context", Root(*context))
                .line("log", end.at)
                .line("check", Root(end.check))
                .line("applying", u8::from(*applying));
        }
        record.finish()
    }

    pub(crate) fn decode(lines: &Lines<'_>) -> Option<(u64, Self)> {
        let replica = ReplicaId(lines.bytes("replica")?);
        let identity = Identity { replica, key_check: lines.bytes("key")? };
        let reason = |word: &str| Reason::all().find(|reason| reason.as_str() == word);
        let suspect = match lines.get("suspect") {
            Some(word) => Some(reason(word)?),
            None => None,
        };
        let compared_ms = match lines.get("compared") {
            Some(_) => Some(lines.number("compared")?),
            None => None,
        };
        let held = match lines.get("held") {
            Some(_) => Some(decode_held(lines, "held")?),
            None => None,
        };
        let sealed = match lines.get("tip") {
            Some(_) => {
                let (tip, pass) = decode_held(lines, "tip")?;
                let end = Position { at: lines.number("log")?, check: lines.bytes("check")? };
                let applying = lines.number("applying")? == 1;
                let (context, record) = (lines.bytes("context")?, decode_record(lines, "tip")?);
                Some(Sealed { tip, context, end, pass, record, applying })
            }
            None => None,
        };
        let record = decode_record(lines, "held")?;
        let state = Self { identity, held, record, sealed, suspect, compared_ms };
        Some((lines.number("sequence")?, state))
    }
}

/// A line for what is held, and one for each mark of its pass.
fn encode_held(record: Record, key: &str, held: &Held, pass: &Pass) -> Record {
    let Held { generation, size, root } = held;
    let record = record.line(key, format_args!("{size} {root} {generation}"));
    let record = record.line(&format!("{key}-audited"), pass.last_ms());
    let marks = pass.marks().iter();
    marks.fold(record, |record, (end, ms)| {
        record.line(&format!("{key}-mark"), format_args!("{end} {ms}"))
    })
}

fn decode_held(lines: &Lines<'_>, key: &str) -> Option<(Held, Pass)> {
    let mut fields = lines.get(key)?.splitn(3, ' ');
    let size = fields.next()?.parse().ok().filter(|size| *size <= VOLUME_LEN_MAX)?;
    let root = Root(unhex(fields.next()?)?);
    let generation = fields.next()?.parse().ok()?;
    let held = Held { generation, size, root };
    let mark_key = format!("{key}-mark");
    let marks = lines.all(&mark_key).map(|mark| {
        let (end, ms) = mark.split_once(' ')?;
        Some((end.parse().ok()?, ms.parse().ok()?))
    });
    let last_ms = lines.number(&format!("{key}-audited"))?;
    let pass = Pass::from_parts(held.chunks(), last_ms, marks.collect::<Option<_>>()?)?;
    Some((held, pass))
}

/// The outer option: whether that makes sense. States of earlier versions have no records.
fn decode_record(lines: &Lines<'_>, key: &str) -> Option<Option<Vec<u8>>> {
    match lines.get(&format!("{key}-record")) {
        None => Some(None),
        Some(digits) if digits.len() <= 2 * RECORD_LEN_MAX => unhex_all(digits).map(Some),
        Some(_) => None,
    }
}

/// The two slots.
#[derive(Debug)]
pub(crate) struct Slots<S> {
    storage: S,
    sequence: u64,
}

/// What was found in them.
pub(crate) enum Found {
    Nothing,
    Damaged,
    State(Box<State>),
}

impl<S: Storage> Slots<S> {
    pub(crate) fn open(storage: S) -> io::Result<(Self, Found)> {
        let (mut damaged, mut newest) = (false, None);
        for slot in 0..2 {
            let mut bytes = [0; SLOT_LEN];
            storage.read_below(slot * SLOT_LEN as u64, &mut bytes)?;
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if end == 0 {
                continue;
            }
            let lines = str::from_utf8(&bytes[..end]).ok();
            let lines = lines.and_then(|text| Lines::parse(text, TITLE));
            match lines.and_then(|lines| State::decode(&lines)) {
                Some((sequence, state)) => {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < sequence) {
                        newest = Some((sequence, state));
                    }
                }
                None => damaged = true,
            }
        }
        let (sequence, found) = match newest {
            Some((sequence, state)) => (sequence, Found::State(Box::new(state))),
            None if damaged => (0, Found::Damaged),
            None => (0, Found::Nothing),
        };
        Ok((Self { storage, sequence }, found))
    }

    pub(crate) fn into_storage(self) -> S {
        self.storage
    }

    /// Makes `state` what the next open finds: entirely or not at all.
    pub(crate) fn commit(&mut self, state: &State) -> Result<(), ManifestError> {
        let sequence = self.sequence + 1;
        let (at, mut bytes) = (sequence % 2 * SLOT_LEN as u64, state.encode(sequence).into_bytes());
        if bytes.len() > SLOT_LEN {
            let what = "the state of a manifest does not fit its slot";
            return Err(io::Error::other(what).into());
        }
        bytes.resize(SLOT_LEN, 0);
        self.storage.write_at(at, &bytes)?;
        self.storage.settle()?;
        let mut found = vec![0; SLOT_LEN];
        self.storage.read_below(at, &mut found)?;
        if found != bytes {
            return Err(ManifestError::Damaged("its state does not read back as it was written"));
        }
        self.sequence = sequence;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let target = TargetState { replica: ReplicaId([7; 16]), ..TargetState::nothing() };
        let held = Held { generation: Generation::zfs(9), size: 1 << 30, root: Root([3; 32]) };
        let pass = Pass::covering(held.chunks(), 5).advanced(100, 77);
        let sealed = Sealed {
            tip: Held { generation: Generation::content(Root([4; 32])), ..held },
            context: [5; 32],
            end: Position { at: 6, check: [7; 32] },
            pass: pass.advanced(3, 99),
            record: Some(vec![0, 0xff, 0x10]),
            applying: true,
        };
        let state = State {
            identity: Identity::of(&target),
            held: Some((held, pass)),
            record: Some(vec![1; RECORD_LEN_MAX]),
            sealed: Some(sealed),
            suspect: Some(Reason::AuditMismatch),
            compared_ms: Some(1 << 40),
        };
        let nothing = State::of_nothing(Identity::of(&target));
        for state in [state, nothing] {
            let text = state.encode(8);
            assert_eq!(State::decode(&Lines::parse(&text, TITLE).unwrap()), Some((8, state)));
        }
    }

    /// The fullest state there can be still fits its slot.
    #[test]
    fn the_largest_state_fits_its_slot() {
        let size = VOLUME_LEN_MAX;
        let held =
            Held { generation: Generation::content(Root([9; 32])), size, root: Root([3; 32]) };
        let mut pass = Pass::covering(held.chunks(), u64::MAX / 2);
        for round in 0..200 {
            pass = pass.advanced(held.chunks() / 70, u64::MAX / 2 + round);
        }
        assert!(pass.marks().len() > 60, "{} marks", pass.marks().len());
        let record = Some(vec![0xff; RECORD_LEN_MAX]);
        let end = Position { at: u64::MAX, check: [7; 32] };
        let (tip, context) = (held, [5; 32]);
        let sealed = Sealed {
            tip,
            context,
            end,
            pass: pass.clone(),
            record: record.clone(),
            applying: true,
        };
        let identity = Identity::of(&TargetState::nothing());
        let (suspect, compared_ms) = (Some(Reason::AlAlreadyApplied), Some(u64::MAX));
        let (held, sealed) = (Some((held, pass)), Some(sealed));
        let state = State { identity, held, record, sealed, suspect, compared_ms };
        let len = state.encode(u64::MAX).len();
        assert!(len <= SLOT_LEN, "{len} bytes");
    }
}
