//! Child processes that are never waited for without a word: each call has a deadline, and who
//! waits is asked from time to time whether that still makes sense.
//!
//! A command may hang in the kernel, as those of ZFS do on a suspended pool, where even a kill
//! does not end it. So nothing here waits for a child that was given up: a thread of its own does.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(2);

/// How long is waited for the rest of what a child wrote that has ended.
const REST_WAIT_MAX: Duration = Duration::from_secs(1);

/// The most that is kept of what a child says of its failure.
pub const SAID_MAX: u64 = 64 << 10;

/// How long is waited.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// At most, whatever the answers are; `None`: as long as they are good.
    pub within: Option<Duration>,
    /// After each such time it is asked whether to wait on.
    pub every: Duration,
    /// Whether it still makes sense, or why it does not.
    pub look: &'a dyn Fn() -> Result<(), String>,
}

impl Patience<'_> {
    /// Waits so long, and asks nobody.
    pub const fn of(within: Duration) -> Self {
        Patience { within: Some(within), every: within, look: &|| Ok(()) }
    }
}

/// Why a child was given up, or cannot be waited for.
#[derive(Debug, thiserror::Error)]
pub enum GivenUp {
    /// Its time was up.
    #[error("it took longer than {0:?}")]
    Late(Duration),
    /// It makes no sense to wait on.
    #[error("{0}")]
    Senseless(String),
    /// The operating system does not say how it is, or cannot start it.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A child that has ended.
#[derive(Debug)]
pub struct Ended<T> {
    /// How.
    pub status: ExitStatus,
    /// What became of its standard output, or why that is not known.
    pub stdout: Result<T, String>,
    /// The beginning of what it wrote to standard error.
    pub stderr: String,
}

/// Runs a program to its end. What it writes to standard output goes to `consume`, on a thread of
/// its own, which may leave a rest of it. It is killed if it is given up.
///
/// # Errors
///
/// That it cannot be started, or was given up.
pub fn call<T: Send + 'static>(
    program: &Path,
    args: &[impl AsRef<str>],
    environment: &[(&str, &str)],
    patience: Patience<'_>,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Result<Ended<T>, GivenUp> {
    let mut child = Command::new(program)
        .args(args.iter().map(AsRef::as_ref))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = drain(child.stdout.take(), consume);
    let stderr = drain(child.stderr.take(), |pipe| whole(pipe, SAID_MAX));
    let status = match wait(&mut child, patience) {
        Ok(status) => status,
        Err(given_up) => {
            end(child);
            return Err(given_up);
        }
    };
    // Of a failure what it wrote to standard error says why, as far as that was heard.
    let stderr = heard(&stderr).map_or_else(|_| Vec::new(), |(bytes, _)| bytes);
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok(Ended { status, stdout: heard(&stdout), stderr })
}

/// Waits for the end of a child.
///
/// # Errors
///
/// That it is given up. It still runs then.
pub fn wait(child: &mut Child, patience: Patience<'_>) -> Result<ExitStatus, GivenUp> {
    let mut watch = Watch::new(patience);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        watch.check()?;
        thread::sleep(POLL);
    }
}

/// Kills a child, and leaves it to a thread to wait for it: one that hangs in the kernel ends when
/// that lets it.
pub fn end(mut child: Child) {
    let _ = child.kill();
    let wait = move || drop(child.wait());
    let _ = thread::Builder::new().name("command end".to_owned()).spawn(wait);
}

/// Does something on a thread of its own that may hang in the kernel.
///
/// # Errors
///
/// That it is given up: the thread stays until the kernel lets it.
pub fn apart<T: Send + 'static>(
    name: &str,
    patience: Patience<'_>,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GivenUp> {
    let (sender, receiver) = mpsc::channel();
    let act = move || drop(sender.send(act()));
    thread::Builder::new().name(name.to_owned()).spawn(act)?;
    take(&receiver, patience)
}

/// Waits for what a thread sends.
///
/// # Errors
///
/// That it is given up, or has gone without sending anything.
pub fn take<T>(receiver: &Receiver<T>, patience: Patience<'_>) -> Result<T, GivenUp> {
    let mut watch = Watch::new(patience);
    loop {
        match receiver.recv_timeout(watch.rest()) {
            Ok(sent) => return Ok(sent),
            Err(RecvTimeoutError::Timeout) => watch.check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the thread that did it has panicked").into());
            }
        }
    }
}

