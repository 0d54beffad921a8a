//! One call of a command of the system, ended when its time is up.

use std::{
    env,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::HostError;

/// The most that is kept of what a command writes to each of its outputs.
const OUTPUT_MAX: u64 = 4 << 20;

/// How long a command may take that is not told otherwise: LVM waits for its own locks.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Where commands are looked for after `PATH`, which often lacks them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Runs a command to its end, and returns what it wrote to standard output.
///
/// # Errors
///
/// [`HostError::Missing`] if there is no such command, [`HostError::Failed`] with what it wrote
/// to standard error if it failed, [`HostError::Late`] if it was killed as its time was up.
pub(super) fn run(args: &[&str], within: Duration) -> Result<String, HostError> {
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
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let Some(status) = wait(&mut child, within).map_err(start)? else {
        let _ = child.kill();
        // One that hangs in the kernel ends when that lets it, and is waited for until then.
        let wait = move || drop(child.wait());
        let _ = thread::Builder::new().name("command end".to_owned()).spawn(wait);
        return Err(HostError::Late { command, within });
    };
    // A child that it has left behind may hold the pipes open.
    let output = |pipe: mpsc::Receiver<Vec<u8>>| {
        let bytes = pipe.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (output(stdout), output(stderr));
    if status.success() {
        return Ok(stdout);
    }
    let said = [stderr.trim(), stdout.trim()].into_iter().find(|said| !said.is_empty());
    let said = said.unwrap_or("it said nothing").to_owned();
    Err(HostError::Failed { command, status: status.to_string(), said })
}

fn wait(child: &mut Child, within: Duration) -> io::Result<Option<std::process::ExitStatus>> {
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

/// Reads a pipe on a thread, so that the child never waits for us.
fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let read = pipe.by_ref().take(OUTPUT_MAX).read_to_end(&mut bytes);
            let _ = read.and_then(|_| io::copy(&mut pipe, &mut io::sink()));
        }
        let _ = sender.send(bytes);
    };
    // Without the thread the receiver finds nobody, and nothing was said.
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

    #[test]
    fn one_that_hangs_is_ended() {
        // It waits for ever for a line that nobody writes.
        let hang = ["sh", "-c", "exec tail -f /dev/null"];
        let error = run(&hang, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, HostError::Late { .. }), "{error}");
    }
}
