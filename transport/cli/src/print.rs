//! Printing: lines, and numbers as people read them. All that reaches a terminal goes through
//! here: what comes from a peer or a storage cannot drive it, and a reader that is gone, or a disk
//! that is full, ends nothing.

use std::{
    borrow::Cow,
    fmt::{Display, Write as _},
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tracing_subscriber::fmt::MakeWriter;

/// Whether something could not be printed that somebody still wanted to read.
static LOST: AtomicBool = AtomicBool::new(false);

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
    let text = text.to_string();
    let mut shown = harmless(&text, |c| c == '\n').into_owned();
    shown.push('\n');
    let mut out = io::stdout().lock();
    match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            LOST.store(true, Relaxed);
            tracing::error!(%error, "the result cannot be printed");
        }
        _ => {}
    }
}

/// Whether something that was to be printed is lost.
pub(crate) fn is_lost() -> bool {
    LOST.load(Relaxed)
}

/// Prints on standard error. Further lines are indented, so that none that came from elsewhere
/// passes for one of ours. That it cannot be written is nobody's failure.
pub(crate) fn complain(text: impl Display) {
    let shown = indented(&text.to_string());
    let _ = io::stderr().lock().write_all(shown.as_bytes());
}

fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| harmless(line, |_| false)).enumerate();
    lines.fold(String::new(), |mut shown, (number, line)| {
        let margin = if number == 0 || line.starts_with("  ") { "" } else { "  " };
        let _ = writeln!(shown, "{margin}{line}");
        shown
    })
}

/// Escapes what a terminal would obey: control characters, and those that turn the direction of
/// writing. The escapes are those of JSON, so that JSON stays what it is.
fn harmless(text: &str, is_ours: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_harmful = |c: char| {
        (c.is_control() && !is_ours(c))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if is_harmful(c) => shown.push_str("\\n"),
            c if is_harmful(c) => {
                let _ = write!(shown, "\\u{:04x}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Where log lines go: standard error, as far as that can be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    colors: bool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { colors: io::stderr().is_terminal() }
    }

    /// Whether lines are coloured.
    pub(crate) const fn colors(self) -> bool {
        self.colors
    }

    /// A line as it is written. Values in it were escaped before colours came to them.
    fn line(self, line: &str) -> String {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let is_ours = |c| c == '\x1b' && self.colors;
        harmless(line, is_ours).into_owned() + end
    }
}

impl Write for Log {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let line = self.line(&String::from_utf8_lossy(buf));
        // A log that is full or has no reader must not end what it tells of.
        let _ = io::stderr().lock().write_all(line.as_bytes());
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
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

    #[test]
    fn nothing_from_outside_drives_a_terminal() {
        let evil = "a\x1b[2J\u{9b}1m\r\nINFO b\u{202e}c\t\u{7f}";
        let shown = harmless(evil, |_| false);
        assert_eq!(shown, "a\\u001b[2J\\u009b1m\\u000d\\nINFO b\\u202ec\\u0009\\u007f");
        // An error may have several lines, and only the first begins at the margin.
        let shown = indented("driftline: x\n  y\ndriftline: z\r\n\x1b[2J\n");
        assert_eq!(shown, "driftline: x\n  y\n  driftline: z\n  \\u001b[2J\n");
        // A log line is one line, whatever is in it.
        let line = Log { colors: false }.line("one\ntwo\x1b[0m\n");
        assert_eq!(line, "one\\ntwo\\u001b[0m\n");
        // JSON says the same with and without.
        let json = serde_json::json!({ "detail": evil }).to_string();
        let shown = harmless(&json, |c| c == '\n').into_owned();
        assert!(!shown.contains(char::is_control));
        let back: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(back["detail"], evil);
        assert!(matches!(harmless("größer ✓", |_| false), Cow::Borrowed(_)));
    }

    #[test]
    fn values_in_a_coloured_line_are_escaped_before() {
        let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let writer = std::sync::Arc::clone(&lines);
        let log = tracing_subscriber::fmt()
            .with_ansi(true)
            .with_writer(move || Kept(writer.clone()))
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!(peer = "\x1b[31mx", "message \x1b[2J {}", "\x1b]0;t\x07");
        });
        let line = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert!(line.contains("message") && !line.contains("\x1b[2J"), "{line:?}");
        assert!(!line.contains("\x1b]0") && !line.contains("\x1b[31mx"), "{line:?}");
    }

    struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
