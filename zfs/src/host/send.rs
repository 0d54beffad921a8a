//! Streams out of ZFS.

use std::{
    io::{self, PipeReader, Read},
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::{Receiver, channel},
    thread,
};

use driftline_command::{Patience, take};
use rustix::event::PollFlags;

use super::{
    Zfs, ZfsError, all_snapshots,
    command::{Call, Running, patiently, without_waiting},
    patience::{Watch, given_up},
};
use crate::{PointKind, PointName};

/// What is asked of a pipe that a stream goes through: ZFS produces in bursts, and 64 KiB, the
/// default, are less than one block of a large-block data set.
pub(super) const PIPE_LEN: usize = 1 << 20;
/// Larger estimates are nonsense: no pool holds 8 EiB, and `zfs` prints differences of wrong
/// sign near 2^64.
const ESTIMATE_MAX: u64 = (1 << 63) - 1;

/// How much a stream holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Package {
    /// One snapshot of one data set, or the difference between two.
    One,
    /// The same, with its properties (`-p`).
    Properties,
    /// The same with its properties, and with every snapshot between (`-p`, with `-I`).
    Steps,
    /// The data set and all below it, with their properties, and all snapshots up to the tip,
    /// after the base if there is one (`-R`, with `-I`).
    Replicate,
}

/// A stream to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendRequest {
    /// The snapshot that it makes.
    pub tip: PointName,
    /// The snapshot or bookmark that it goes on from; `None` for all of the tip. Only a
    /// snapshot where the package is more than one.
    pub base: Option<PointName>,
    /// As it is on disk: of encrypted data sets the ciphertext (`-w`).
    pub raw: bool,
    /// How much it holds.
    pub package: Package,
    /// For a ZFS that does not know `-L` and `-c`, by its [`Abilities`](super::Abilities). All
    /// others are always sent with them: to leave `-L` out once it was given loses data. `-e` is
    /// never given: a data set that is encrypted where it arrives takes no embedded blocks.
    pub plain: bool,
}

impl SendRequest {
    /// A full stream of one snapshot.
    pub const fn full(tip: PointName) -> Self {
        Self { tip, base: None, raw: false, package: Package::One, plain: false }
    }

    /// The arguments of `zfs` for it, but for `send`.
    fn args(&self) -> Result<Vec<String>, ZfsError> {
        all_snapshots("send", std::slice::from_ref(&self.tip))?;
        let mut args: Vec<String> = Vec::new();
        let mut add = |word: &str| args.push(word.to_owned());
        if !self.plain {
            ["-L", "-c"].into_iter().for_each(&mut add);
        }
        if self.raw {
            add("-w");
        }
        match self.package {
            Package::One => {}
            Package::Properties | Package::Steps => add("-p"),
            Package::Replicate => add("-R"),
        }
        if let Some(base) = &self.base {
            if self.package != Package::One && base.kind() == PointKind::Bookmark {
                return Err(ZfsError::Misuse(format!(
                    "{} cannot be sent with its properties from the bookmark {base}: ZFS wants \
                     a snapshot for that; send it alone, or from a snapshot",
                    self.tip
                )));
            }
            let all = matches!(self.package, Package::Replicate | Package::Steps);
            add(if all { "-I" } else { "-i" });
            add(&base.to_string());
        }
        add(&self.tip.to_string());
        Ok(args)
    }
}

impl Zfs {
    /// Starts a stream.
    ///
    /// # Errors
    ///
    /// Only that it could not be started: what ZFS refuses comes with [`Sending::finish`].
    pub fn send(&self, request: &SendRequest) -> Result<Sending, ZfsError> {
        let args = request.args()?;
        match &self.library {
            Ok(engine) if request.package == Package::One && !request.plain => {
                let (engine, request) = (engine.clone(), request.clone());
                let watch = self.watch(request.tip.dataset().pool());
                Sending::by_thread(watch, move |output| {
                    engine.send(&request.tip, request.base.as_ref(), request.raw, output)
                })
            }
            _ => Sending::by_command(self.call(["send".to_owned()].into_iter().chain(args))?),
        }
    }

    /// Starts what is left of a stream, from a token that its receiver gave, or that was
    /// minted. The token decides all of its flags.
    ///
    /// # Errors
    ///
    /// Only that it could not be started: what ZFS refuses comes with [`Sending::finish`].
    pub fn resume(&self, token: &str) -> Result<Sending, ZfsError> {
        Sending::by_command(self.call(["send", "-t", token])?)
    }

