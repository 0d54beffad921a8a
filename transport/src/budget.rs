//! The memory of data on its way: one bound for all sessions of a process.
//!
//! A session may hold up to twice what is left for others. So one alone gets two thirds of all,
//! several get equal parts, and none can take so much that a newcomer finds nothing. What a slow
//! peer leaves lying cannot be taken back, so each session has a little of its own besides: it never
//! waits for others alone.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::{Notify, futures::Notified};

/// Bytes that all sessions of this process share. One alone may have 26 MiB, which at a round trip
/// of 25 ms is 1 GiB/s.
pub(crate) static ALL: Budget = Budget::new(40 << 20);

/// Bytes that a session may hold however little is left: a batch is being applied while another
/// arrives.
const OWN_MIN: u64 = 2 << 20;

/// Bytes that are shared.
#[derive(Debug)]
pub(crate) struct Budget {
    len: u64,
    used: Mutex<u64>,
    freed: Condvar,
    told: Notify,
}

/// What one session holds of a budget.
#[derive(Debug)]
pub(crate) struct Share {
    budget: &'static Budget,
    held: AtomicU64,
}

/// Bytes that a session holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    share: Arc<Share>,
    len: u64,
}

impl Budget {
    pub(crate) const fn new(len: u64) -> Self {
        Self { len, used: Mutex::new(0), freed: Condvar::new(), told: Notify::const_new() }
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that holds nothing yet.
    pub(crate) fn share(&'static self) -> Arc<Share> {
        Arc::new(Share { budget: self, held: AtomicU64::new(0) })
    }
}

impl Share {
    /// Whether `len` more bytes are within what this session may hold.
    fn may(&self, used: u64, len: u64) -> bool {
        let held = self.held.load(Relaxed);
        let left = self.budget.len.saturating_sub(used + len);
        held == 0 || held + len <= OWN_MIN.max(2 * left)
    }

    /// A permit for nothing.
    pub(crate) fn none(self: &Arc<Self>) -> Permit {
        Permit { share: self.clone(), len: 0 }
    }

    /// Takes `len` bytes, if they are within what this session may hold.
    pub(crate) fn try_take(self: &Arc<Self>, len: u64) -> Option<Permit> {
        self.take_of(&mut self.budget.used(), len)
    }

    fn take_of(self: &Arc<Self>, used: &mut u64, len: u64) -> Option<Permit> {
        if !self.may(*used, len) {
            return None;
        }
        *used += len;
        self.held.fetch_add(len, Relaxed);
        Some(Permit { share: self.clone(), len })
    }

    /// Waits until `len` bytes are within what this session may hold, and takes them. `None`: the
    /// session is over.
    pub(crate) fn take(self: &Arc<Self>, len: u64, is_over: impl Fn() -> bool) -> Option<Permit> {
        let mut used = self.budget.used();
        loop {
            if is_over() {
                return None;
            }
            if let Some(permit) = self.take_of(&mut used, len) {
                return Some(permit);
            }
            used = self.budget.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`try_take`](Self::try_take) would succeed now.
    pub(crate) fn may_take(&self, len: u64) -> bool {
        self.may(*self.budget.used(), len)
    }

    /// Ends when any session has given something back.
    pub(crate) fn freed(&self) -> Notified<'static> {
        self.budget.told.notified()
    }
}

impl Permit {
    /// Gives `len` of its bytes back.
    pub(crate) fn give(&mut self, len: u64) {
        debug_assert!(len <= self.len);
        let len = len.min(self.len);
        self.len -= len;
        let budget = self.share.budget;
        let mut used = budget.used();
        *used -= len;
        self.share.held.fetch_sub(len, Relaxed);
        drop(used);
        budget.freed.notify_all();
        budget.told.notify_waiters();
    }

    /// Keeps at most `len` of its bytes.
    pub(crate) fn keep(&mut self, len: u64) {
        self.give(self.len.saturating_sub(len));
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// Holds the bytes of another one of the same session as well.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.len += std::mem::take(&mut other.len);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give(self.len);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(mib: u64) -> &'static Budget {
        Box::leak(Box::new(Budget::new(mib * MIB)))
    }

    /// Takes as much as it can, a batch at a time.
    fn fill(share: &Arc<Share>) -> Permit {
        let mut permit = share.none();
        while let Some(more) = share.try_take(MIB) {
            permit.join(more);
        }
        permit
    }

    #[test]
    fn one_has_most_and_whoever_comes_later_finds_some() {
        let budget = budget(48);
        let shares: Vec<_> = (0..16).map(|_| budget.share()).collect();
        let permits: Vec<_> = shares.iter().map(fill).collect();
        let held: Vec<_> = permits.iter().map(|permit| permit.len / MIB).collect();
        assert_eq!(held[..4], [32, 10, 4, 2]);
        assert!(held[4..].iter().all(|held| *held == 2), "{held:?}");
        assert!(*budget.used() <= (48 + 16 * 2) * MIB);
        drop(permits);
        assert_eq!(*budget.used(), 0);
        // Once the first gives back, all have the same.
        let mut permits: Vec<_> = shares.iter().map(|share| share.none()).collect();
        for _ in 0..48 {
            for (share, permit) in shares.iter().zip(&mut permits) {
                share.try_take(MIB / 4).into_iter().for_each(|more| permit.join(more));
            }
        }
        let (min, max) = (permits.iter().map(|p| p.len).min(), permits.iter().map(|p| p.len).max());
        assert!(
            max.unwrap() - min.unwrap() <= MIB / 4 && min.unwrap() > 2 * MIB,
            "{min:?} {max:?}"
        );
    }

    #[test]
    fn who_holds_nothing_never_waits() {
        let budget = budget(1);
        let (full, empty) = (budget.share(), budget.share());
        let _held = full.try_take(100 * MIB).unwrap();
        assert!(full.try_take(1).is_none());
        let permit = empty.try_take(100 * MIB).unwrap();
        assert!(!empty.may_take(1));
        drop(permit);
        assert!(empty.may_take(1));
    }

    #[test]
    fn who_waits_hears_of_what_is_given_back_and_of_the_end() {
        let budget = budget(8);
        let (one, other) = (budget.share(), budget.share());
        let (held, mut own) = (one.try_take(16 * MIB).unwrap(), other.try_take(2 * MIB).unwrap());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| other.take(MIB, || false));
            drop(held);
            let more = waiting.join().unwrap().expect("there is room");
            assert_eq!(more.len, MIB);
            own.join(more);
        });
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| other.take(8 * MIB, || over.load(Relaxed)));
            over.store(true, Relaxed);
            own.give(1);
            assert!(waiting.join().unwrap().is_none());
        });
    }
}
