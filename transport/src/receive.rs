//! The target's worker: begins, looks up, applies and commits. Blocking, on a thread of its
//! own.

use driftline_extent::{
    Ask, Begin, Committed, Finish, Item, Missing, Offer, Reason, Target, TargetState,
};
use driftline_wire::{Arrived, Inbound, Unpacker, split_data};

use crate::Failure;

/// Carries the receiver's wishes out on a target.
pub struct Worker<T> {
    target: T,
    unpacker: Unpacker,
    /// A batch of which some items arrive once more, with its data and their places in it.
    held: Option<(Arrived, Vec<u8>, Vec<u16>)>,
}

impl<T: Target> Worker<T> {
    /// A worker for this target.
    pub fn new(target: T) -> Result<Self, Failure> {
        Ok(Self { target, unpacker: Unpacker::new()?, held: None })
    }

    /// Gives the target back.
    pub fn into_target(self) -> T {
        self.target
    }

    /// What a data set of the target holds.
    ///
    /// # Errors
    /// [`Reason::Unsupported`] if the target is no tree of data sets.
    pub fn answer(&mut self, ask: &Ask) -> Result<TargetState, Failure> {
        let answer = self.target.answer(ask).map_err(|e| Failure::from_error(&e))?;
        answer.ok_or_else(|| {
            let detail = "this target is one volume, and no tree of data sets";
            Failure::new(Reason::Unsupported, detail)
        })
    }

    /// Begins an increment.
    pub fn begin(&mut self, offer: &Offer) -> Result<Begin, Failure> {
        self.target.begin(offer).map_err(|e| Failure::from_error(&e))
    }

    /// What is lacking of the items of a batch.
    pub fn look_up(&mut self, items: &[Item]) -> Result<Vec<Missing>, Failure> {
        self.target.missing(items).map_err(|e| Failure::from_error(&e))
    }

    /// Applies a batch that has arrived whole. If there are items that what came of them does not
    /// make, nothing is applied: they must arrive once more, and these are their places.
    pub fn apply(&mut self, arrived: Arrived) -> Result<Vec<u16>, Failure> {
        let unpacked = self.unpacker.unpack(&arrived.parts);
        let data = unpacked.map_err(|e| Failure::new(Reason::Failed, format!("bad data: {e}")))?;
        let Some((first, first_data, places)) = self.held.take() else {
            let misfits = self.patch(&arrived, &data)?;
            match misfits.is_empty() {
                true => self.apply_whole(&arrived, &data, &mut std::iter::empty())?,
                false => self.held = Some((arrived, data, misfits.clone())),
            }
            return Ok(misfits);
        };
        let again = split_data(&arrived.batch.items, &arrived.inbound, &data);
        let mut again = places.into_iter().zip(again.map(|(_, _, data)| data));
        self.apply_whole(&first, &first_data, &mut again)?;
        Ok(Vec::new())
    }

    /// Makes what was narrowed; says where that was not possible.
    fn patch(&mut self, arrived: &Arrived, data: &[u8]) -> Result<Vec<u16>, Failure> {
        let mut misfits = Vec::new();
        let items = split_data(&arrived.batch.items, &arrived.inbound, data);
        for (place, (item, inbound, data)) in (0..).zip(items) {
            let Inbound::Grains(grains) = inbound else { continue };
            if !self.target.patch(item, grains, data).map_err(|e| Failure::from_error(&e))? {
                misfits.push(place);
            }
        }
        Ok(misfits)
    }

    /// Applies the items of a batch in order; `again` has the data of some, by their places.
    fn apply_whole(
        &mut self,
        arrived: &Arrived,
        data: &[u8],
        again: &mut dyn Iterator<Item = (u16, &[u8])>,
    ) -> Result<(), Failure> {
        let mut again = again.peekable();
        let items = split_data(&arrived.batch.items, &arrived.inbound, data);
        for (place, (item, inbound, data)) in (0..).zip(items) {
            let data = match inbound {
                // The chunks of a span that differs come later, as items of their own.
                Inbound::All if matches!(item, Item::Span { .. }) => continue,
                Inbound::All if !data.is_empty() => Some(data),
                Inbound::All | Inbound::Nothing => None,
                Inbound::Grains(_) => again.next_if(|next| next.0 == place).map(|next| next.1),
            };
            self.target.apply(item, data).map_err(|e| Failure::from_error(&e))?;
        }
        self.target.mark(arrived.watermark).map_err(|e| Failure::from_error(&e))
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
