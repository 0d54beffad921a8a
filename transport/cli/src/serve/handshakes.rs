//! Connections that have not proven a key yet: bounded, and none keeps another out.
//!
//! When there is no room, the newcomer takes the place of the one that has said least, and among
//! these of the oldest. Who has come just now has not said too little yet. A peer that speaks the
//! protocol gets past the others within a round trip.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use driftline_transport::Progress;
use driftline_wire::HELLO_LEN;
use tokio_util::sync::CancellationToken;

/// A hello and the first message of the handshake: a frame's header, and 96 bytes of Noise IK.
const FIRST_WORDS_LEN: u64 = HELLO_LEN as u64 + 24 + 96;

/// All unfinished handshakes.
#[derive(Debug)]
pub(super) struct Handshakes {
    max: usize,
    per_address: usize,
    /// How long a newcomer has for its hello before it counts as one that says nothing.
    grace: Duration,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    /// Oldest first.
    all: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    from: IpAddr,
    since: Instant,
    progress: Arc<Progress>,
    gave_way: CancellationToken,
}

/// How far a handshake is, by what was heard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Said {
    Nothing,
    PartOfHello,
    Hello,
    /// What only a peer with one of our keys has said, or one that has recorded it.
    FirstWords,
}

/// A place among the unfinished handshakes; free again when dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    handshakes: Arc<Handshakes>,
    id: u64,
    gave_way: CancellationToken,
}

impl Handshakes {
    pub(super) fn new(max: usize, per_address: usize, grace: Duration) -> Self {
        Self { max, per_address, grace, pending: Mutex::default() }
    }

    /// A place for a newcomer, and whether another one had to give way. `None`: all that are there
    /// are about to be let in.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        progress: Arc<Progress>,
    ) -> Option<(Handshake, bool)> {
        let from = source_of(address);
        let mut pending = self.pending();
        let same = pending.all.iter().filter(|entry| entry.from == from).count();
        let alike = same >= self.per_address;
        let is_full = alike || pending.all.len() >= self.max;
        if is_full {
            let candidates = pending.all.iter().enumerate();
            let candidates = candidates.filter(|(_, entry)| !alike || entry.from == from);
            let (at, said) = candidates
                .map(|(at, entry)| (at, entry.said(self.grace)))
                .min_by_key(|(at, said)| (*said, *at))?;
            if said == Said::FirstWords {
                return None;
            }
            pending.all.remove(at).gave_way.cancel();
        }
        let (id, gave_way) = (pending.next, CancellationToken::new());
        pending.next += 1;
        let (since, gave) = (Instant::now(), gave_way.clone());
        pending.all.push(Entry { id, from, since, progress, gave_way: gave });
        drop(pending);
        Some((Handshake { handshakes: self.clone(), id, gave_way }, is_full))
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn said(&self, grace: Duration) -> Said {
        match self.progress.snapshot().received {
            len if len < HELLO_LEN as u64 && self.since.elapsed() < grace => Said::Hello,
            0 => Said::Nothing,
            len if len < HELLO_LEN as u64 => Said::PartOfHello,
            len if len < FIRST_WORDS_LEN => Said::Hello,
            _ => Said::FirstWords,
        }
    }
}

impl Handshake {
    /// Waits until a newcomer takes this place.
    pub(super) async fn gave_way(&self) {
        self.gave_way.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.handshakes.pending().all.retain(|entry| entry.id != self.id);
    }
}

/// Whom an address belongs to: a host of IPv6 has a whole /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has said so many bytes.
    fn said(bytes: u64) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        progress.add_received(bytes);
        progress
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_oldest_of_those_that_said_least_gives_way() {
        let all = Arc::new(Handshakes::new(4, 4, Duration::ZERO));
        let enter = |bytes| all.enter(address(1), said(bytes)).expect("there is room");
        let first = [16, 0, 3, 0].map(enter);
        assert!(first.iter().all(|(_, dropped)| !dropped));
        let gone = || first.each_ref().map(|(place, _)| place.gave_way.is_cancelled());
        let mut newcomers = Vec::new();
        for expected in [
            [false, true, false, false],
            [false, true, false, true],
            [false, true, true, true],
            [true, true, true, true],
        ] {
            let (newcomer, dropped) = enter(200);
            assert!(dropped);
            newcomers.push(newcomer);
            assert_eq!(gone(), expected);
        }
        // All that are left are about to be let in.
        assert!(all.enter(address(2), said(0)).is_none());
        drop(newcomers.pop());
        assert!(all.enter(address(2), said(0)).is_some());
    }

    /// Whoever sends garbage at once outlives nobody whose hello is on its way.
    #[test]
    fn a_newcomer_has_time_for_its_hello() {
        let all = Arc::new(Handshakes::new(3, 3, Duration::from_secs(3600)));
        let enter = |bytes| all.enter(address(1), said(bytes)).expect("there is room").0;
        let [garbage, newcomer, other] = [20, 0, 0].map(enter);
        let _next = enter(0);
        let gone = [&garbage, &newcomer, &other].map(|place| place.gave_way.is_cancelled());
        assert_eq!(gone, [true, false, false]);
    }

    #[test]
    fn one_address_takes_no_place_of_another() {
        let all = Arc::new(Handshakes::new(8, 2, Duration::ZERO));
        let (other, _) = all.enter(address(2), said(0)).unwrap();
        let places: Vec<_> = (0..100).map(|_| all.enter(address(1), said(0)).unwrap().0).collect();
        assert_eq!(all.pending().all.len(), 3);
        assert!(!other.gave_way.is_cancelled());
        assert!(places[..98].iter().all(|place| place.gave_way.is_cancelled()));
        drop((places, other));
        assert!(all.pending().all.is_empty());

        let ip = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:0:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    }
}
