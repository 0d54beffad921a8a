//! Times as text, for names: `2026-11-22T20:40:00.123Z`.

const DAY: u64 = 24 * 60 * 60 * 1000;

/// The last millisecond of the year 9999, which four digits can still tell.
const MAX: u64 = 253_402_300_799_999;

/// The UTC time of so many milliseconds since 1970; after the year 9999, the end of that.
pub(super) fn format(unix_ms: u64) -> String {
    let unix_ms = unix_ms.min(MAX);
    let (year, month, day) = date(unix_ms / DAY);
    let ms = unix_ms % DAY;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// The milliseconds since 1970 that [`format`] gives this text for.
pub(super) fn parse(text: &str) -> Option<u64> {
    let digits = |at: usize, len| {
        let digits = text.get(at..at + len).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()
    };
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    let days = days(year.checked_sub(1970)?, month, day);
    let ms = ((hour * 60 + minute) * 60 + second) * 1000 + digits(20, 3)?;
    let unix_ms = days * DAY + ms;
    // What is no date, such as the 31st of February, would be written otherwise.
    (format(unix_ms) == text).then_some(unix_ms)
}

/// Whether February has 29 days.
const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from the start of 1970 to a day of the year that comes `years` after it.
fn days(years: u64, month: u64, day: u64) -> u64 {
    let year = 1970 + years;
    let before = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum::<u64>();
    before + (1..month).map(|month| days_of_month(year, month)).sum::<u64>() + day.max(1) - 1
}

/// Year, month and day of the day that comes `day` days after the first of 1970.
fn date(mut day: u64) -> (u64, u64, u64) {
    let (mut year, mut month) = (1970, 1);
    while day >= if is_leap(year) { 366 } else { 365 } {
        day -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates_are_right() {
        // From `date -u -d @SECONDS`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (68_169_599, "1972-02-28T23:59:59.007Z"),
            (68_169_600, "1972-02-29T00:00:00.007Z"),
            (68_256_000, "1972-03-01T00:00:00.007Z"),
            (946_684_799, "1999-12-31T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_795_380_000, "2026-11-22T20:40:00.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
            (13_574_563_200, "2400-02-29T00:00:00.007Z"),
        ] {
            assert_eq!(format(seconds * 1000 + 7), text);
            assert_eq!(parse(text), Some(seconds * 1000 + 7));
        }
        assert_eq!(format(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn nothing_else_is_a_time() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T20:40:00.123",
            "2026-11-22T20:40:00.123Zx",
            "2026-11-22 20:40:00.123Z",
            "2026-11-31T20:40:00.123Z",
            "2026-02-29T20:40:00.123Z",
            "2026-00-01T20:40:00.123Z",
            "2026-13-01T20:40:00.123Z",
            "2026-01-00T20:40:00.123Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "2026-01-01T00:00:60.000Z",
            "1969-12-31T23:59:59.999Z",
            "+026-01-01T00:00:00.000Z",
            "2026-01-01T00:00:00.00\u{e4}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_survives_and_is_ordered(a in 0..=MAX, b in 0..=MAX) {
            prop_assert_eq!(format(a).len(), 24);
            prop_assert_eq!(parse(&format(a)), Some(a));
            prop_assert_eq!(format(a).cmp(&format(b)), a.cmp(&b));
        }

        #[test]
        fn any_text_never_panics(text in "[0-9T:Z.-]{24}|\\PC{0,30}") {
            if let Some(time) = parse(&text) {
                prop_assert_eq!(format(time), text);
            }
        }
    }
}
