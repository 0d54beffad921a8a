//! The steps of a snapshot for which the device is frozen, in their order, and what is undone
//! where one fails.
//!
//! * Nothing is cleared before there is a snapshot of what was recorded.
//! * A snapshot is marked only after all else went well, and only a marked one is ever taken for
//!   the instant at which the bitmap was cleared. So whoever dies between two steps leaves one
//!   that is removed, and the next increment compares everything.
//! * The device goes on before anything else is done about a failure.

use std::time::Duration;

use super::LiveError;

/// What is done to the world. The guard does the first, the third and the fourth.
pub(super) trait Steps {
    /// Nothing is written from here on, and nothing is on its way.
    fn suspend(&mut self) -> Result<(), LiveError>;
    /// A snapshot of data and metadata.
    fn take(&mut self) -> Result<(), LiveError>;
    /// The bitmap is cleared, under a new current UUID.
    fn clear(&mut self) -> Result<(), LiveError>;
    /// The device goes on; for how long it was frozen.
    fn resume(&mut self) -> Result<Duration, LiveError>;
    /// Makes sure that the device goes on, whatever was said, or says that it may not.
    fn release(&mut self) -> Result<(), LiveError>;
    /// The current UUID in the snapshot, which is a good one.
    fn examine(&mut self) -> Result<u64, LiveError>;
    /// The snapshot is that at which the bitmap was cleared.
    fn mark(&mut self, uuid: u64) -> Result<(), LiveError>;
    /// The snapshot goes, as far as it is there.
    fn remove(&mut self);
}

/// Takes a snapshot while the device is frozen, and with `clear` starts its bitmap anew at that
/// instant. Returns for how long it was frozen.
pub(super) fn rotate(steps: &mut impl Steps, clear: bool) -> Result<Duration, LiveError> {
    let done = freeze(steps, clear).and_then(|frozen| {
        if clear {
            let uuid = steps.examine()?;
            steps.mark(uuid)?;
        }
        Ok(frozen)
    });
    if done.is_err() {
        let released = steps.release();
        steps.remove();
        // That it may be suspended is worse than whatever failed.
        released?;
    }
    done
}

fn freeze(steps: &mut impl Steps, clear: bool) -> Result<Duration, LiveError> {
    steps.suspend()?;
    steps.take()?;
    if clear {
        steps.clear()?;
    }
    steps.resume()
}
