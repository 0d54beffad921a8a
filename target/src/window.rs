//! The parts of streams that were seen last, so that what repeats does not move again.
//!
//! A part that the target calls held must be there when its turn comes, however much is announced
//! in between. So a use that was announced pins it; only what nobody waits for is forgotten.

use std::collections::{HashMap, VecDeque};

use driftline_extent::{ChunkId, PART_OWN_MIN};

/// Bytes of parts that are kept, pinned ones included.
pub(crate) const WINDOW_LEN: usize = 64 << 20;

/// Bytes of parts that may be pinned. What remains has room for any part that arrives.
const PINNED_MAX: usize = WINDOW_LEN / 2;

/// The shortest part that is kept, as announced lengths are counted.
const KEPT_MIN: u32 = PART_OWN_MIN as u32;

/// What is to be done for a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    /// It is made of zeros, and made here.
    Zero,
    /// It is here, or on its way for a part before this one.
    Held,
    /// It must be sent.
    Lacking,
}

/// A part that is here or on its way.
#[derive(Debug)]
struct Kept {
    len: u32,
    /// `None` until it arrives.
    bytes: Option<Box<[u8]>>,
    /// Uses that were announced and have not come.
    pins: u32,
}

/// The last parts, by name.
#[derive(Default, Debug)]
pub(crate) struct Window {
    parts: HashMap<ChunkId, Kept>,
    /// Parts that are here, oldest first.
    order: VecDeque<ChunkId>,
    /// Bytes that are here.
    len: usize,
    /// Bytes of the parts with pins, here or on their way.
    pinned: usize,
}

impl Window {
    /// Says what is to be done for a part that was announced. One that is held is pinned until
    /// it is [taken](Self::take), once for each time it is announced.
    pub(crate) fn look_up(&mut self, id: ChunkId, len: u32) -> Lookup {
        if id.is_zero() {
            return Lookup::Zero;
        }
        if len < KEPT_MIN {
            return Lookup::Lacking;
        }
        let Some(kept) = self.parts.get_mut(&id) else {
            self.parts.insert(id, Kept { len, bytes: None, pins: 0 });
            return Lookup::Lacking;
        };
        // One name for two lengths: what arrives will show which of them is a lie.
        if kept.len != len {
            return Lookup::Lacking;
        }
        if kept.pins == 0 {
            if self.pinned + len as usize > PINNED_MAX {
                return Lookup::Lacking;
            }
            self.pinned += len as usize;
        }
        kept.pins += 1;
        Lookup::Held
    }

    /// Keeps a part that has arrived and is what its name says.
    pub(crate) fn keep(&mut self, id: ChunkId, bytes: &[u8]) {
        let awaited = |kept: &&mut Kept| kept.bytes.is_none() && kept.len as usize == bytes.len();
        if self.parts.get_mut(&id).filter(awaited).is_none() {
            return;
        }
        self.make_room(bytes.len());
        if let Some(kept) = self.parts.get_mut(&id) {
            kept.bytes = Some(bytes.into());
            self.order.push_back(id);
            self.len += bytes.len();
        }
    }

    /// The bytes of a part that was called held. `None` says that it was not.
    pub(crate) fn take(&mut self, id: ChunkId) -> Option<&[u8]> {
        let kept = self.parts.get_mut(&id)?;
        kept.pins = kept.pins.checked_sub(1)?;
        if kept.pins == 0 {
            self.pinned -= kept.len as usize;
        }
        kept.bytes.as_deref()
    }

