//! How much of the space that a map calls unchanged is read again, and which part of it.
//!
//! # The rolling pass
//!
//! A run reads the next piece of the volume, in order and around. Its share of the volume is
//! `2 * elapsed / age`, at most all of it, where `elapsed` is the time since the last run. A pass
//! then takes half of the age, and the other half is for the time until the next run: let a chunk
//! be read at run `k`, and again at run `m`. The shares of the runs `k + 1` to `m - 1` add up to
//! less than one, so they took less than `age / 2`; with a run at least every `age / 2`, `m` came
//! within `age`. A run that comes later than that has the share one, and reads all.
//!
//! If the clock was set back by more than an hour, how much time has passed is not known, and all
//! is read.
//!
//! # The sample
//!
//! Besides, `k` chunks are drawn from all `n`, without putting any back. If `s` of them are stale,
//! the chance to draw none of these is at most `(1 - s / n)^k`. To miss with a chance of at most
//! `1 - c` it takes `k = n * (1 - (1 - c)^(1 / s))`, which is a bound as well for drawing without
//! putting back. [`sample_size`] takes `s` as a hundredth of the chunks that the increment touches
//! and `c` as 0.999: what is stale may share chunks, lie in chunks that are touched as well, or be
//! a little less than a hundredth, and is still found with more than [`CONFIDENCE`]. It is at least
//! [`SAMPLE_MIN`] chunks, which finds that a hundredth of the volume is stale whatever has changed,
//! and at most [`SAMPLE_MAX`]: how many changes must go by for the promise to hold then is told with
//! each run.

use std::{collections::HashSet, ops::Range};

/// How sure "found" is meant to be.
pub const CONFIDENCE: f64 = 0.99;

/// What [`sample_size`] aims at, a little above [`CONFIDENCE`].
const AIM: f64 = 0.999;

/// Chunks that are drawn at least: `ln(0.01) / ln(0.99)`.
pub const SAMPLE_MIN: u64 = 459;

/// Chunks that are drawn at most, if nothing else is said: 1 GiB.
pub const SAMPLE_MAX: u64 = 16384;

/// By how much a clock may be set back without anything being read for that.
const SET_BACK_MS: u64 = 3_600_000;

/// Marks of a pass: what it remembers of when it was where.
const MARKS_MAX: usize = 64;

/// Where the rolling pass is, and when it was where.
///
/// Chunks are counted on and on, around the volume: the pass has read all below its position, and
/// of these the last `chunks` are what the volume is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pass {
    chunks: u64,
    last_ms: u64,
    /// Up to where it had come at which time, ascending. The first one's time is that of the
    /// oldest chunk.
    marks: Vec<(u64, u64)>,
}

impl Pass {
    /// One that has read all of a volume of so many chunks.
    pub fn covering(chunks: u64, now_ms: u64) -> Self {
        Self { chunks, last_ms: now_ms, marks: vec![(chunks, now_ms)] }
    }

    /// From what was written down, if that makes sense.
    pub(crate) fn from_parts(chunks: u64, last_ms: u64, marks: Vec<(u64, u64)>) -> Option<Self> {
        let ascends = marks.is_sorted_by(|a, b| a.0 < b.0) && marks.len() <= MARKS_MAX;
        let bounded = |(end, _): &(u64, u64)| *end >= chunks && *end <= u64::MAX / 4;
        let makes_sense = ascends && marks.last().is_some_and(bounded);
        makes_sense.then_some(Self { chunks, last_ms, marks })
    }

    pub(crate) const fn last_ms(&self) -> u64 {
        self.last_ms
    }

    pub(crate) fn marks(&self) -> &[(u64, u64)] {
        &self.marks
    }

    fn position(&self) -> u64 {
        self.marks.last().map_or(self.chunks, |mark| mark.0)
    }

    /// How many chunks the piece has that is due now, if none may be older than `age_ms`.
    pub fn share(&self, now_ms: u64, age_ms: u64) -> u64 {
        let elapsed = match now_ms.checked_sub(self.last_ms) {
            Some(elapsed) => elapsed,
            None if self.last_ms - now_ms <= SET_BACK_MS => 0,
            None => return self.chunks,
        };
        let due =
            (2 * u128::from(self.chunks) * u128::from(elapsed)).div_ceil(age_ms.max(1).into());
        u64::try_from(due).unwrap_or(u64::MAX).min(self.chunks)
    }

    /// The next `share` chunks, in one or two ranges of indices.
    pub fn ranges(&self, share: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let share = share.min(self.chunks);
        let start = self.position().checked_rem(self.chunks).unwrap_or(0);
        let end = start + share;
        let (straight, around) = (start..end.min(self.chunks), 0..end.saturating_sub(self.chunks));
        [straight, around].into_iter().filter(|range| !range.is_empty())
    }

