//! Who has a session, and who waits for one.
//!
//! Peers are served in the order in which they came, but no key gets more than its share. A
//! session that makes no progress gives way when somebody else waits.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use driftline_transport::Progress;
use driftline_wire::PublicKey;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::limits::Limits;

/// How often somebody who waits looks for a session that has stalled.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All sessions of a listener.
#[derive(Debug)]
pub(super) struct Seats {
    limits: Limits,
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    seated: Vec<Seated>,
    /// Who waits, in the order in which they came.
    queue: VecDeque<(u64, PublicKey)>,
    /// Connections of each key, waiting or not.
    guests: HashMap<PublicKey, usize>,
}

#[derive(Debug)]
struct Seated {
    id: u64,
    key: PublicKey,
    volume: String,
    progress: Arc<Progress>,
    give_way: CancellationToken,
}

/// One connection of a key; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    seats: Arc<Seats>,
    key: PublicKey,
}

/// A session; free for another when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    id: u64,
    progress: Arc<Progress>,
    give_way: CancellationToken,
}

/// Somebody in the queue.
struct Ticket<'a> {
    seats: &'a Seats,
    id: u64,
}

impl Table {
    fn of_key(&self, key: &PublicKey) -> usize {
        self.seated.iter().filter(|seated| seated.key == *key).count()
    }

    /// Who is served next, if anybody can be.
    fn next_served(&self, limits: &Limits) -> Option<u64> {
        if self.seated.len() >= limits.sessions {
            return None;
        }
        let may = |(_, key): &&(u64, PublicKey)| self.of_key(key) < limits.sessions_per_key;
        self.queue.iter().find(may).map(|(id, _)| *id)
    }

    /// Has the session that made no progress for the longest time give way, if one is in the way
    /// of this key.
    fn make_room(&self, limits: &Limits, key: &PublicKey) {
        let share_is_used = self.of_key(key) >= limits.sessions_per_key;
        if !share_is_used && self.seated.len() < limits.sessions {
            return;
        }
        // One is enough until it is gone.
        let in_the_way = |seated: &&Seated| if share_is_used { seated.key == *key } else { true };
        if self.seated.iter().filter(in_the_way).any(|seated| seated.give_way.is_cancelled()) {
            return;
        }
        let stalled = self.seated.iter().filter(in_the_way);
        let stalled = stalled.filter(|seated| seated.progress.quiet() >= limits.stalled_after);
        if let Some(seated) = stalled.max_by_key(|seated| seated.progress.quiet()) {
            seated.give_way.cancel();
        }
    }
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, table: Mutex::default(), changed: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection of a key; `None` if it has too many.
    pub(super) fn greet(self: &Arc<Self>, key: PublicKey) -> Option<Guest> {
        let most = self.limits.sessions_per_key + self.limits.waiting_per_key;
        let mut table = self.table();
        let count = table.guests.entry(key).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(table);
        Some(Guest { seats: self.clone(), key })
    }

    /// Waits for a session of this key.
    pub(super) async fn take(
        self: &Arc<Self>,
        key: PublicKey,
        volume: &str,
        progress: Arc<Progress>,
    ) -> Seat {
        let ticket = self.queue(key);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(seat) = self.try_take(&ticket, key, volume, &progress) {
                // The next in the queue may have been waiting behind this one.
                self.changed.notify_waiters();
                return seat;
            }
            self.table().make_room(&self.limits, &key);
            let _ = timeout(LOOK_EVERY, changed).await;
        }
    }

    fn queue(&self, key: PublicKey) -> Ticket<'_> {
        let mut table = self.table();
        let id = table.next;
        table.next += 1;
        table.queue.push_back((id, key));
        Ticket { seats: self, id }
    }

    fn try_take(
        self: &Arc<Self>,
        ticket: &Ticket<'_>,
        key: PublicKey,
        volume: &str,
        progress: &Arc<Progress>,
    ) -> Option<Seat> {
        let mut table = self.table();
        if table.next_served(&self.limits) != Some(ticket.id) {
            return None;
        }
        let (id, give_way) = (ticket.id, CancellationToken::new());
        table.queue.retain(|(other, _)| *other != id);
        let (volume, progress) = (volume.to_owned(), progress.clone());
        let seated = Seated { id, key, volume, progress, give_way: give_way.clone() };
        let progress = seated.progress.clone();
        table.seated.push(seated);
        Some(Seat { seats: self.clone(), id, progress, give_way })
    }

    /// Has a session of this volume that makes no progress give way.
    pub(super) fn release(&self, volume: &str) {
        let table = self.table();
        let stalled = table.seated.iter().filter(|seated| {
            seated.volume == volume && seated.progress.quiet() >= self.limits.stalled_after
        });
        stalled.for_each(|seated| seated.give_way.cancel());
    }
}

