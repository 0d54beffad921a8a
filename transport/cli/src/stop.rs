//! How a run is told to stop, and what it puts in order before it ends.

use std::{io, sync::LazyLock, time::Duration};

use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::timeout,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    args::{Arguments, Command},
    exit::STOPPED,
    print::{complain, say},
    report,
};

/// How long what a run has taken in its storage (holds, snapshots, suspended I/O) may take to be
/// given back.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// What this process has in a storage and has to give back.
static HELD: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Has the end of the process wait until this is dropped.
pub(crate) fn hold() -> TaskTrackerToken {
    HELD.token()
}

/// Waits until all is given back, for a while; whether it was.
pub(crate) async fn settle() -> bool {
    HELD.close();
    timeout(SETTLE_MAX, HELD.wait()).await.is_ok()
}

/// A signal that ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    HangUp,
    Interrupt,
    Terminate,
}

impl Signal {
    /// The exit code of a process that this signal has ended, as shells say it.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::HangUp => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::HangUp => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// The signals that end a run. From the first call on they do nothing else.
pub(crate) struct Signals {
    hang_up: Stream,
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hang_up.recv() => Signal::HangUp,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    /// Ends the process at once when another signal comes.
    pub(crate) fn end_at_next(mut self) {
        tokio::spawn(async move {
            let signal = self.next().await;
            complain(format_args!("driftline: {} again: ended at once", signal.name()));
            std::process::exit(signal.exit_code().into());
        });
    }
}

/// Puts in order what a command that was stopped has left, and says how it goes on. The command
/// itself was dropped before.
pub(crate) async fn stopped(signal: Signal, signals: Signals, arguments: &Arguments) -> u8 {
    signals.end_at_next();
    let settled = settle().await;
    let name = signal.name();
    let detail = format!("stopped by {name}: {}", what_is_left(&arguments.command));
    // A map may be in the middle of its own objects.
    if arguments.json && !matches!(arguments.command, Command::Map(_)) {
        say(report::failed_json(STOPPED, &detail));
    }
    complain(format_args!("driftline: {detail}"));
    if !settled {
        complain(format_args!(
            "driftline: not all snapshots and holds of this run could be removed within {} s; the \
             next run removes them",
            SETTLE_MAX.as_secs()
        ));
    }
    signal.exit_code()
}

/// What is left of a command, and what the next run makes of that.
const fn what_is_left(command: &Command) -> &'static str {
    match command {
        Command::Push(_) | Command::Pull(_) => {
            "the replica is at its last generation; what has arrived is kept, and the next run goes \
             on from there"
        }
        Command::Restore(_) => {
            "what is being restored is of no time; run it again with --overwrite to complete it"
        }
        Command::Scrub(_) => "the next scrub begins anew",
        Command::Index(_) => "the index is not complete; run it again",
        Command::Drbd(_) => "run it again to go on where it stopped",
        Command::Keygen(_)
        | Command::AllowLoss(_)
        | Command::Serve(_)
        | Command::Map(_)
        | Command::Verify(_)
        | Command::Status(_)
        | Command::Incidents(_) => "nothing was changed",
    }
}