    /// The pass after the next `share` chunks were read.
    pub fn advanced(&self, share: u64, now_ms: u64) -> Self {
        let share = share.min(self.chunks);
        let position = self.position() + share;
        // So that it never overflows, whatever was written down.
        if share == self.chunks || position > u64::MAX / 4 {
            return Self::covering(self.chunks, if share == self.chunks { now_ms } else { 0 });
        }
        let mut marks = self.marks.clone();
        if share > 0 {
            marks.push((position, now_ms));
        }
        // What lies a whole volume behind was read again since.
        marks.retain(|(end, _)| *end > position - self.chunks);
        if marks.len() > MARKS_MAX {
            let gap = |at: &usize| marks[at + 1].1.abs_diff(marks[*at].1);
            if let Some(at) = (0..marks.len() - 1).min_by_key(gap) {
                // Both count as read when the older was.
                marks[at + 1].1 = marks[at].1.min(marks[at + 1].1);
                marks.remove(at);
            }
        }
        Self { chunks: self.chunks, last_ms: now_ms, marks }
    }

    /// The pass over a volume that has so many chunks now. What it says of ages stays true.
    pub fn resized(&self, chunks: u64) -> Self {
        if chunks == self.chunks {
            return self.clone();
        }
        let at = self.position().checked_rem(self.chunks).unwrap_or(0).min(chunks);
        Self { chunks, last_ms: self.last_ms, marks: vec![(chunks + at, self.oldest_ms())] }
    }

    /// When that chunk was read that was not read for the longest time, or some time before.
    pub fn oldest_ms(&self) -> u64 {
        self.marks.iter().map(|mark| mark.1).min().unwrap_or(0)
    }
}

/// Whether what was last done at `last_ms`, and is to be done again after `age_ms`, is due. If the
/// clock was set back by more than an hour, it is not known how long ago that was.
pub const fn is_due(last_ms: u64, now_ms: u64, age_ms: u64) -> bool {
    match now_ms.checked_sub(last_ms) {
        Some(elapsed) => elapsed >= age_ms,
        None => last_ms - now_ms > SET_BACK_MS,
    }
}

/// How many chunks are drawn, of a volume that has `chunks`, for an increment that touches
/// `changed` of them, if at most `max` may be.
pub fn sample_size(chunks: u64, changed: u64, max: u64) -> u64 {
    let enough = match changed / 100 {
        // A hundredth of the changes is not even one.
        0 => 0.0,
        stale => chunks as f64 * (1.0 - (1.0 - AIM).powf(1.0 / stale as f64)),
    };
    (enough.ceil() as u64).clamp(SAMPLE_MIN.min(max), max).min(chunks)
}

/// The chance to find at least one of `stale` chunks among `sample` of `chunks`.
pub fn find_probability(chunks: u64, stale: u64, sample: u64) -> f64 {
    if stale == 0 || chunks == 0 {
        return 0.0;
    }
    let each = 1.0 - (stale as f64 / chunks as f64).min(1.0);
    1.0 - each.powf(sample as f64)
}

/// How many stale chunks there can be, of which none was drawn, before that would have been
/// unlikely: had there been more, [`CONFIDENCE`] is the chance that one would have been drawn.
pub fn stale_bound(chunks: u64, sample: u64) -> u64 {
    if sample >= chunks {
        return 0;
    }
    if sample == 0 {
        return chunks;
    }
    let share = 1.0 - (1.0 - CONFIDENCE).powf(1.0 / sample as f64);
    (chunks as f64 * share).ceil() as u64
}

