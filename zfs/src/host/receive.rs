//! Streams into ZFS.

use std::{
    io::{self, Write},
    process::ChildStdin,
};

use crate::DatasetName;

use rustix::event::PollFlags;

use super::{
    Name, Zfs, ZfsError, all_snapshots,
    command::{Running, patiently, without_waiting},
    send::widen,
};

/// Where a stream goes. It is never forced (`-F`), and what arrives is never mounted (`-u`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiveRequest {
    /// The data set that is made or continued; or the snapshot, where it is to have another
    /// name than the stream says.
    pub target: Name,
    /// What arrived of a stream that breaks off is kept, under a token to resume it (`-s`); for
    /// a ZFS that can, by its [`Abilities`](super::Abilities).
    pub resumable: bool,
    /// Properties of the stream that are not taken over (`-x`).
    pub exclude: Vec<String>,
    /// Properties with other values than the stream's (`-o`).
    pub overrides: Vec<(String, String)>,
}

impl ReceiveRequest {
    /// A resumable one that takes the stream as it is.
    pub fn new(target: impl Into<Name>) -> Self {
        let target = target.into();
        Self { target, resumable: true, exclude: Vec::new(), overrides: Vec::new() }
    }

    /// The arguments of `zfs` for it.
    fn args(&self) -> Result<Vec<String>, ZfsError> {
        if let Name::Point(point) = &self.target {
            all_snapshots("receive", std::slice::from_ref(point))?;
        }
        let mut args = vec!["receive".to_owned(), "-u".to_owned()];
        if self.resumable {
            args.push("-s".to_owned());
        }
        for property in &self.exclude {
            args.extend(["-x".to_owned(), checked(property)?.to_owned()]);
        }
        for (property, value) in &self.overrides {
            args.extend(["-o".to_owned(), format!("{}={value}", checked(property)?)]);
        }
        args.push(self.target.to_string());
        Ok(args)
    }
}

/// A property's name, if it can be one.
fn checked(property: &str) -> Result<&str, ZfsError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || ":+-._@".contains(c);
    if property.starts_with(|c: char| c.is_ascii_alphanumeric()) && property.chars().all(legal) {
        return Ok(property);
    }
    Err(ZfsError::Misuse(format!("{property:?} is no name of a ZFS property")))
}

impl Zfs {
    /// Starts to receive a stream.
    ///
    /// # Errors
    ///
    /// Only that it could not be started: what ZFS refuses comes with [`Receiving::finish`].
    pub fn receive(&self, request: &ReceiveRequest) -> Result<Receiving, ZfsError> {
        let (running, input) = self.call(request.args()?)?.start_writing()?;
        widen(&input);
        without_waiting(&input);
        Ok(Receiving { running, input })
    }

    /// Throws away what this data set keeps of a stream that was cut off (`receive -A`), if this
    /// is the token for it, and says whether it was. Of a first copy nothing is left then, and of
    /// an increment what it started from.
    ///
    /// # Errors
    ///
    /// What ZFS refuses.
    pub fn discard_partial(&self, name: &DatasetName, token: &str) -> Result<bool, ZfsError> {
        let dataset = self.dataset(name)?;
        let kept = dataset.and_then(|dataset| dataset.receive_resume_token);
        if kept.as_deref() != Some(token) {
            return Ok(false);
        }
        self.run(["receive", "-A", name.as_str()]).map(|_| true)
    }
}

/// A stream on its way into ZFS, to be written. A write fails with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the receiver has given up; why it did,
/// [`finish`](Self::finish) says. Dropping it kills the receiver; what arrived is kept if the
/// request was resumable, and nothing of it otherwise. If it takes nothing for long, it is asked
/// how the pool is, and a write fails if that is suspended.
#[derive(Debug)]
#[must_use = "a stream is received only when finish said so"]
pub struct Receiving {
    // Before the input, so that the receiver is killed rather than told that this is the end.
    running: Running,
    input: ChildStdin,
}

impl Receiving {
    /// Tells the receiver that this is the end, and waits for it. Returns what it said
    /// nevertheless, mostly nothing.
    ///
    /// # Errors
    ///
    /// Why it failed, with all that it said. What a resumable request keeps is there then, and
    /// of a stream of several snapshots those before the one that failed.
    pub fn finish(self) -> Result<String, ZfsError> {
        let Self { running, input } = self;
        drop(input);
        running.finish()
    }
}

impl Write for Receiving {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let watch = self.running.watch();
        patiently(&mut self.input, PollFlags::OUT, watch, |input| input.write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PointName;

    #[test]
    fn arguments_never_force() {
        let dataset: DatasetName = "tank/copy of vm".parse().unwrap();
        let mut request = ReceiveRequest::new(dataset);
        assert_eq!(request.args().unwrap(), ["receive", "-u", "-s", "tank/copy of vm"]);
        request.resumable = false;
        request.exclude = vec!["mountpoint".to_owned(), "com.sun:auto-snapshot".to_owned()];
        request.overrides = vec![("readonly".to_owned(), "on".to_owned())];
        assert_eq!(
            request.args().unwrap(),
            [
                "receive",
                "-u",
                "-x",
                "mountpoint",
                "-x",
                "com.sun:auto-snapshot",
                "-o",
                "readonly=on",
                "tank/copy of vm",
            ]
        );
        for bad in ["", "-F", "a=b", "a b", "a\n"] {
            request.exclude = vec![bad.to_owned()];
            let error = request.args().unwrap_err().to_string();
            assert!(error.ends_with("is no name of a ZFS property"), "{error}");
        }
    }

    #[test]
    fn a_bookmark_is_no_target() {
        let mark: PointName = "tank/a#b".parse().unwrap();
        let error = ReceiveRequest::new(mark).args().unwrap_err().to_string();
        assert_eq!(error, "tank/a#b is no snapshot to receive: use @");
    }
}
