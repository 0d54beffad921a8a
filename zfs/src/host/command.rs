//! One call of the `zfs` command as a child process.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use driftline_command::{GivenUp, Patience, SAID_MAX, call, end, wait, whole};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionbio,
};

use super::{
    ZfsError,
    patience::{Watch, given_up},
};

/// The most that is kept of what a command writes to standard output: a list of more than a
/// hundred thousand snapshots.
const OUTPUT_MAX: u64 = 64 << 20;
/// How long to wait for the end of a child that was killed. One that hangs in the kernel, as
/// on a suspended pool, is left to a thread.
const REAP: Duration = Duration::from_secs(10);
/// What it says is looked at, and is quoted to people who search for it.
const ENVIRONMENT: (&str, &str) = ("LC_ALL", "C");

/// A program and its arguments, not started.
pub(super) struct Call {
    program: PathBuf,
    args: Vec<String>,
    watch: Watch,
}

impl Call {
    pub(super) fn new(program: &Path, args: Vec<String>, watch: Watch) -> Self {
        Self { program: program.to_owned(), args, watch }
    }

    /// How it would be typed.
    pub(super) fn text(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let mut text = program.to_string_lossy().into_owned();
        for arg in &self.args {
            text.push(' ');
            text.push_str(&quoted(arg));
        }
        text
    }

    /// Runs it to its end, and returns what it wrote if it succeeded.
    pub(super) fn output(self) -> Result<String, ZfsError> {
        let (output, end) = self.output_and_end()?;
        end.map(|_| output)
    }

    /// Runs it to its end, and returns what it wrote, and how it ended.
    pub(super) fn output_and_end(self) -> Result<(String, Result<String, ZfsError>), ZfsError> {
        let command = self.text();
        let Self { program, args, watch } = self;
        let limits = watch.limits;
        let look = || watch.look();
        let patience = Patience { within: Some(limits.command), every: limits.quiet, look: &look };
        let read = |pipe: &mut dyn Read| whole(pipe, OUTPUT_MAX);
        let begun = watch.begin();
        let ended = begun.and_then(|()| call(&program, &args, &[ENVIRONMENT], patience, read));
        let ended = ended.map_err(|error| match error {
            GivenUp::System(error) => ZfsError::Start { command: command.clone(), program, error },
            other => given_up(command.clone(), other),
        })?;
        let (output, is_whole) = ended.stdout.map_err(|why| ZfsError::Pipe {
            command: command.clone(),
            error: io::Error::other(why),
        })?;
        if !is_whole {
            return Err(ZfsError::TooMuch { command, limit: OUTPUT_MAX });
        }
        let stderr = ended.stderr.trim_end().to_owned();
        let end = match ended.status.success() {
            true => Ok(stderr),
            false => Err(ZfsError::Failed { command, status: ended.status.to_string(), stderr }),
        };
        Ok((String::from_utf8_lossy(&output).into_owned(), end))
    }

    /// Starts it, to be read from.
    pub(super) fn start_reading(self) -> Result<(Running, ChildStdout), ZfsError> {
        let mut running = self.start(Stdio::null(), Stdio::piped())?;
        let stdout = running.child.as_mut().and_then(|child| child.stdout.take());
        running.with(stdout)
    }

    /// Starts it, to be written to.
    pub(super) fn start_writing(self) -> Result<(Running, ChildStdin), ZfsError> {
        let mut running = self.start(Stdio::piped(), Stdio::null())?;
        let stdin = running.child.as_mut().and_then(|child| child.stdin.take());
        running.with(stdin)
    }

    fn start(self, stdin: Stdio, stdout: Stdio) -> Result<Running, ZfsError> {
        let text = self.text();
        self.watch.begin().map_err(|error| given_up(text.clone(), error))?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .envs([ENVIRONMENT])
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| ZfsError::Start {
                command: text.clone(),
                program: self.program,
                error,
            })?;
        let stderr = child.stderr.take();
        let mut running = Running { child: Some(child), stderr: None, text, watch: self.watch };
        let drain = thread::Builder::new().name("zfs stderr".to_owned());
        match drain.spawn(move || stderr.map_or_else(String::new, drained)) {
            Ok(thread) => running.stderr = Some(thread),
            Err(error) => return Err(ZfsError::Pipe { command: running.text.clone(), error }),
        }
        Ok(running)
    }
}

