//! The target's worker: begins, looks up, applies and commits. Blocking, on a thread of its
//! own.

use driftline_extent::{Begin, Committed, Finish, Item, Offer, Reason, Target};
use driftline_wire::{Arrived, Unpacker, split_data};

use crate::Failure;

/// Carries the receiver's wishes out on a target.
pub struct Worker<T> {
    target: T,
    unpacker: Unpacker,
}

impl<T: Target> Worker<T> {
    /// A worker for this target.
    pub fn new(target: T) -> Result<Self, Failure> {
        Ok(Self { target, unpacker: Unpacker::new()? })
    }

    /// Gives the target back.
    pub fn into_target(self) -> T {
        self.target
    }

    /// Begins an increment.
    pub fn begin(&mut self, offer: &Offer) -> Result<Begin, Failure> {
        self.target.begin(offer).map_err(|e| Failure::from_error(&e))
    }

    /// Which items of a batch are lacking.
    pub fn look_up(&mut self, items: &[Item]) -> Result<Vec<bool>, Failure> {
        self.target.lacks(items).map_err(|e| Failure::from_error(&e))
    }

    /// Applies a batch that has arrived whole.
    pub fn apply(&mut self, arrived: &Arrived) -> Result<(), Failure> {
        let unpacked = self.unpacker.unpack(&arrived.parts);
        let data = unpacked.map_err(|e| Failure::new(Reason::Failed, format!("bad data: {e}")))?;
        let Arrived { batch, wants, watermark, .. } = arrived;
        for ((item, data), wanted) in split_data(&batch.items, wants, &data).zip(wants) {
            // The chunks of a span that differs come later, as items of their own.
            if *wanted && matches!(item, Item::Span { .. }) {
                continue;
            }
            self.target.apply(item, data).map_err(|e| Failure::from_error(&e))?;
        }
        self.target.mark(*watermark).map_err(|e| Failure::from_error(&e))
    }

    /// Commits the increment.
    pub fn commit(&mut self, finish: &Finish) -> Result<Committed, Failure> {
        self.target.commit(finish).map_err(|e| Failure::from_error(&e))
    }
}

impl<T> std::fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Worker")
    }
}
