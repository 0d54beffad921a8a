//! The names of the snapshots that are made here, so that no other is ever deleted.
//!
//! A snapshot is named `driftline-OWNER-TIME`: the owner, which is whatever tells one replication
//! of a resource from another, in eight hexadecimal digits, and the time in UTC. That is 38
//! bytes of the 48 that LINSTOR takes, and of the letters that it takes.

use std::fmt;

use crate::{Snapshot, SnapshotName};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The last millisecond of the year 9999, which four digits can still tell.
const MAX_MS: u64 = 253_402_300_799_999;

/// Makes and knows the names of one owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnNames {
    /// All of a name but its time, with the `-` before that.
    start: String,
}

/// A snapshot that was made here, by its name. There is no other way to name one that is to be
/// deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnSnapshot {
    name: SnapshotName,
    unix_ms: u64,
}

impl OwnNames {
    /// The names of this owner.
    pub fn new(owner: [u8; 4]) -> Self {
        Self { start: format!("driftline-{:08x}-", u32::from_be_bytes(owner)) }
    }

    /// The snapshot that is taken at this time, in milliseconds since 1970.
    pub fn snapshot(&self, unix_ms: u64) -> OwnSnapshot {
        let unix_ms = unix_ms.min(MAX_MS);
        let name = format!("{}{}", self.start, time(unix_ms));
        OwnSnapshot { name: name.parse().expect("a test says so"), unix_ms }
    }

    /// The snapshot of this name, if it is exactly one that is made here for this owner.
    pub fn parse(&self, name: &str) -> Option<OwnSnapshot> {
        let own = self.snapshot(parse_time(name.strip_prefix(&self.start)?)?);
        // What is no date, such as the 31st of February, would be written otherwise.
        (own.name.as_str() == name).then_some(own)
    }

    /// Those of these snapshots that were made here, from the oldest to the newest.
    pub fn own(&self, snapshots: &[Snapshot]) -> Vec<OwnSnapshot> {
        let mut own: Vec<_> = snapshots.iter().filter_map(|s| self.parse(&s.name)).collect();
        own.sort_by_key(|own| own.unix_ms);
        own
    }
}

impl OwnSnapshot {
    /// Its name.
    pub const fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// When it was taken by the clock that named it, in milliseconds since 1970.
    pub const fn unix_ms(&self) -> u64 {
        self.unix_ms
    }
}

impl fmt::Display for OwnSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Such as `20261122T204000123Z`.
fn time(unix_ms: u64) -> String {
    let (year, month, day) = date(unix_ms / DAY_MS);
    let ms = unix_ms % DAY_MS;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}{:03}Z", ms % 1000)
}

/// The milliseconds that [`time`] writes so, if it writes so at all.
fn parse_time(text: &str) -> Option<u64> {
    let digits = |at: usize, len| {
        let digits = text.get(at..at + len).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()
    };
    let days = days(digits(0, 4)?, digits(4, 2)?, digits(6, 2)?)?;
    let (hour, minute, second) = (digits(9, 2)?, digits(11, 2)?, digits(13, 2)?);
    Some(days * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000 + digits(15, 3)?)
}

/// Days before this year of the Gregorian calendar, counted from the year 1.
const fn before(year: u64) -> u64 {
    let years = year - 1;
    years * 365 + years / 4 - years / 100 + years / 400
}

/// The days before each month of this year, and after the last.
fn month_starts(year: u64) -> [u64; 13] {
    let leap = before(year + 1) - before(year) - 365;
    let lengths = [31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut starts = [0; 13];
    for (month, length) in lengths.into_iter().enumerate() {
        starts[month + 1] = starts[month] + length;
    }
    starts
}

/// Days from the start of 1970 to this one.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let month = usize::try_from(month.checked_sub(1)?).ok().filter(|month| *month < 12)?;
    let start = before(year.max(1)).checked_sub(before(1970))?;
    Some(start + month_starts(year)[month] + day.checked_sub(1)?)
}