impl Seat {
    /// Waits until this session has to end because it makes no progress, and says why.
    pub(super) async fn stalled(&self) -> String {
        let limits = &self.seats.limits;
        loop {
            let given_way = timeout(LOOK_EVERY, self.give_way.cancelled()).await.is_ok();
            let quiet = self.progress.quiet();
            if given_way {
                return format!(
                    "it made no progress for {} s and gave way to another session (stalled_after)",
                    quiet.as_secs()
                );
            }
            if self.progress.unread() >= limits.stalled_after {
                return format!(
                    "its peer read less than 1 MiB in {} s though there was more to read \
                     (stalled_after)",
                    limits.stalled_after.as_secs()
                );
            }
            if quiet >= limits.stalled_max {
                return format!("it made no progress for {} s (stalled_max)", quiet.as_secs());
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table().seated.retain(|seated| seated.id != self.id);
        self.seats.changed.notify_waiters();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.seats.table().queue.retain(|(id, _)| *id != self.id);
        self.seats.changed.notify_waiters();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut table = self.seats.table();
        if let Some(count) = table.guests.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                table.guests.remove(&self.key);
            }
        }
    }
}

/// Waits as long as whoever asks too often has to.
pub(super) async fn until(allowed: impl Fn() -> bool) {
    while !allowed() {
        sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PublicKey = PublicKey([1; 32]);
    const B: PublicKey = PublicKey([2; 32]);

    fn seats(text: &str, sessions: usize) -> Arc<Seats> {
        let written: super::super::limits::Written = toml::from_str(text).unwrap();
        Arc::new(Seats::new(written.check(sessions).unwrap()))
    }

    async fn take(seats: &Arc<Seats>, key: PublicKey) -> Option<Seat> {
        let seat = seats.take(key, "vm", Arc::default());
        timeout(Duration::from_millis(50), seat).await.ok()
    }

    #[tokio::test]
    async fn a_key_gets_its_share_and_others_the_rest_in_their_order() {
        let seats = seats("", 4);
        let of_a = [take(&seats, A).await, take(&seats, A).await];
        assert!(of_a.iter().all(Option::is_some));
        assert!(take(&seats, A).await.is_none(), "half of all is what a key may have");
        // One of A waits, and B gets past it.
        let waiting = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take(A, "vm", Arc::default()).await }
        });
        while seats.table().queue.is_empty() {
            tokio::task::yield_now().await;
        }
        let of_b = [take(&seats, B).await, take(&seats, B).await];
        assert!(of_b.iter().all(Option::is_some));
        assert!(!waiting.is_finished());
        drop(of_a);
        let seat = timeout(Duration::from_secs(10), waiting).await.expect("there is room").unwrap();
        assert_eq!(seats.table().seated.len(), 3);
        drop((seat, of_b));
        assert!(seats.table().seated.is_empty() && seats.table().queue.is_empty());
    }

    #[tokio::test]
    async fn a_session_without_progress_gives_way_to_one_that_waits() {
        let seats = seats("stalled_after = \"1s\"", 1);
        let stalled = take(&seats, A).await.unwrap();
        // Nobody wants its place.
        assert!(timeout(Duration::from_millis(1500), stalled.stalled()).await.is_err());
        let waiting = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take(B, "vm", Arc::default()).await }
        });
        let why = timeout(Duration::from_secs(10), stalled.stalled()).await.unwrap();
        assert!(why.contains("stalled_after"), "{why}");
        drop(stalled);
        timeout(Duration::from_secs(10), waiting).await.expect("there is room").unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_sips_does_not_hold_its_volume() {
        let seats = seats("stalled_after = \"1s\"", 4);
        let progress = Arc::new(Progress::default());
        let seat = seats.take(A, "vm", progress.clone()).await;
        let stalled = timeout(Duration::from_millis(1500), seat.stalled());
        assert!(stalled.await.is_err(), "there was nothing to read");
        progress.lags(true);
        let why = timeout(Duration::from_secs(10), seat.stalled()).await.unwrap();
        assert!(why.contains("read less than 1 MiB in 1 s"), "{why}");
        progress.lags(false);
        assert!(timeout(Duration::from_millis(500), seat.stalled()).await.is_err());
    }

    #[tokio::test]
    async fn a_session_without_progress_ends_at_last_and_frees_its_volume() {
        let limits = "stalled_after = \"1s\"\nstalled_max = \"2s\"";
        let long = seats(limits, 4);
        let seat = take(&long, A).await.unwrap();
        let why = timeout(Duration::from_secs(10), seat.stalled()).await.unwrap();
        assert!(why.contains("stalled_max"), "{why}");
        let other = take(&long, A).await.unwrap();
        long.release("vm");
        assert!(seat.give_way.is_cancelled() && !other.give_way.is_cancelled());
    }

    #[test]
    fn connections_of_a_key_are_bounded() {
        let seats = seats("waiting_per_key = 3", 4);
        let guests: Vec<_> = std::iter::from_fn(|| seats.greet(A)).collect();
        assert_eq!(guests.len(), 5);
        assert!(seats.greet(B).is_some());
        drop(guests);
        assert!(seats.greet(A).is_some());
        assert!(seats.table().guests.is_empty(), "only keys that are here are remembered");
    }
}
