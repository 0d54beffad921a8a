//! One call of a command of the system, ended when its time is up.

use std::{
    env,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use driftline_command::{Ended, GivenUp, Patience, whole};

use super::HostError;

/// The most that a command may write to its standard output, where all of it is kept.
const OUTPUT_MAX: u64 = 4 << 20;

/// How long a command may take that is not told otherwise: LVM waits for its own locks.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Where commands are looked for after `PATH`, which often lacks them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Runs a command to its end, and returns what it wrote to standard output.
///
/// # Errors
///
/// As of [`run_into`], and [`HostError::Unheard`] if it wrote more than is kept.
pub(super) fn run(args: &[&str], within: Duration) -> Result<String, HostError> {
    let ended = call(args, within, |pipe| whole(pipe, OUTPUT_MAX))?;
    let text_of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (bytes, is_whole) = content(text(args), ended, |(bytes, _)| text_of(bytes))?;
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
    content(text(args), call(args, within, consume)?, |_| String::new())
}

/// Its output, if it ended well. What it says of a failure may be in there as well.
fn content<T>(
    command: String,
    ended: Ended<T>,
    said_in: impl FnOnce(&T) -> String,
) -> Result<T, HostError> {
    let Ended { status, stdout, stderr } = ended;
    if status.success() {
        return stdout.map_err(|why| HostError::Unheard { command, why });
    }
    let stdout = stdout.as_ref().map(said_in).unwrap_or_default();
    let said = [stderr.trim(), stdout.trim()].into_iter().find(|said| !said.is_empty());
    let said = said.unwrap_or("it said nothing").to_owned();
    Err(HostError::Failed { command, status: status.to_string(), said })
}

fn call<T: Send + 'static>(
    args: &[&str],
    within: Duration,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Result<Ended<T>, HostError> {
    let (program, rest) = args.split_first().unwrap_or((&"", &[]));
    let path = find(program)?;
    // What it says is looked at, and is quoted to people who search for it.
    let environment = [("LC_ALL", "C"), ("LVM_SUPPRESS_FD_WARNINGS", "1")];
    let ended = driftline_command::call(&path, rest, &environment, Patience::of(within), consume);
    ended.map_err(|error| match (text(args), error) {
        (command, GivenUp::System(error)) => HostError::Start { command, error },
        (command, _) => HostError::Late { command, within },
    })
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