/// Year, month and day of the day that comes `day` days after the first of 1970.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + before(1970);
    // A year is never longer than 366 days, so this one is too early or right.
    let mut year = day / 366 + 1;
    while before(year + 1) <= day {
        year += 1;
    }
    let within = day - before(year);
    let starts = month_starts(year);
    let month = starts.iter().rposition(|start| *start <= within).unwrap_or(0);
    (year, month as u64 + 1, within - starts[month] + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_as_documented_and_parse_back_exactly() {
        let names = OwnNames::new(0x48c3_a63f_u32.to_be_bytes());
        let own = names.snapshot(1_795_380_000_123);
        assert_eq!(own.to_string(), "driftline-48c3a63f-20261122T204000123Z");
        assert_eq!(names.parse("driftline-48c3a63f-20261122T204000123Z"), Some(own));
        for foreign in [
            "",
            "driftline-48c3a63f-",
            "driftline-48c3a63e-20261122T204000123Z",
            "driftline-48C3A63F-20261122T204000123Z",
            "Driftline-48c3a63f-20261122T204000123Z",
            "driftline-48c3a63f-20261122T204000123z",
            "driftline-48c3a63f-20261122T204000123Zx",
            "driftline-48c3a63f-20261122T20400012Z",
            "driftline-48c3a63f-20261122x204000123Z",
            "driftline-48c3a63f-20260230T204000123Z",
            "driftline-48c3a63f-20261322T204000123Z",
            "driftline-48c3a63f-20260022T204000123Z",
            "driftline-48c3a63f-20261100T204000123Z",
            "driftline-48c3a63f-20261122T244000123Z",
            "driftline-48c3a63f-20261122T206000123Z",
            "driftline-48c3a63f-00001122T204000123Z",
            "driftline-48c3a63f-19691231T235959999Z",
            "driftline-48c3a63f-+0261122T204000123Z",
            "driftline-48c3a63f-\u{e4}0261122T20400123Z",
            "xdriftline-48c3a63f-20261122T204000123Z",
        ] {
            assert_eq!(names.parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix_ms, written) in [
            (0, "19700101T000000000Z"),
            (951_782_400_000, "20000229T000000000Z"),
            (951_868_799_999, "20000229T235959999Z"),
            (4_107_542_400_000, "21000301T000000000Z"),
            (1_735_689_599_000, "20241231T235959000Z"),
            (MAX_MS, "99991231T235959999Z"),
        ] {
            assert_eq!(time(unix_ms), written);
        }
    }

    #[test]
    fn only_own_ones_are_found_and_in_order() {
        let [ours, theirs] = [1_u32, 2].map(|owner| OwnNames::new(owner.to_be_bytes()));
        let names = [
            ours.snapshot(9_000).to_string(),
            theirs.snapshot(1_000).to_string(),
            "manual".to_owned(),
            ours.snapshot(5_000).to_string(),
        ];
        let snapshots = names.map(|name| Snapshot { name, ..Snapshot::default() });
        let own: Vec<_> = ours.own(&snapshots).iter().map(OwnSnapshot::unix_ms).collect();
        assert_eq!(own, [5_000, 9_000]);
    }

    proptest! {
        #[test]
        fn every_time_has_a_name_that_linstor_takes(owner: u32, unix_ms: u64) {
            let names = OwnNames::new(owner.to_be_bytes());
            let own = names.snapshot(unix_ms);
            prop_assert_eq!(own.unix_ms(), unix_ms.min(MAX_MS));
            prop_assert_eq!(own.name().as_str().len(), 38);
            prop_assert_eq!(names.parse(own.name().as_str()), Some(own));
        }

        #[test]
        fn each_day_is_followed_by_the_next(day in 0..MAX_MS / DAY_MS) {
            let (today, tomorrow) = (date(day), date(day + 1));
            let next = (today.0, today.1, today.2 + 1);
            let month = (today.0, today.1 + 1, 1);
            prop_assert!([next, month, (today.0 + 1, 1, 1)].contains(&tomorrow));
            prop_assert_eq!(days(today.0, today.1, today.2), Some(day));
        }
    }
}