/// A child at work. Dropping it kills and reaps it.
#[derive(Debug)]
pub(super) struct Running {
    /// There until it was waited for.
    child: Option<Child>,
    /// What it writes to standard error, read by a thread so that it never waits for us.
    stderr: Option<JoinHandle<String>>,
    text: String,
    watch: Watch,
}

impl Running {
    /// Waits for its end: what it wrote to standard error, as an error if it failed.
    pub(super) fn finish(mut self) -> Result<String, ZfsError> {
        let Some(mut child) = self.child.take() else { return Ok(String::new()) };
        let command = std::mem::take(&mut self.text);
        let look = || self.watch.look();
        let every = self.watch.limits.quiet;
        let status = wait(&mut child, Patience { within: None, every, look: &look });
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                end(child);
                return Err(given_up(command, error));
            }
        };
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        match status.success() {
            true => Ok(stderr),
            false => Err(ZfsError::Failed { command, status: status.to_string(), stderr }),
        }
    }

    /// What asks how its pool is.
    pub(super) const fn watch(&self) -> &Watch {
        &self.watch
    }

    fn with<P>(self, pipe: Option<P>) -> Result<(Self, P), ZfsError> {
        match pipe {
            Some(pipe) => Ok((self, pipe)),
            None => Err(ZfsError::Pipe {
                command: self.text.clone(),
                error: io::Error::other("it has no pipe"),
            }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It fails only if the child ended by itself.
        let _ = child.kill();
        let (ended, end) = mpsc::channel();
        // Without a thread nobody waits for it, and `recv_timeout` returns at once.
        let _ = thread::Builder::new().name("zfs end".to_owned()).spawn(move || {
            let _ = child.wait();
            let _ = ended.send(());
        });
        let _ = end.recv_timeout(REAP);
    }
}

/// Makes a pipe one that does not let wait.
pub(super) fn without_waiting(pipe: impl AsFd) {
    // Where that cannot be, it waits.
    let _ = ioctl_fionbio(pipe, true);
}

/// Does what may have to wait for a pipe, and asks from time to time how the pool is.
///
/// # Errors
///
/// Those of the pipe, and [`TimedOut`](io::ErrorKind::TimedOut) with why it makes no sense to wait
/// on.
pub(super) fn patiently<P: AsFd, T>(
    pipe: &mut P,
    until: PollFlags,
    watch: &Watch,
    mut act: impl FnMut(&mut P) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match act(pipe) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        let quiet = watch.limits.quiet;
        let timeout = Timespec {
            tv_sec: quiet.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: quiet.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&*pipe, until)], Some(&timeout)) {
            Ok(0) => {
                watch.look().map_err(|why| io::Error::new(io::ErrorKind::TimedOut, why))?;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// All that comes, of which the first part is kept.
fn drained(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let read = stderr.by_ref().take(SAID_MAX).read_to_end(&mut kept);
    let rest = read.and_then(|_| io::copy(&mut stderr, &mut io::sink())).unwrap_or(0);
    let mut text = String::from_utf8_lossy(&kept).trim_end().to_owned();
    if rest > 0 {
        text.push_str(&format!("\n({rest} more bytes were not kept)"));
    }
    text
}

/// A word as a shell would take it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@#%+=,".contains(c);
    match !word.is_empty() && !word.starts_with('#') && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::patience::Limits;

    #[test]
    fn a_call_reads_as_it_would_be_typed() {
        let args = ["send", "-i", "tank/vm 1#a:b", "it's", "", "tank/a@b"].map(str::to_owned);
        let states = "/none".into();
        let watch = Watch { zpool: None, pool: None, states, limits: Limits::USUAL };
        let call = Call::new(Path::new("/usr/sbin/zfs"), args.to_vec(), watch);
        assert_eq!(call.text(), r"zfs send -i 'tank/vm 1#a:b' 'it'\''s' '' tank/a@b");
    }
}
