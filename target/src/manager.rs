//! Who keeps the device of a replica: makes it, resizes it, locks it, and keeps its generations.
//!
//! A replica on a device that its storage manages (a zvol, a thin volume) has a [`DeviceManager`]. The
//! replica decides when, the manager knows how.
//!
//! # What is called when
//!
//! * An offer that is refused calls nothing but [`kept`](DeviceManager::kept).
//! * [`create`](DeviceManager::create) comes once, after the state says that a first copy began.
//! * A first copy is written between [`unlock`](DeviceManager::unlock) and [`lock`](DeviceManager::lock). An
//!   increment unlocks only when its journal is sealed.
//! * [`resize`](DeviceManager::resize) comes while the device is unlocked and open for reading only. It
//!   grows the device before anything is written beyond its end, and cuts it once the
//!   generation is committed.
//! * Once a generation is committed: cut, lock, [`keep`](DeviceManager::keep), and a note in the state
//!   that it was kept. Whatever a stop left out of this is done by the next open before anything
//!   else.

use std::io;

use driftline_extent::{Committed, Generation};

/// Manages the device that a replica is on.
///
/// Every call is whole or not at all, lasts once it returned, and may be repeated. After an
/// error the replica is opened anew.
pub trait DeviceManager: Send {
    /// Makes the device, which does not exist: at least `size` bytes long and at least one
    /// block, without space reserved for it where that is possible, all zeros, and locked. It
    /// can be opened when this returns.
    fn create(&mut self, size: u64) -> io::Result<()>;

    /// Gives the device `size` bytes, rounded up to a block, and does nothing if it has them.
    /// What is added reads as zeros, also where the device was longer before. The device shows
    /// its new length to those who open it when this returns.
    fn resize(&mut self, size: u64) -> io::Result<()>;

    /// Makes the device writable.
    fn unlock(&mut self) -> io::Result<()>;

    /// Makes the device read-only for everyone.
    fn lock(&mut self) -> io::Result<()>;

    /// Whether the device is read-only. Changes nothing.
    fn is_locked(&self) -> io::Result<bool>;

    /// Keeps what stands on the device now as a snapshot of `committed`. Does nothing if the
    /// newest snapshot is of that generation and the device was not written since: an older
    /// snapshot of the same generation is not enough.
    fn keep(&mut self, committed: &Committed) -> io::Result<()>;

    /// How many bytes can be written to the device before its storage is full, which may be before
    /// the device is; `None` if that is not known. Changes nothing.
    fn available(&self) -> io::Result<Option<u64>>;

    /// What was kept last. Changes nothing.
    fn kept(&self) -> io::Result<Kept>;
}

/// What a [`DeviceManager`] kept last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The generation of the newest snapshot that the manager made; `None` if there is none.
    pub generation: Option<Generation>,
    /// Whether the device was written or resized since that snapshot, by anyone. Without a
    /// snapshot it does not matter.
    pub written: bool,
}
