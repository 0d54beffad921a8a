//! The one who asks the guard, which is a process of its own.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{self, Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    LiveError,
    guard::{Answer, Order, RealDevice, let_go},
};
use crate::host::{
    Minor,
    group::{Brood, MARK},
};

/// How long the guard may take to start, besides the time that it may hold the device for.
const SLACK: Duration = Duration::from_secs(30);

/// How often it is told that the guard is waited for, which has not said yet that the device goes
/// on, and for how long it is. It gives up before that.
const RELEASE_TELL: Duration = Duration::from_secs(60);
const RELEASE_FOR: Duration = Duration::from_secs(1500);

/// How the guard is started: what [`guard_process`](crate::guard_process) is called from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuardCommand {
    /// The program.
    pub program: std::path::PathBuf,
    /// Its arguments, before the minor and the limit in milliseconds.
    pub args: Vec<String>,
}

/// A guard at work. Dropping it makes the device go on.
pub(super) struct Freezer {
    child: Option<Child>,
    /// Closed when the guard shall end.
    orders: Option<ChildStdin>,
    answers: Receiver<Answer>,
    minor: Minor,
    limit: Duration,
    /// What tells all that the guard has started.
    mark: String,
    /// Whether the device may be frozen, as far as is known.
    frozen: bool,
}

impl Freezer {
    pub(super) fn start(
        command: &GuardCommand,
        minor: u32,
        limit: Duration,
    ) -> Result<Self, LiveError> {
        let failed = |why: String| LiveError::Guard { why };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mark = format!("{minor}-{}-{}", process::id(), since.as_nanos());
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .env(MARK, &mark)
            .args([minor.to_string(), limit.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What ends us from a terminal does not end it.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", command.program.display())))?;
        let (orders, stdout) = (child.stdin.take(), child.stdout.take());
        let answers = listen(stdout);
        let child = Some(child);
        let mut this =
            Self { child, orders, answers, minor: Minor(minor), limit, mark, frozen: false };
        match this.hear(limit + SLACK) {
            Ok(Answer::Ready) => Ok(this),
            Ok(Answer::Failed(why)) => Err(failed(why)),
            Ok(other) => Err(failed(format!("it said {other}"))),
            Err(error) => Err(error),
        }
    }

    pub(super) fn suspend(&mut self) -> Result<(), LiveError> {
        self.frozen = true;
        self.ask(Order::Suspend, |answer| (*answer == Answer::Suspended).then_some(()))
    }

    pub(super) fn clear(&mut self) -> Result<(), LiveError> {
        self.ask(Order::Clear, |answer| (*answer == Answer::Cleared).then_some(()))
    }

    pub(super) fn resume(&mut self) -> Result<Duration, LiveError> {
        self.ask(Order::Resume, |answer| match answer {
            Answer::Resumed(frozen) => Some(*frozen),
            _ => None,
        })
    }

    fn ask<T>(
        &mut self,
        order: Order,
        wanted: impl Fn(&Answer) -> Option<T>,
    ) -> Result<T, LiveError> {
        let failed = |why: String| LiveError::Guard { why };
        let orders = self.orders.as_mut().ok_or_else(|| failed("it has ended".to_owned()))?;
        let sent = writeln!(orders, "{order}").and_then(|()| orders.flush());
        // One that has let go before says so, and may have ended since. What it says of a failure is
        // worth waiting for: it comes once the device goes on for good.
        let answer = self.hear(RELEASE_FOR)?;
        match (wanted(&answer), answer) {
            (Some(wanted), _) => sent.map(|()| wanted).map_err(|error| failed(error.to_string())),
            (None, Answer::Fired) => Err(LiveError::TooSlow { limit: self.limit }),
            (None, Answer::Stuck(why)) => Err(self.stuck(why)),
            (None, Answer::Failed(why)) => Err(failed(why)),
            (None, other) => Err(failed(format!("to {order} it said {other}"))),
        }
    }

    fn hear(&mut self, patience: Duration) -> Result<Answer, LiveError> {
        let (started, minor) = (Instant::now(), self.minor.0);
        let answer = loop {
            let left = patience.saturating_sub(started.elapsed());
            match self.answers.recv_timeout(left.min(RELEASE_TELL)) {
                Err(RecvTimeoutError::Timeout) if started.elapsed() < patience => {
                    tracing::warn!(minor, "waiting until it is certain that I/O has resumed");
                }
                other => break other,
            }
        };
        let answer = answer.map_err(|_| LiveError::Guard { why: "it says nothing".to_owned() })?;
        // Whatever it says after it let go of the device.
        if matches!(answer, Answer::Resumed(_) | Answer::Fired | Answer::Failed(_)) {
            self.frozen = false;
        }
        Ok(answer)
    }

    fn stuck(&self, why: String) -> LiveError {
        LiveError::MaybeSuspended { minor: self.minor.0, why }
    }

    /// Lets the guard end, and makes sure that the device goes on.
    ///
    /// # Errors
    ///
    /// [`LiveError::MaybeSuspended`] if that is not known.
    pub(super) fn release(&mut self) -> Result<(), LiveError> {
        self.orders = None;
        let (started, minor) = (Instant::now(), self.minor.0);
        while std::mem::take(&mut self.frozen) {
            match self.answers.recv_timeout(RELEASE_TELL) {
                Ok(Answer::Resumed(_) | Answer::Fired | Answer::Failed(_)) => {}
                Ok(Answer::Stuck(why)) => return Err(self.stuck(why)),
                Ok(Answer::Ready | Answer::Suspended | Answer::Cleared) => self.frozen = true,
                Err(RecvTimeoutError::Timeout) if started.elapsed() < RELEASE_FOR => {
                    tracing::warn!(minor, "waiting until it is certain that I/O has resumed");
                    self.frozen = true;
                }
                // It was killed: there is nobody else now, but what it has started.
                Err(_) => {
                    let group = self.child.as_ref().map(Child::id);
                    let brood = Brood { group, mark: Some(self.mark.clone()) };
                    let mut device = RealDevice::new(self.minor, brood);
                    return let_go(&mut device).map_err(|why| self.stuck(why));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!("{error}");
        }
        // It ends by itself now. Somebody has to wait for it, and it need not be us.
        if let Some(mut child) = self.child.take() {
            let wait = move || drop(child.wait());
            let _ = thread::Builder::new().name("guard end".to_owned()).spawn(wait);
        }
    }
}

fn listen(stdout: Option<ChildStdout>) -> Receiver<Answer> {
    let (sender, answers) = mpsc::channel();
    let read = move || {
        let lines = stdout.map(|stdout| BufReader::new(stdout).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            let Ok(answer) = line.parse() else { return };
            if sender.send(answer).is_err() {
                return;
            }
        }
    };
    // Without it nothing is ever heard.
    let _ = thread::Builder::new().name("guard".to_owned()).spawn(read);
    answers
}
