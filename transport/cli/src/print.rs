//! Printing: lines, and numbers as people read them.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// A number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let exponent = count.ilog2() / 10;
    let unit = UNITS[exponent as usize - 1];
    // Both fit in an f64 as far as one decimal shows.
    format!("{:.1} {unit}", count as f64 / (1_u64 << (10 * exponent)) as f64)
}

/// Prints a line, or several. Whoever reads them may have seen enough before the end.
pub(crate) fn say(text: impl Display) {
    let printed = io::stdout().lock().write_fmt(format_args!("{text}\n"));
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tracing::warn!(%error, "what was done cannot be printed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (24 << 20, "24.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }
}
