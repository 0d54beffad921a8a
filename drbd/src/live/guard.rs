//! What holds a device frozen, and lets go of it whatever happens to the one who asked.
//!
//! It runs as a process of its own. Only this process suspends, clears and resumes, so that no
//! two of these can overtake each other: one who is killed leaves no command behind that takes
//! effect after the device was resumed. It resumes when it is told to, when the one who asked is
//! gone, and when its time is up. A command to suspend that it had to give up may take effect later:
//! it looks at the device until that command and all that it started have ended.

use std::{
    fmt,
    fs::{File, TryLockError},
    io::{self, BufRead as _, Write as _},
    str::FromStr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::host::{HostError, Minor, group::Brood};

/// How often requests that are on their way are counted while they are waited for.
const POLL: Duration = Duration::from_millis(5);

/// How long one attempt to resume may take, and until when they are made again and again.
const RESUME_PATIENCE: Duration = Duration::from_secs(5);
const RESUME_FOR: Duration = Duration::from_secs(600);
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// For how long a device is looked at whose suspend was not heard of, although nothing of it seems to
/// be left.
const UNHEARD_FOR: Duration = Duration::from_secs(15);

/// Until when a device is looked at that a command may suspend yet, and how often.
const LOOK_FOR: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Where the lock of each guard is, and how long one waits for another.
const LOCKS: &str = "/run";
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

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
    /// Something failed. The device goes on.
    Failed(String),
    /// Whether the device goes on is not known.
    Stuck(String),
}

/// A device that may be suspended.
pub(super) trait Device {
    fn resume(&mut self, within: Duration) -> Result<(), HostError>;
    fn is_suspended(&mut self) -> Result<bool, HostError>;
    /// Whether a command is still at work that was started to suspend it, and was given up.
    fn is_at_work(&mut self) -> bool;
    /// Time since some instant.
    fn now(&self) -> Duration;
    fn pause(&mut self, time: Duration);
}

/// What it does, and what it is told.
pub(super) trait Panel: Device {
    /// Waits for an order, for so long at most.
    fn order(&mut self, within: Option<Duration>) -> Option<Order>;
    fn answer(&mut self, answer: Answer);
    fn suspend(&mut self, within: Duration) -> Result<(), HostError>;
    fn in_flight(&mut self) -> Result<u64, HostError>;
    fn clear(&mut self, within: Duration) -> Result<(), HostError>;
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
    let resumed = resume(panel).map_err(|error| format!("it could not be resumed: {error}"));
    let frozen = panel.now().saturating_sub(started);
    // Nobody says when a suspend takes effect that was not heard of.
    let at_least = if let Held::Unheard(_) = ended { UNHEARD_FOR } else { Duration::ZERO };
    match (ended, resumed.and_then(|()| look_again(panel, at_least))) {
        (_, Err(why)) => Answer::Stuck(why),
        (Held::Done, Ok(())) => Answer::Resumed(frozen),
        (Held::TimeUp, Ok(())) => Answer::Fired,
        (Held::Failed(error) | Held::Unheard(error), Ok(())) => Answer::Failed(error),
    }
}

enum Held {
    /// It was told to resume, or nobody is there to tell.
    Done,
    TimeUp,
    Failed(String),
    /// The suspend itself failed, or was given up.
    Unheard(String),
}

