//! The progress of a session: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, stderr},
    sync::Arc,
    time::{Duration, Instant},
};

use driftline_transport::{Progress, Snapshot};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use crate::print::bytes;

/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often a line is logged where nobody watches.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What goes on once the source has read everything.
const FINISHING: &str = "all is read: the target writes it and reads it back";

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Show {
    /// Not at all.
    Nothing,
    /// As suits standard error: a bar for a terminal, log lines for anything else.
    Fitting,
    /// As log lines: several are shown at once.
    Lines,
}

/// Shows `progress` for as long as the future is polled.
pub(crate) async fn watch(progress: Arc<Progress>, show: Show) {
    match show {
        Show::Nothing => std::future::pending().await,
        Show::Fitting if stderr().is_terminal() => draw(&progress).await,
        Show::Fitting | Show::Lines => log(&progress).await,
    }
}

async fn draw(progress: &Progress) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let (mut known, mut finishing) = (false, false);
    let mut tick = interval(DRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The bar goes with the future, whatever way the session ends.
    let bar = ClearOnDrop(bar);
    bar.0.set_style(style("{spinner} {binary_bytes} read, {binary_bytes_per_sec} {msg}"));
    loop {
        tick.tick().await;
        let now = progress.snapshot();
        if now.expected > 0 && !known {
            known = true;
            bar.0.set_length(now.expected);
            bar.0.set_style(style(
                "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta} {msg}",
            ));
        }
        if known && now.read >= now.expected && !finishing {
            finishing = true;
            bar.0.set_style(style("{spinner} {binary_bytes} read, {msg}"));
        }
        bar.0.set_position(now.read);
        let moved = format!("{} changed, {} sent", bytes(now.announced), bytes(now.sent));
        bar.0.set_message(if finishing { format!("{moved}, {FINISHING}") } else { moved });
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn log(progress: &Progress) {
    let started = Instant::now();
    let mut tick = interval(LOG_EVERY);
    tick.tick().await;
    loop {
        tick.tick().await;
        tracing::info!("{}", line(&progress.snapshot(), started.elapsed().as_secs()));
    }
}

/// What is logged of a session after so many seconds.
fn line(now: &Snapshot, seconds: u64) -> String {
    let rate = now.read / seconds.max(1);
    let left = match now.expected {
        0 => String::new(),
        // The target's part may take as long again: nobody knows how long.
        expected if now.read >= expected => format!(", {FINISHING}"),
        expected => (expected - now.read)
            .checked_div(rate)
            .map_or_else(String::new, |left| format!(", {left} s left")),
    };
    format!(
        "{} read at {}/s, {} changed, {} sent{left}",
        bytes(now.read),
        bytes(rate),
        bytes(now.announced),
        bytes(now.sent)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_told_once_all_is_read() {
        let at = |read| Snapshot { read, expected: 100 << 20, ..Snapshot::default() };
        let told = line(&at(50 << 20), 10);
        assert!(told.ends_with(", 10 s left"), "{told}");
        let told = line(&at(100 << 20), 10);
        assert!(told.ends_with(FINISHING) && !told.contains("s left"), "{told}");
        assert!(!line(&Snapshot::default(), 10).contains("left"));
    }
}
