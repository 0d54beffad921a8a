//! A send stream for whatever target there is: as the changes of a volume, or as it is.

use std::{fmt, io::Read};

use driftline_extent::{Accepts, Change, ChangeMap, Finish, Generation, Plan, Source, TargetState};

use crate::{OpaqueStream, StreamError, ZvolStream};

/// What `zfs send` writes, read as what the target takes: as the changes of a volume
/// ([`ZvolStream`]), or in parts, as it is ([`OpaqueStream`]), by a target that is ZFS itself.
///
/// Until the target has told, which [`learn`](Source::learn) hears, it is the changes of a
/// volume. Once something was read it stays what it is, as there is no way back in a stream.
pub struct SendStream<R> {
    allow_full: bool,
    /// Always there, but for the moment in which it is exchanged.
    view: Option<View<R>>,
}

enum View<R> {
    Volume(ZvolStream<R>),
    Opaque(OpaqueStream<R>),
}

impl<R: Read> View<R> {
    fn new(input: R, accepts: &Accepts, allow_full: bool) -> Self {
        match accepts {
            Accepts::Volume => Self::Volume(ZvolStream::new(input).allow_full(allow_full)),
            Accepts::Stream { .. } => Self::Opaque(OpaqueStream::new(input)),
        }
    }

    fn source(&self) -> &dyn Source<Error = StreamError> {
        match self {
            Self::Volume(stream) => stream,
            Self::Opaque(stream) => stream,
        }
    }

    fn source_mut(&mut self) -> &mut dyn Source<Error = StreamError> {
        match self {
            Self::Volume(stream) => stream,
            Self::Opaque(stream) => stream,
        }
    }

    fn into_inner(self) -> R {
        match self {
            Self::Volume(stream) => stream.into_inner(),
            Self::Opaque(stream) => stream.into_inner(),
        }
    }
}

const THERE: &str = "it is only ever exchanged for another";

impl<R: Read> SendStream<R> {
    /// The stream that `input` yields, from its first byte, for a target that has not told yet.
    pub fn new(input: R) -> Self {
        Self::for_target(input, &Accepts::Volume)
    }

    /// The stream that `input` yields, from its first byte, for a target that takes this.
    pub fn for_target(input: R, accepts: &Accepts) -> Self {
        Self { allow_full: false, view: Some(View::new(input, accepts, false)) }
    }

    /// Whether, of a volume, all of it may go over another generation: see
    /// [`ZvolStream::allow_full`]. A target that is ZFS itself never does that. To be said
    /// before anything is read.
    pub fn allow_full(mut self, allow: bool) -> Self {
        self.allow_full = allow;
        self.view_again(&Accepts::Volume);
        self
    }

    /// The change map of the next increment, as of [`ZvolStream::next_map`]. There is none for
    /// a target that takes the stream as it is.
    ///
    /// # Errors
    ///
    /// As of [`ZvolStream::next_map`].
    pub fn next_map(&mut self) -> Result<Option<ChangeMap>, StreamError> {
        match &mut self.view {
            Some(View::Volume(stream)) => stream.next_map(),
            _ => Ok(None),
        }
    }

    /// The input, read as far as it was.
    pub fn into_inner(self) -> R {
        self.view.expect(THERE).into_inner()
    }

    /// Reads it as what the target takes, if nothing of it was read yet.
    fn view_again(&mut self, accepts: &Accepts) {
        if self.bytes_read() == 0 {
            let input = self.view.take().map(View::into_inner);
            self.view = input.map(|input| View::new(input, accepts, self.allow_full));
        }
    }

    fn source(&mut self) -> &mut dyn Source<Error = StreamError> {
        self.view.as_mut().expect(THERE).source_mut()
    }
}

impl<R: Read> Source for SendStream<R> {
    type Error = StreamError;

    fn learn(&mut self, target: &TargetState) {
        self.view_again(&target.accepts);
        self.source().learn(target);
    }

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, StreamError> {
        self.source().plan(base)
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, StreamError> {
        self.source().next_change(from)
    }

    fn finish(&mut self) -> Result<Finish, StreamError> {
        self.source().finish()
    }

    fn bytes_read(&self) -> u64 {
        self.view.as_ref().map_or(0, |view| view.source().bytes_read())
    }
}

impl<R> fmt::Debug for SendStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.view {
            Some(View::Volume(stream)) => stream.fmt(f),
            Some(View::Opaque(stream)) => stream.fmt(f),
            None => f.write_str("SendStream"),
        }
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::PlanKind;

    use super::*;
    use crate::{
        ByteOrder,
        testing::{Opening, StreamWriter},
    };

    fn of_zfs() -> TargetState {
        let accepts = Accepts::Stream { token: None, points: Vec::new() };
        TargetState { accepts, ..TargetState::nothing() }
    }

    /// A volume of one block, all of it and an increment, one after the other.
    fn recorded() -> Vec<u8> {
        let block = [7; 512];
        let mut writer = StreamWriter::new(ByteOrder::Little);
        for (from, to) in [(0, 1), (1, 2)] {
            writer = writer
                .begin(&Opening::volume(from, to))
                .volume(512, 512)
                .write(1, 0, &block)
                .size(512)
                .end();
        }
        writer.into_bytes()
    }

    #[test]
    fn it_is_read_as_what_the_target_takes() {
        let bytes = recorded();
        let mut stream = SendStream::new(&bytes[..]);
        assert_eq!(stream.plan(None).unwrap().kind, PlanKind::Full);
        let mut stream = SendStream::new(&bytes[..]);
        stream.learn(&of_zfs());
        assert_eq!(stream.plan(None).unwrap().kind, PlanKind::Stream);
        let mut parts = Vec::new();
        while let Some(Change::Part(part)) = stream.next_change(0).unwrap() {
            parts.extend(part);
        }
        assert!(bytes.starts_with(&parts) && !parts.is_empty());
        // What was begun as a stream goes on as one, whatever is told now.
        stream.learn(&TargetState::nothing());
        let next = stream.plan(Some(&Generation::zfs(1))).unwrap();
        assert_eq!((next.kind, next.tip), (PlanKind::Stream, Some(Generation::zfs(2))));
        assert!(stream.next_map().unwrap().is_none());
    }

    #[test]
    fn consent_to_a_full_copy_is_not_forgotten() {
        let (bytes, other) = (recorded(), Generation::zfs(9));
        for consent in [false, true] {
            let mut stream = SendStream::new(&bytes[..]).allow_full(consent);
            stream.learn(&TargetState::nothing());
            assert_eq!(stream.plan(Some(&other)).is_ok(), consent);
            // ZFS itself goes over nothing.
            let mut stream = SendStream::new(&bytes[..]).allow_full(consent);
            stream.learn(&of_zfs());
            assert!(stream.plan(Some(&other)).is_err());
        }
    }

    #[test]
    fn a_map_leaves_nothing_out() {
        let bytes = recorded();
        let mut stream = SendStream::new(&bytes[..]);
        let mut tips = Vec::new();
        while let Some(map) = stream.next_map().unwrap() {
            tips.extend(map.tip);
        }
        assert_eq!(tips, [1, 2].map(Generation::zfs));
    }
}
