//! Commented hexdumps: bytes in hex, then `#` and what they are.

/// The bytes of a commented hexdump.
///
/// # Panics
/// If something before a `#` is not pairs of hex digits. Such files are part of the tests.
pub fn parse(text: &str) -> Vec<u8> {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    code.flat_map(str::split_whitespace).flat_map(parse_word).collect()
}

fn parse_word(word: &str) -> Vec<u8> {
    assert!(word.is_ascii() && word.len().is_multiple_of(2), "{word:?} is not whole bytes");
    (0..word.len())
        .step_by(2)
        .map(|at| match u8::from_str_radix(&word[at..at + 2], 16) {
            Ok(byte) => byte,
            Err(error) => panic!("{word:?}: {error}"),
        })
        .collect()
}

/// The bytes in hex, sixteen in a row, to be made into such a file.
pub fn dump(bytes: &[u8]) -> String {
    let rows = bytes.chunks(16);
    rows.flat_map(|row| {
        let row = row.iter().map(|byte| format!("{byte:02x}"));
        ["\n".to_owned()].into_iter().chain(row)
    })
    .collect()
}