/// What of a [`Patience`] is left.
struct Watch<'a> {
    patience: Patience<'a>,
    started: Instant,
    looked: Instant,
}

impl<'a> Watch<'a> {
    fn new(patience: Patience<'a>) -> Self {
        let now = Instant::now();
        Self { patience, started: now, looked: now }
    }

    /// Until the next look.
    fn rest(&self) -> Duration {
        let look = self.patience.every.saturating_sub(self.looked.elapsed());
        let end = self.patience.within.map(|within| within.saturating_sub(self.started.elapsed()));
        end.map_or(look, |end| end.min(look)).max(POLL)
    }

    fn check(&mut self) -> Result<(), GivenUp> {
        if let Some(within) = self.patience.within
            && self.started.elapsed() >= within
        {
            return Err(GivenUp::Late(within));
        }
        if self.looked.elapsed() >= self.patience.every {
            (self.patience.look)().map_err(GivenUp::Senseless)?;
            self.looked = Instant::now();
        }
        Ok(())
    }
}

/// Up to so many bytes, and whether that is all.
///
/// # Errors
///
/// Those of the pipe.
pub fn whole(pipe: &mut dyn Read, max: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    pipe.take(max).read_to_end(&mut bytes)?;
    let is_whole = pipe.read(&mut [0])? == 0;
    Ok((bytes, is_whole))
}

/// What was made of the output of a command that has ended.
fn heard<T>(pipe: &Receiver<io::Result<T>>) -> Result<T, String> {
    match pipe.recv_timeout(REST_WAIT_MAX) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(RecvTimeoutError::Timeout) => {
            Err("a process that it left behind holds its output open".to_owned())
        }
        Err(RecvTimeoutError::Disconnected) => Err("there was no thread to read it".to_owned()),
    }
}

/// Reads a pipe on a thread, to its end, so that the child never waits for us.
fn drain<T: Send + 'static>(
    pipe: Option<impl Read + Send + 'static>,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Receiver<io::Result<T>> {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let Some(mut pipe) = pipe else { return };
        let consumed = consume(&mut pipe);
        let rest = io::copy(&mut pipe, &mut io::sink());
        let _ = sender.send(consumed.and_then(|done| rest.map(|_| done)));
    };
    // Without the thread the receiver finds nobody.
    let _ = thread::Builder::new().name("command output".to_owned()).spawn(work);
    receiver
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    fn shell(script: &str, patience: Patience<'_>) -> Result<Ended<(Vec<u8>, bool)>, GivenUp> {
        let args = ["-c", script];
        call(Path::new("/bin/sh"), &args, &[("WORD", "heard")], patience, |pipe| whole(pipe, 100))
    }

    #[test]
    fn what_it_says_is_heard_and_how_it_ended() {
        let script = "echo $WORD; echo why >&2; exit 5";
        let ended = shell(script, Patience::of(Duration::from_secs(60))).unwrap();
        assert_eq!(ended.stdout, Ok((b"heard\n".to_vec(), true)));
        assert_eq!((ended.stderr.as_str(), ended.status.code()), ("why\n", Some(5)));
        let long = shell("head -c 101 /dev/zero", Patience::of(Duration::from_secs(60))).unwrap();
        assert_eq!(long.stdout, Ok((vec![0; 100], false)));
    }

    #[test]
    fn one_that_hangs_is_ended_when_its_time_is_up() {
        let hang = "exec tail -f /dev/null";
        let late = shell(hang, Patience::of(SOON)).unwrap_err();
        assert!(matches!(late, GivenUp::Late(SOON)), "{late}");
    }

    #[test]
    fn who_waits_is_asked_and_may_end_it() {
        let asked = Cell::new(0);
        let look = || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 { Err("no use".to_owned()) } else { Ok(()) }
        };
        let patience = Patience { within: None, every: SOON, look: &look };
        let ended = shell("exec tail -f /dev/null", patience).unwrap_err();
        assert!(matches!(&ended, GivenUp::Senseless(why) if why == "no use"), "{ended}");
        assert_eq!(asked.get(), 3);
        // The same for what hangs on a thread, which here ends with the test.
        let hang = || thread::sleep(Duration::from_secs(3600));
        asked.set(0);
        let ended = apart("hangs", patience, hang).unwrap_err();
        assert!(matches!(&ended, GivenUp::Senseless(why) if why == "no use"), "{ended}");
        assert_eq!(apart("works", patience, || 7).unwrap(), 7);
    }
}
