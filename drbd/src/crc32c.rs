//! The checksum of an activity log's blocks.

/// Remainders of every byte, for the reflected Castagnoli polynomial.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// CRC-32C as the kernel's `crc32c(0, …)` computes it: unlike the common form of it, it starts
/// from zero and inverts nothing.
pub(crate) fn raw_crc32c<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    bytes
        .into_iter()
        .fold(0, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_inverted() {
        assert_eq!(raw_crc32c(&[0; 32]), 0);
        // The common form's check value over "123456789" is 0xe3069283: it starts from all
        // ones and inverts its result, which the first four bytes of the input undo here.
        let inverted: Vec<u8> =
            b"123456789".iter().enumerate().map(|(i, b)| if i < 4 { !b } else { *b }).collect();
        assert_eq!(!raw_crc32c(&inverted), 0xe306_9283);
    }
}