/// Draws `count` of `chunks` indices, ascending. The same seed draws the same.
pub fn draw(seed: &[u8; 32], chunks: u64, count: u64) -> Vec<u64> {
    if count >= chunks {
        return (0..chunks).collect();
    }
    let mut numbers = blake3::Hasher::new_keyed(seed).finalize_xof();
    let mut below = |end: u64| {
        // The numbers that would make some indices likelier than others are passed over.
        let fair = u64::MAX - u64::MAX % end;
        loop {
            let mut bytes = [0; 8];
            numbers.fill(&mut bytes);
            let number = u64::from_le_bytes(bytes);
            if number < fair {
                return number % end;
            }
        }
    };
    // Floyd's way: each set of `count` is as likely as any other.
    let mut drawn = HashSet::with_capacity(count as usize);
    for last in chunks - count..chunks {
        let index = below(last + 1);
        if !drawn.insert(index) {
            drawn.insert(last);
        }
    }
    let mut drawn: Vec<u64> = drawn.into_iter().collect();
    drawn.sort_unstable();
    drawn
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;
    const AGE: u64 = 30 * DAY;

    /// When each chunk was read last, beside a pass.
    struct Model {
        pass: Pass,
        read_ms: Vec<u64>,
    }

    impl Model {
        fn new(chunks: u64, now_ms: u64) -> Self {
            let read_ms = vec![now_ms; chunks as usize];
            Self { pass: Pass::covering(chunks, now_ms), read_ms }
        }

        fn run(&mut self, now_ms: u64) {
            let share = self.pass.share(now_ms, AGE);
            for index in self.pass.ranges(share).flatten() {
                self.read_ms[index as usize] = now_ms;
            }
            self.pass = self.pass.advanced(share, now_ms);
        }

        fn oldest(&self) -> u64 {
            self.read_ms.iter().copied().min().unwrap_or(u64::MAX)
        }
    }

    proptest! {
        /// Whatever the times of the runs: after each, nothing is older than half the age, so
        /// that with a run at least that often nothing ever gets older than the age. And what is
        /// told is never younger than what is true.
        #[test]
        fn the_whole_volume_is_covered_within_the_age(
            chunks in 1..400_u64,
            gaps in prop::collection::vec(0..AGE, 1..300),
            scale in 1..2000_u64,
        ) {
            let mut model = Model::new(chunks, 1 << 40);
            let mut now = 1 << 40;
            for gap in gaps {
                now += gap / scale;
                // Between two runs at most half the age apart nothing gets older than the age.
                prop_assert!(gap / scale > AGE / 2 || now - model.oldest() <= AGE);
                model.run(now);
                prop_assert!(now - model.oldest() <= AGE / 2, "{} days", (now - model.oldest()) / DAY);
                prop_assert!(model.pass.oldest_ms() <= model.oldest());
            }
        }

        #[test]
        fn a_clock_may_jump_and_a_volume_be_resized(
            steps in prop::collection::vec((any::<u32>(), 0..500_u64), 1..100),
        ) {
            let mut pass = Pass::covering(100, 0);
            for (now_ms, chunks) in steps {
                let now_ms = u64::from(now_ms) * 1000;
                pass = pass.resized(chunks);
                let share = pass.share(now_ms, AGE);
                let covered: u64 = pass.ranges(share).map(|range| range.end - range.start).sum();
                prop_assert_eq!(covered, share);
                prop_assert!(pass.ranges(share).all(|range| range.end <= chunks));
                pass = pass.advanced(share, now_ms);
                let parts = Pass::from_parts(chunks, pass.last_ms, pass.marks.clone());
                prop_assert_eq!(parts, Some(pass.clone()));
            }
        }

        #[test]
        fn a_draw_is_of_different_chunks(seed: [u8; 32], chunks in 1..5000_u64, count in 0..6000_u64) {
            let drawn = draw(&seed, chunks, count);
            prop_assert_eq!(drawn.len() as u64, count.min(chunks));
            prop_assert!(drawn.is_sorted_by(|a, b| a < b));
            prop_assert!(drawn.last().is_none_or(|last| *last < chunks));
            prop_assert_eq!(&drawn, &draw(&seed, chunks, count));
        }
    }

    #[test]
    fn a_clock_that_was_set_back_costs_a_whole_read() {
        let pass = Pass::covering(1000, 10 * DAY);
        assert_eq!(pass.share(10 * DAY, AGE), 0);
        assert_eq!(pass.share(10 * DAY - 1000, AGE), 0);
        assert_eq!(pass.share(9 * DAY, AGE), 1000);
        assert_eq!(pass.share(10 * DAY + 1, AGE), 1);
        assert_eq!(pass.share(11 * DAY, AGE), 67);
        assert_eq!(pass.share(25 * DAY, AGE), 1000);
    }

    #[test]
    fn what_is_due_is_so_by_a_clock_that_may_be_set_back() {
        assert!(!is_due(DAY, 2 * DAY - 1, DAY) && is_due(DAY, 2 * DAY, DAY));
        assert!(!is_due(DAY, DAY - 1000, DAY) && is_due(DAY, 0, DAY));
        assert!(is_due(0, 1 << 40, AGE));
    }

    #[test]
    fn the_numbers_are_those_of_the_formula() {
        // A hundredth of the volume is found with 0.99 whatever has changed.
        assert_eq!(sample_size(1 << 24, 0, SAMPLE_MAX), SAMPLE_MIN);
        assert!(find_probability(1 << 24, (1 << 24) / 100, SAMPLE_MIN) > CONFIDENCE);
        assert!(find_probability(1 << 24, (1 << 24) / 100, SAMPLE_MIN - 1) < CONFIDENCE);
        // 1 TiB of which 1 % of all 4 KiB blocks changed, in 14.9 % of its chunks.
        let (chunks, changed) = (1 << 24, (1 << 24) * 149 / 1000);
        let sample = sample_size(chunks, changed, SAMPLE_MAX);
        assert_eq!(sample, 4636);
        assert!(find_probability(chunks, changed / 100, sample) > AIM - 1e-6);
        // What is bounded cannot promise as much, and says so.
        assert_eq!(sample_size(chunks, 1 << 14, SAMPLE_MAX), SAMPLE_MAX);
        assert!(find_probability(chunks, (1 << 14) / 100, SAMPLE_MAX) < 0.2);
        assert_eq!(sample_size(300, 0, SAMPLE_MAX), 300);
        assert_eq!(sample_size(1 << 24, 1 << 20, 0), 0);
        let bound = stale_bound(1 << 24, SAMPLE_MIN);
        assert!(find_probability(1 << 24, bound, SAMPLE_MIN) >= CONFIDENCE);
        assert!(find_probability(1 << 24, bound - 10, SAMPLE_MIN) < CONFIDENCE);
        assert_eq!((stale_bound(10, 10), stale_bound(10, 0)), (0, 10));
    }
}
