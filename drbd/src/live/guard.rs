//! What holds a device frozen, and lets go of it whatever happens to the one who asked.
//!
//! It runs as a process of its own. Only this process suspends, clears and resumes, so that no
//! two of these can overtake each other: one who is killed leaves no command behind that takes
//! effect after the device was resumed. It resumes when it is told to, when the one who asked is
//! gone, and when its time is up.

use std::{
    fmt,
    io::{self, BufRead as _, Write as _},
    str::FromStr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::host::{HostError, Minor};

/// How often requests that are on their way are counted while they are waited for.
const POLL: Duration = Duration::from_millis(5);

/// How long one attempt to resume may take, and until when they are made again and again.
const RESUME_PATIENCE: Duration = Duration::from_secs(5);
const RESUME_FOR: Duration = Duration::from_secs(600);
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// What it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Suspend, and wait for what is on its way.
    Suspend,
    /// Clear the bitmap, under a new current UUID.
    Clear,
    /// Resume.
    Resume,
    /// Nobody is there any more.
    Gone,
}

/// What it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// It waits for orders.
    Ready,
    /// Nothing is written until it resumes.
    Suspended,
    /// The bitmap was cleared while nothing was written.
    Cleared,
    /// The device goes on, after it was frozen for so long.
    Resumed(Duration),
    /// The device goes on, as the time was up. It says so at once, and does nothing more.
    Fired,
    /// Something failed.
    Failed(String),
}

/// What it does, and what it is told.
pub(super) trait Panel {
    /// Waits for an order, for so long at most.
    fn order(&mut self, within: Option<Duration>) -> Option<Order>;
    fn answer(&mut self, answer: Answer);
    fn suspend(&mut self, within: Duration) -> Result<(), HostError>;
    fn in_flight(&mut self) -> Result<u64, HostError>;
    fn clear(&mut self, within: Duration) -> Result<(), HostError>;
    fn resume(&mut self, within: Duration) -> Result<(), HostError>;
    /// Time since some instant.
    fn now(&self) -> Duration;
    fn pause(&mut self, time: Duration);
}

/// Does what it is told until nobody is there any more, and holds nothing frozen for longer than
/// `limit`.
pub(super) fn guard(panel: &mut impl Panel, limit: Duration) {
    panel.answer(Answer::Ready);
    loop {
        match panel.order(None) {
            Some(Order::Suspend) => {
                let answer = freeze(panel, limit);
                panel.answer(answer);
            }
            Some(Order::Clear | Order::Resume) => {
                panel.answer(Answer::Failed("nothing is suspended".to_owned()));
            }
            Some(Order::Gone) | None => return,
        }
    }
}

/// From suspended to resumed. Every way out of it resumes.
fn freeze(panel: &mut impl Panel, limit: Duration) -> Answer {
    let started = panel.now();
    let ended = held(panel, started + limit);
    let resumed = resume(panel);
    let frozen = panel.now().saturating_sub(started);
    match (ended, resumed) {
        (_, Err(error)) => Answer::Failed(format!("the device could not be resumed: {error}")),
        (Held::Done, Ok(())) => Answer::Resumed(frozen),
        (Held::TimeUp, Ok(())) => Answer::Fired,
        (Held::Failed(error), Ok(())) => Answer::Failed(error),
    }
}

enum Held {
    /// It was told to resume, or nobody is there to tell.
    Done,
    TimeUp,
    Failed(String),
}

/// Suspends, and obeys until it is time to resume.
fn held(panel: &mut impl Panel, end: Duration) -> Held {
    let failed = |error: HostError| Held::Failed(error.to_string());
    let Some(within) = left(panel, end) else { return Held::TimeUp };
    if let Err(error) = panel.suspend(within) {
        return failed(error);
    }
    loop {
        match panel.in_flight() {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return failed(error),
        }
        if left(panel, end).is_none() {
            return Held::TimeUp;
        }
        match panel.order(Some(POLL)) {
            None => {}
            Some(Order::Gone) => return Held::Done,
            Some(_) => return Held::Failed("an order came too early".to_owned()),
        }
    }
    panel.answer(Answer::Suspended);
    loop {
        let Some(within) = left(panel, end) else { return Held::TimeUp };
        match panel.order(Some(within)) {
            None => return Held::TimeUp,
            Some(Order::Resume | Order::Gone) => return Held::Done,
            Some(Order::Suspend) => return Held::Failed("it is suspended already".to_owned()),
            Some(Order::Clear) => {
                let Some(within) = left(panel, end) else { return Held::TimeUp };
                match panel.clear(within) {
                    Ok(()) => panel.answer(Answer::Cleared),
                    Err(error) => return failed(error),
                }
            }
        }
    }
}