/// Suspends, and obeys until it is time to resume.
fn held(panel: &mut impl Panel, end: Duration) -> Held {
    let failed = |error: HostError| Held::Failed(error.to_string());
    let Some(within) = left(panel, end) else { return Held::TimeUp };
    if let Err(error) = panel.suspend(within) {
        return Held::Unheard(error.to_string());
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
fn resume(device: &mut impl Device) -> Result<(), HostError> {
    let end = device.now() + RESUME_FOR;
    loop {
        match device.resume(RESUME_PATIENCE) {
            // Nobody installs it meanwhile.
            Err(error @ HostError::Missing { .. }) => return Err(error),
            Err(_) if device.now() < end => device.pause(RESUME_PAUSE),
            other => return other,
        }
    }
}

/// Resumes, and sees to it that the device goes on; otherwise says why that is not known.
pub(super) fn let_go(device: &mut impl Device) -> Result<(), String> {
    resume(device).map_err(|error| format!("it could not be resumed: {error}"))?;
    look_again(device, UNHEARD_FOR)
}

/// Looks whether the device, which was resumed, goes on. A command to suspend it that was given up
/// may take effect later, so that it is looked at until there is none, for this long at least, and
/// resumed each time.
fn look_again(device: &mut impl Device, at_least: Duration) -> Result<(), String> {
    let (end, quiet) = (device.now() + LOOK_FOR, device.now() + at_least);
    loop {
        // What has ended before the device is looked at has taken effect by then.
        let at_work = device.is_at_work();
        let why = match device.is_suspended() {
            Ok(false) if !at_work && device.now() >= quiet => return Ok(()),
            Ok(false) => {
                "a command to suspend it that was given up is still at work, and may suspend it \
                 when it ends"
                    .to_owned()
            }
            Ok(true) => match resume(device) {
                Ok(()) => "it was suspended again each time".to_owned(),
                Err(error) => return Err(format!("it could not be resumed: {error}")),
            },
            Err(error) => format!("whether it goes on cannot be seen: {error}"),
        };
        if device.now() >= end {
            return Err(why);
        }
        device.pause(LOOK_PAUSE);
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
            Self::Stuck(why) => write!(f, "stuck {}", why.replace('\n', " ")),
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
            ("stuck", why) => Ok(Self::Stuck(why.to_owned())),
            _ => Err(()),
        }
    }
}

/// The process itself: orders on its standard input, answers on its standard output.
struct Process {
    device: RealDevice,
    orders: Receiver<Order>,
}

/// A device, and what was started to suspend it.
pub(super) struct RealDevice {
    minor: Minor,
    brood: Brood,
    started: Instant,
}

impl RealDevice {
    pub(super) fn new(minor: Minor, brood: Brood) -> Self {
        Self { minor, brood, started: Instant::now() }
    }
}

impl Device for RealDevice {
    fn resume(&mut self, within: Duration) -> Result<(), HostError> {
        self.minor.resume(within)
    }

    fn is_suspended(&mut self) -> Result<bool, HostError> {
        self.minor.is_suspended()
    }

    fn is_at_work(&mut self) -> bool {
        self.brood.is_at_work()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
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
    let lock = match lock(minor, LOCK_PATIENCE) {
        Ok(lock) => lock,
        Err(why) => return say(&Answer::Failed(why)),
    };
    // Without it nobody is ever there, and nothing is ever suspended.
    if thread::Builder::new().name("orders".to_owned()).spawn(read).is_ok() {
        let device = RealDevice::new(Minor(minor), Brood::own());
        let mut process = Process { device, orders };
        guard(&mut process, limit);
    }
    drop(lock);
}

/// Waits until no other guard has this device. One whose run was killed may look at it still, and
/// would resume what this one suspends. Where no lock can be made nothing can be suspended either.
fn lock(minor: u32, patience: Duration) -> Result<Option<File>, String> {
    let path = format!("{LOCKS}/driftline-drbd{minor}.guard");
    let Ok(file) = File::options().create(true).append(true).open(&path) else { return Ok(None) };
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => {
                thread::sleep(LOOK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "the guard of an earlier run has not let go of the device: it holds {path}"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(format!("{path}: {error}")),
        }
    }
}

fn say(answer: &Answer) {
    // Whoever does not read it is gone, which is noticed as such.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
}

impl Device for Process {
    fn resume(&mut self, within: Duration) -> Result<(), HostError> {
        self.device.resume(within)
    }

    fn is_suspended(&mut self) -> Result<bool, HostError> {
        self.device.is_suspended()
    }

    fn is_at_work(&mut self) -> bool {
        self.device.is_at_work()
    }

    fn now(&self) -> Duration {
        self.device.now()
    }

    fn pause(&mut self, time: Duration) {
        self.device.pause(time);
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
        say(&answer);
    }

    fn suspend(&mut self, within: Duration) -> Result<(), HostError> {
        self.device.minor.suspend(within)
    }

    fn in_flight(&mut self) -> Result<u64, HostError> {
        self.device.minor.in_flight()
    }

    fn clear(&mut self, within: Duration) -> Result<(), HostError> {
        self.device.minor.clear(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the guard of a run that was killed would resume what the next one suspends.
    #[test]
    fn no_two_guards_have_one_device() {
        let minor = 1_048_570;
        let short = Duration::from_millis(50);
        let Some(first) = lock(minor, short).unwrap() else {
            return eprintln!("skipped: there is no lock in {LOCKS} without being root");
        };
        let why = lock(minor, short).unwrap_err();
        assert!(why.contains("earlier run") && why.contains("1048570.guard"), "{why}");
        drop(first);
        assert!(lock(minor, short).unwrap().is_some());
        let _ = std::fs::remove_file(format!("{LOCKS}/driftline-drbd{minor}.guard"));
    }
}
