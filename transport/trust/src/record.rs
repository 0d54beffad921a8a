//! Text that proves itself: a title, lines of a key and a value, and a checksum over them.
//!
//! A person can read it, and whatever was torn, cut or changed is no record.

use std::fmt::{Display, Write};

const CHECK: &str = "blake3 ";

/// A record that is being written.
pub(crate) struct Record(String);

impl Record {
    pub(crate) fn new(title: &str) -> Self {
        Self(format!("{title}\n"))
    }

    /// Adds a line. What would end the line in the middle of a value is replaced.
    pub(crate) fn line(mut self, key: &str, value: impl Display) -> Self {
        let value = value.to_string().replace(char::is_control, "\u{fffd}");
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{key} {value}");
        self
    }

    /// Adds a line if there is a value.
    pub(crate) fn option(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.line(key, value),
            None => self,
        }
    }

    pub(crate) fn finish(mut self) -> String {
        let check = blake3::hash(self.0.as_bytes());
        let _ = writeln!(self.0, "{CHECK}{check}");
        self.0
    }
}

/// The lines of a record that is whole.
pub(crate) struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Lines<'a> {
    /// The record that `text` is, if it has this title and is whole.
    pub(crate) fn parse(text: &'a str, title: &str) -> Option<Self> {
        let body_len = text.strip_suffix('\n')?.rfind('\n')? + 1;
        let (body, check) = text.split_at(body_len);
        let check = check.strip_prefix(CHECK)?.strip_suffix('\n')?;
        if blake3::hash(body.as_bytes()).to_hex().as_str() != check {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != title {
            return None;
        }
        lines.map(|line| line.split_once(' ')).collect::<Option<_>>().map(Self)
    }

    /// The value of the first line with this key.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// As [`get`](Self::get), as a number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// As [`get`](Self::get), as bytes in hexadecimal.
    pub(crate) fn bytes<const N: usize>(&self, key: &str) -> Option<[u8; N]> {
        unhex(self.get(key)?)
    }

    /// The values of all lines with this key.
    pub(crate) fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |line| line.0 == key).map(|line| line.1)
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal digits, however many.
pub(crate) fn unhex_all(digits: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// Bytes from hexadecimal digits, exactly so many.
pub(crate) fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_read_and_nothing_else() {
        let text = Record::new("a thing 1").line("x", 7).line("name", "b\nx 8").finish();
        let lines = Lines::parse(&text, "a thing 1").unwrap();
        assert_eq!((lines.number("x"), lines.get("name")), (Some(7), Some("b\u{fffd}x 8")));
        assert!(lines.get("y").is_none());
        assert!(Lines::parse(&text, "a thing 2").is_none());
        for len in 0..text.len() {
            if text.is_char_boundary(len) {
                assert!(Lines::parse(&text[..len], "a thing 1").is_none(), "{len}");
            }
        }
        for (at, _) in text.char_indices().filter(|(_, c)| c.is_ascii()) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Lines::parse(&changed, "a thing 1").is_none(), "byte {at}");
        }
    }
}