    /// How many bytes the stream will have, as ZFS estimates; `None` where it cannot.
    ///
    /// # Errors
    ///
    /// What ZFS refuses.
    pub fn send_len(&self, request: &SendRequest) -> Result<Option<u64>, ZfsError> {
        let args = request.args()?;
        if request.plain || self.command.is_err() {
            return Ok(None);
        }
        let args = ["send", "-nvP"].map(str::to_owned).into_iter().chain(args);
        self.run(args).map(|output| estimate(&output))
    }
}

/// The last line `size`, tab, bytes, of what `zfs send -nvP` prints.
fn estimate(output: &str) -> Option<u64> {
    let size = output.lines().rev().find_map(|line| line.strip_prefix("size\t"))?;
    size.trim().parse().ok().filter(|bytes| *bytes <= ESTIMATE_MAX)
}

/// A stream on its way out of ZFS, to be read to its end. That the end came says nothing, as a
/// sender that fails stops just the same: [`finish`](Self::finish) says whether it is whole.
/// Dropping it ends the sender. If nothing comes for long, it is asked how the pool is, and a read
/// fails if that is suspended.
#[derive(Debug)]
#[must_use = "a stream is worth nothing before finish said that it is whole"]
pub struct Sending {
    work: Work,
    output: PipeReader,
}

#[derive(Debug)]
enum Work {
    Command(Running),
    /// A thread, which tells its end. It ends at its next write once the pipe has no reader.
    Library(Receiver<Result<(), ZfsError>>, Watch),
}

impl Sending {
    fn by_command(call: Call) -> Result<Self, ZfsError> {
        let (running, stdout) = call.start_reading()?;
        let output = PipeReader::from(OwnedFd::from(stdout));
        widen(&output);
        without_waiting(&output);
        Ok(Self { work: Work::Command(running), output })
    }

    fn by_thread(
        watch: Watch,
        send: impl FnOnce(io::PipeWriter) -> Result<(), ZfsError> + Send + 'static,
    ) -> Result<Self, ZfsError> {
        let failed = |error: io::Error| ZfsError::Library {
            task: "send".to_owned(),
            why: format!("no pipe or thread: {error}"),
        };
        watch.begin().map_err(|error| given_up("zfs send".to_owned(), error))?;
        let (output, input) = io::pipe().map_err(failed)?;
        widen(&output);
        without_waiting(&output);
        let thread = thread::Builder::new().name("zfs send".to_owned());
        let (ended, end) = channel();
        thread.spawn(move || drop(ended.send(send(input)))).map_err(failed)?;
        Ok(Self { work: Work::Library(end, watch), output })
    }

    /// Whether the sender was content: its stream is whole if it was also read to its end.
    /// Returns what the sender said nevertheless, mostly nothing.
    ///
    /// # Errors
    ///
    /// Why it failed, with all that it said. A sender that was not read to its end may fail
    /// for that reason.
    pub fn finish(self) -> Result<String, ZfsError> {
        let Self { work, output } = self;
        // Nobody would read what it might still write, and it would wait forever.
        drop(output);
        match work {
            Work::Command(running) => running.finish(),
            Work::Library(end, watch) => {
                let look = || watch.look();
                let every = watch.limits.quiet;
                let sent = take(&end, Patience { within: None, every, look: &look });
                sent.map_err(|error| given_up("zfs send".to_owned(), error))??;
                Ok(String::new())
            }
        }
    }
}

impl Read for Sending {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let watch = match &self.work {
            Work::Command(running) => running.watch(),
            Work::Library(_, watch) => watch,
        };
        patiently(&mut self.output, PollFlags::IN, watch, |output| output.read(buffer))
    }
}

