//! The progress of a session: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, stderr},
    sync::Arc,
    time::{Duration, Instant},
};

use driftline_transport::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use crate::print::bytes;

/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often a line is logged where nobody watches.
const LOG_EVERY: Duration = Duration::from_secs(30);

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
    let mut known = false;
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
        bar.0.set_position(now.read);
        bar.0.set_message(format!("{} changed, {} sent", bytes(now.announced), bytes(now.sent)));
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
        let now = progress.snapshot();
        let seconds = started.elapsed().as_secs().max(1);
        let rate = now.read / seconds;
        let left = now.expected.saturating_sub(now.read).checked_div(rate);
        let left = left.filter(|_| now.expected > 0).map(|left| format!(", {left} s left"));
        tracing::info!(
            "{} read at {}/s, {} changed, {} sent{}",
            bytes(now.read),
            bytes(rate),
            bytes(now.announced),
            bytes(now.sent),
            left.unwrap_or_default()
        );
    }
}
