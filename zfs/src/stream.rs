//! A send stream for whatever target there is: as the changes of a volume, or as it is.

use std::{fmt, io::Read};

use driftline_extent::{Change, ChangeMap, Finish, Generation, Plan, Source, Takes, TargetState};

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
    fn new(input: R, takes: &Takes, allow_full: bool) -> Self {
        match takes {
            Takes::Volume => Self::Volume(ZvolStream::new(input).allow_full(allow_full)),
            Takes::Stream { .. } => Self::Opaque(OpaqueStream::new(input)),
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
        Self::for_target(input, &Takes::Volume)
    }

    /// The stream that `input` yields, from its first byte, for a target that takes this.
    pub fn for_target(input: R, takes: &Takes) -> Self {
        Self { allow_full: false, view: Some(View::new(input, takes, false)) }
    }

    /// Whether, of a volume, all of it may go over another generation: see
    /// [`ZvolStream::allow_full`]. A target that is ZFS itself never does that. To be said
    /// before anything is read.
    pub fn allow_full(mut self, allow: bool) -> Self {
        self.allow_full = allow;
        self.view_again(&Takes::Volume);
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
    fn view_again(&mut self, takes: &Takes) {
        if self.bytes_read() == 0 {
            let input = self.view.take().map(View::into_inner);
            self.view = input.map(|input| View::new(input, takes, self.allow_full));
        }
    }

    fn source(&mut self) -> &mut dyn Source<Error = StreamError> {
        self.view.as_mut().expect(THERE).source_mut()
    }
}

impl<R: Read> Source for SendStream<R> {
    type Error = StreamError;

    fn learn(&mut self, target: &TargetState) {
        self.view_again(&target.takes);
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
