//! One call of a command of the system, ended when its time is up.

use std::{
    env,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::HostError;

/// The most that a command may write to its standard output, where all of it is kept.
const OUTPUT_MAX: u64 = 4 << 20;

/// The most that is kept of what it says of its failure.
const SAID_MAX: u64 = 64 << 10;

/// How long a command may take that is not told otherwise: LVM waits for its own locks.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Where commands are looked for after `PATH`, which often lacks them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How long is waited for the rest of what a command wrote that has ended.
const REST_WAIT_MAX: Duration = Duration::from_secs(1);

/// Runs a command to its end, and returns what it wrote to standard output.
///
/// # Errors
///
/// As of [`run_into`], and [`HostError::Unheard`] if it wrote more than is kept.
pub(super) fn run(args: &[&str], within: Duration) -> Result<String, HostError> {
    let ended = call(args, within, |pipe| whole(pipe, OUTPUT_MAX))?;
    let text_of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (bytes, is_whole) = ended.content(|(bytes, _)| text_of(bytes))?;
    if !is_whole {
        let why = format!("it wrote more than {OUTPUT_MAX} bytes");
        return Err(HostError::Unheard { command: text(args), why });
    }
    Ok(text_of(&bytes))
}

/// Runs a command to its end, and returns what `consume` made of its standard output, of which
/// it may leave a rest.
///
/// # Errors
///
/// [`HostError::Missing`] if there is no such command, [`HostError::Failed`] with what it wrote
/// to standard error if it failed, [`HostError::Late`] if it was killed as its time was up,
/// [`HostError::Unheard`] if it ended well and what it wrote cannot be read to its end.
pub(super) fn run_into<T: Send + 'static>(
    args: &[&str],
    within: Duration,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    call(args, within, consume)?.content(|_| String::new())
}

/// A command that has ended.
struct Ended<T> {
    command: String,
    status: ExitStatus,
    /// What became of its standard output, or why that is not known.
    stdout: Result<T, String>,
    stderr: String,
}

impl<T> Ended<T> {
    /// Its output, if it ended well. What it says of a failure may be in there as well.
    fn content(self, said_in: impl FnOnce(&T) -> String) -> Result<T, HostError> {
        let Self { command, status, stdout, stderr } = self;
        if status.success() {
            return stdout.map_err(|why| HostError::Unheard { command, why });
        }
        let stdout = stdout.as_ref().map(said_in).unwrap_or_default();
        let said = [stderr.trim(), stdout.trim()].into_iter().find(|said| !said.is_empty());
        let said = said.unwrap_or("it said nothing").to_owned();
        Err(HostError::Failed { command, status: status.to_string(), said })
    }
}

fn call<T: Send + 'static>(
    args: &[&str],
    within: Duration,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Result<Ended<T>, HostError> {
    let (program, rest) = args.split_first().unwrap_or((&"", &[]));
    let path = find(program)?;
    let command = text(args);
    let start = |error| HostError::Start { command: command.clone(), error };
    let mut child = Command::new(path)
        .args(rest)
        // What it says is looked at, and is quoted to people who search for it.
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let stdout = drain(child.stdout.take(), consume);
    let stderr = drain(child.stderr.take(), |pipe| whole(pipe, SAID_MAX));
    let Some(status) = wait(&mut child, within).map_err(start)? else {
        let _ = child.kill();
        // One that hangs in the kernel ends when that lets it, and is waited for until then.
        let wait = move || drop(child.wait());
        let _ = thread::Builder::new().name("command end".to_owned()).spawn(wait);
        return Err(HostError::Late { command, within });
    };
    // Of a failure what it wrote to standard error says why, as far as that was heard.
    let stderr = heard(&stderr).map_or_else(|_| Vec::new(), |(bytes, _)| bytes);
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok(Ended { command, status, stdout: heard(&stdout), stderr })
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

/// Up to so many bytes, and whether that is all.
fn whole(pipe: &mut dyn Read, max: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    pipe.take(max).read_to_end(&mut bytes)?;
    let is_whole = pipe.read(&mut [0])? == 0;
    Ok((bytes, is_whole))
}

fn wait(child: &mut Child, within: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= within {
            return Ok(None);
        }
        thread::sleep(POLL);
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

fn find(program: &str) -> Result<PathBuf, HostError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).filter(|folder| folder.is_absolute());
    folders
        .chain(FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
        .ok_or_else(|| HostError::Missing { program: program.to_owned() })
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// How a command would be typed.
pub(crate) fn text(args: &[impl AsRef<str>]) -> String {
    args.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A word as a shell would take it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_as_it_would_be_typed() {
        let args = ["lvcreate", "-n", "it's", "", "vg/a-b"];
        assert_eq!(text(&args), r"lvcreate -n 'it'\''s' '' vg/a-b");
    }

    #[test]
    fn what_it_says_is_told() {
        assert_eq!(run(&["sh", "-c", "echo out; echo err >&2"], PATIENCE).unwrap(), "out\n");
        let error = run(&["sh", "-c", "echo why >&2; exit 5"], PATIENCE).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains("exit status: 5"), "{error}");
        let error = run(&["driftline-no-such-command"], PATIENCE).unwrap_err().to_string();
        assert!(error.contains("driftline-no-such-command"), "{error}");
    }

    /// Its end would be taken for the end of what it wrote.
    #[test]
    fn what_is_not_heard_is_an_error() {
        // What it leaves behind ends with this test.
        let leaves = ["sh", "-c", "tail --pid=$PPID -f /dev/null & echo begun"];
        let error = run(&leaves, PATIENCE).unwrap_err();
        assert!(matches!(error, HostError::Unheard { .. }), "{error}");
        assert!(error.to_string().contains("left behind"), "{error}");
    }

    #[test]
    fn what_is_too_much_is_an_error() {
        let writes = |bytes: u64| format!("head -c {bytes} /dev/zero");
        let kept = run(&["sh", "-c", &writes(OUTPUT_MAX)], PATIENCE).unwrap();
        assert_eq!(kept.len() as u64, OUTPUT_MAX);
        let error = run(&["sh", "-c", &writes(OUTPUT_MAX + 1)], PATIENCE).unwrap_err();
        assert!(matches!(error, HostError::Unheard { .. }), "{error}");
        assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
        // A consumer of its own need not read all of it, and the command does not wait for it.
        let first = run_into(&["sh", "-c", &writes(1 << 20)], PATIENCE, |pipe| {
            let mut byte = [1];
            pipe.read_exact(&mut byte).map(|()| byte[0])
        });
        assert_eq!(first.unwrap(), 0);
    }

    #[test]
    fn one_that_hangs_is_ended() {
        // It waits for ever for a line that nobody writes.
        let hang = ["sh", "-c", "exec tail -f /dev/null"];
        let error = run(&hang, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, HostError::Late { .. }), "{error}");
    }
}