/// Makes a pipe larger. Whoever may not, has a slower one.
pub(super) fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_LEN);
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::mpsc};

    use super::*;
    use crate::host::{Cause, Errno};

    fn watch() -> Watch {
        let limits = crate::host::patience::Limits::USUAL;
        Watch { zpool: None, pool: None, states: "/none".into(), limits }
    }

    fn request() -> SendRequest {
        SendRequest::full("tank/vm 1@a:b".parse().unwrap())
    }

    #[test]
    fn arguments_of_each_kind_of_stream() {
        let args = |request: &SendRequest| request.args().unwrap().join(" ");
        let base = |name: &str| Some(name.parse().unwrap());
        let one = SendRequest { base: base("tank/vm 1#z"), ..request() };
        assert_eq!(args(&request()), "-L -c tank/vm 1@a:b");
        assert_eq!(args(&one), "-L -c -i tank/vm 1#z tank/vm 1@a:b");
        assert_eq!(
            args(&SendRequest { raw: true, ..one.clone() }),
            "-L -c -w -i tank/vm 1#z tank/vm 1@a:b"
        );
        assert_eq!(
            args(&SendRequest { plain: true, ..one.clone() }),
            "-i tank/vm 1#z tank/vm 1@a:b"
        );
        let tree = SendRequest { package: Package::Replicate, ..request() };
        assert_eq!(args(&tree), "-L -c -R tank/vm 1@a:b");
        let later = SendRequest { base: base("tank/vm 1@z"), ..tree };
        assert_eq!(args(&later), "-L -c -R -I tank/vm 1@z tank/vm 1@a:b");
        let known = SendRequest { package: Package::Properties, ..later };
        assert_eq!(args(&known), "-L -c -p -i tank/vm 1@z tank/vm 1@a:b");
        let steps = SendRequest { package: Package::Steps, ..known };
        assert_eq!(args(&steps), "-L -c -p -I tank/vm 1@z tank/vm 1@a:b");
    }

    #[test]
    fn what_zfs_cannot_send_is_refused_before() {
        let marked = SendRequest { tip: "tank/a#b".parse().unwrap(), ..request() };
        let error = marked.args().unwrap_err().to_string();
        assert_eq!(error, "tank/a#b is no snapshot to send: use @");
        for package in [Package::Properties, Package::Replicate] {
            let base = Some("tank/vm 1#z".parse().unwrap());
            let error = SendRequest { base, package, ..request() }.args().unwrap_err();
            assert!(error.to_string().contains("from the bookmark tank/vm 1#z"), "{error}");
        }
    }

    #[test]
    fn estimates_that_can_be_true() {
        let full = "full\ttank/vm 1@a:b\t8589934592\nsize\t8589934592\n";
        assert_eq!(estimate(full), Some(8_589_934_592));
        assert_eq!(estimate("incremental\ta\ttank/vm@b\t24872\nsize\t24872\n"), Some(24872));
        assert_eq!(estimate("size\t1\nsize\t2\n"), Some(2));
        assert_eq!(estimate("size\t18446744073709551000\n"), None);
        assert_eq!(estimate("size\t99999999999999999999999\n"), None);
        for text in ["", "size\n", "size\t-\n", "full\ttank/a@b\t7\n"] {
            assert_eq!(estimate(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_thread_sends_more_than_a_pipe_holds() {
        let data: Vec<u8> = (0..3 * PIPE_LEN).map(|i| (i / 7) as u8).collect();
        let sent = data.clone();
        let mut sending = Sending::by_thread(watch(), move |mut output| {
            output.write_all(&sent).unwrap();
            Ok(())
        })
        .unwrap();
        let mut received = Vec::new();
        sending.read_to_end(&mut received).unwrap();
        assert_eq!(sending.finish().unwrap(), "");
        assert!(received == data);
    }

    #[test]
    fn the_end_of_a_stream_is_no_success() {
        let cause = Cause { name: None, errno: Errno(5) };
        let refused = ZfsError::Refused { task: "send".to_owned(), causes: vec![cause] };
        let mut sending = Sending::by_thread(watch(), |_| Err(refused)).unwrap();
        assert_eq!(sending.read_to_end(&mut Vec::new()).unwrap(), 0);
        let error = sending.finish().unwrap_err().to_string();
        assert!(error.contains("see zpool status"), "{error}");
    }

    #[test]
    fn nobody_to_read_ends_a_thread() {
        let (ended, end) = mpsc::channel();
        let sending = Sending::by_thread(watch(), move |mut output| {
            let error = std::iter::repeat_with(|| output.write_all(&[7; 4096]))
                .find_map(Result::err)
                .expect("it goes on until it fails");
            ended.send(error.kind()).unwrap();
            Ok(())
        })
        .unwrap();
        drop(sending);
        assert_eq!(end.recv().unwrap(), io::ErrorKind::BrokenPipe);
    }
}