    /// Changes a bit of everything that is here.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self) {
        self.parts.values_mut().flat_map(|kept| &mut kept.bytes).for_each(|bytes| bytes[0] ^= 1);
    }

    /// Forgets the oldest parts without pins until `len` more bytes fit.
    fn make_room(&mut self, len: usize) {
        // Each part is looked at once: those with pins go to the end of the queue.
        for _ in 0..self.order.len() {
            if self.len + len <= WINDOW_LEN {
                return;
            }
            let Some(id) = self.order.pop_front() else { return };
            match self.parts.get(&id) {
                Some(kept) if kept.pins > 0 => self.order.push_back(id),
                Some(kept) => {
                    self.len -= kept.len as usize;
                    self.parts.remove(&id);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: u32 = 256 << 10;

    fn id(number: u32) -> ChunkId {
        let mut id = [1; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        ChunkId(id)
    }

    /// Announces and brings a part that nobody has seen.
    fn bring(window: &mut Window, number: u32, len: u32) {
        assert_eq!(window.look_up(id(number), len), Lookup::Lacking);
        window.keep(id(number), &vec![number as u8; len as usize]);
    }

    /// That the sums are those of the parts, and within their bounds.
    fn check(window: &Window) {
        let here = window.parts.values().filter(|kept| kept.bytes.is_some());
        assert_eq!(window.len, here.clone().map(|kept| kept.len as usize).sum::<usize>());
        assert_eq!(window.order.len(), here.count());
        let pinned = window.parts.values().filter(|kept| kept.pins > 0);
        assert_eq!(window.pinned, pinned.map(|kept| kept.len as usize).sum::<usize>());
        assert!(window.len <= WINDOW_LEN && window.pinned <= PINNED_MAX);
    }

    #[test]
    fn the_oldest_is_forgotten_and_memory_is_bounded() {
        let mut window = Window::default();
        let fits = (WINDOW_LEN / LARGE as usize) as u32;
        for number in 0..fits + 10 {
            bring(&mut window, number, LARGE);
            check(&window);
        }
        assert_eq!(window.parts.len(), fits as usize);
        for number in 0..10 {
            assert!(!window.parts.contains_key(&id(number)));
        }
        assert_eq!(window.look_up(id(10), LARGE), Lookup::Held);
        assert!(window.take(id(10)).is_some_and(|bytes| bytes == vec![10; LARGE as usize]));
        check(&window);
    }

    #[test]
    fn what_was_called_held_stays_until_it_is_taken() {
        let mut window = Window::default();
        bring(&mut window, 0, LARGE);
        assert_eq!(window.look_up(id(0), LARGE), Lookup::Held);
        assert_eq!(window.look_up(id(0), LARGE), Lookup::Held);
        for number in 1..600 {
            bring(&mut window, number, LARGE);
            check(&window);
        }
        assert!(window.take(id(0)).is_some());
        assert!(window.take(id(0)).is_some());
        assert!(window.take(id(0)).is_none(), "it was announced twice");
        (600..1000).for_each(|number| bring(&mut window, number, LARGE));
        check(&window);
        assert_eq!(window.look_up(id(0), LARGE), Lookup::Lacking, "nobody waited for it");
    }

    #[test]
    fn what_is_on_its_way_is_held() {
        let mut window = Window::default();
        assert_eq!(window.look_up(id(1), LARGE), Lookup::Lacking);
        assert_eq!(window.look_up(id(1), LARGE), Lookup::Held);
        check(&window);
        window.keep(id(1), &vec![1; LARGE as usize]);
        (2..600).for_each(|number| bring(&mut window, number, LARGE));
        assert!(window.take(id(1)).is_some());
        check(&window);
    }

    #[test]
    fn no_more_is_pinned_than_leaves_room() {
        let mut window = Window::default();
        let fits = (WINDOW_LEN / LARGE as usize) as u32;
        (0..fits).for_each(|number| bring(&mut window, number, LARGE));
        let held = (0..fits).filter(|number| window.look_up(id(*number), LARGE) == Lookup::Held);
        assert_eq!(held.count(), PINNED_MAX / LARGE as usize);
        check(&window);
        (fits..2 * fits).for_each(|number| bring(&mut window, number, LARGE));
        check(&window);
        let last = fits / 2 - 1;
        (0..=last).for_each(|number| assert!(window.take(id(number)).is_some(), "{number}"));
        check(&window);
    }

    #[test]
    fn small_parts_and_zeros_need_no_room() {
        let mut window = Window::default();
        assert_eq!(window.look_up(ChunkId::ZERO, 1), Lookup::Zero);
        for _ in 0..2 {
            assert_eq!(window.look_up(id(1), KEPT_MIN - 1), Lookup::Lacking);
            window.keep(id(1), &[1; KEPT_MIN as usize - 1]);
        }
        assert_eq!((window.len, window.parts.len()), (0, 0));
        // The same name with another length is no part that is known.
        bring(&mut window, 2, KEPT_MIN);
        assert_eq!(window.look_up(id(2), KEPT_MIN + 1), Lookup::Lacking);
        check(&window);
    }
}