/// How much time there is left.
fn left(panel: &impl Panel, end: Duration) -> Option<Duration> {
    end.checked_sub(panel.now()).filter(|left| !left.is_zero())
}

/// Resumes, again and again if need be: nothing else is worth anything until that is done.
fn resume(panel: &mut impl Panel) -> Result<(), HostError> {
    let end = panel.now() + RESUME_FOR;
    loop {
        match panel.resume(RESUME_PATIENCE) {
            Err(_) if panel.now() < end => panel.pause(RESUME_PAUSE),
            other => return other,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suspend => "suspend",
            Self::Clear => "clear",
            Self::Resume => "resume",
            Self::Gone => "gone",
        })
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [Self::Suspend, Self::Clear, Self::Resume, Self::Gone];
        all.into_iter().find(|order| order.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Suspended => f.write_str("suspended"),
            Self::Cleared => f.write_str("cleared"),
            Self::Resumed(frozen) => write!(f, "resumed {}", frozen.as_micros()),
            Self::Fired => f.write_str("fired"),
            Self::Failed(why) => write!(f, "failed {}", why.replace('\n', " ")),
        }
    }
}

impl FromStr for Answer {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ready", _) => Ok(Self::Ready),
            ("suspended", _) => Ok(Self::Suspended),
            ("cleared", _) => Ok(Self::Cleared),
            ("resumed", micros) => micros
                .parse()
                .map(|micros| Self::Resumed(Duration::from_micros(micros)))
                .map_err(drop),
            ("fired", _) => Ok(Self::Fired),
            ("failed", why) => Ok(Self::Failed(why.to_owned())),
            _ => Err(()),
        }
    }
}

/// The process itself: orders on its standard input, answers on its standard output.
struct Process {
    minor: Minor,
    orders: Receiver<Order>,
    started: Instant,
}

/// Obeys the orders on standard input about the device of this minor, until that is closed.
pub fn guard_process(minor: u32, limit: Duration) {
    let (sender, orders) = mpsc::channel();
    let read = move || {
        for line in io::stdin().lock().lines() {
            // A line that is cut off is no order: whoever wrote it is gone.
            let order = line.ok().and_then(|line| line.parse().ok()).unwrap_or(Order::Gone);
            if sender.send(order).is_err() || order == Order::Gone {
                return;
            }
        }
    };
    // Without it nobody is ever there, and nothing is ever suspended.
    if thread::Builder::new().name("orders".to_owned()).spawn(read).is_ok() {
        let mut process = Process { minor: Minor(minor), orders, started: Instant::now() };
        guard(&mut process, limit);
    }
}

impl Panel for Process {
    fn order(&mut self, within: Option<Duration>) -> Option<Order> {
        match within {
            None => Some(self.orders.recv().unwrap_or(Order::Gone)),
            Some(within) => match self.orders.recv_timeout(within) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Order::Gone),
            },
        }
    }

    fn answer(&mut self, answer: Answer) {
        // Whoever does not read it is gone, which is noticed as such.
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
    }

    fn suspend(&mut self, within: Duration) -> Result<(), HostError> {
        self.minor.suspend(within)
    }

    fn in_flight(&mut self) -> Result<u64, HostError> {
        self.minor.in_flight()
    }

    fn clear(&mut self, within: Duration) -> Result<(), HostError> {
        self.minor.clear(within)
    }

    fn resume(&mut self, within: Duration) -> Result<(), HostError> {
        self.minor.resume(within)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}
