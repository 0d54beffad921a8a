//! Packs name-value lists in the native layout, byte for byte as the kernel does.

use super::{DEPTH_MAX, NATIVE_LIST, Nvlist, NvlistError, Value, kind};
use crate::checksum::ByteOrder;

impl Nvlist {
    /// Packs the list as a machine of this byte order does: `Nvlist::decode` gives it back.
    ///
    /// Fails on a name of more than 32 766 bytes, on a text with a zero byte, on a list that
    /// takes 2 GiB, and on lists deeper in each other than they could be read.
    pub fn encode(&self, order: ByteOrder) -> Result<Vec<u8>, NvlistError> {
        let endian = u8::from(order == ByteOrder::Little);
        let mut out = Output { bytes: vec![0, endian, 0, 0], order };
        out.ints(4, [0, 1]);
        out.list(self, 0)?;
        Ok(out.bytes)
    }
}

/// What is packed so far.
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) order: ByteOrder,
}

impl Output {
    /// The lowest `len` bytes of `value`.
    pub(super) fn int(&mut self, len: usize, value: u64) {
        match self.order {
            ByteOrder::Little => self.bytes.extend(&value.to_le_bytes()[..len]),
            ByteOrder::Big => self.bytes.extend(&value.to_be_bytes()[8 - len..]),
        }
    }

    pub(super) fn ints(&mut self, len: usize, values: impl IntoIterator<Item = u64>) {
        values.into_iter().for_each(|value| self.int(len, value));
    }

    /// A length or a number of elements, which the format counts in signed integers.
    fn count(&mut self, count: usize) -> Result<(), NvlistError> {
        let count = i32::try_from(count).map_err(|_| NvlistError::TooLong)?;
        self.int(4, count as u64);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), NvlistError> {
        if text.contains('\0') {
            return Err(NvlistError::Malformed);
        }
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
        Ok(())
    }

    /// The structs of lists: their version, their flags, and room for pointers.
    fn structs(&mut self, count: usize) {
        for _ in 0..count {
            self.ints(4, [0, 1]);
            self.bytes.resize(self.bytes.len() + NATIVE_LIST - 8, 0);
        }
    }

    fn list(&mut self, list: &Nvlist, depth: u32) -> Result<(), NvlistError> {
        if depth >= DEPTH_MAX {
            return Err(NvlistError::TooDeep);
        }
        for (name, value) in &list.0 {
            self.pair(name, value)?;
            // Lists inside a list follow the pair that announces them.
            match value {
                Value::Nvlist(list) => self.list(list, depth + 1)?,
                Value::NvlistArray(lists) => {
                    lists.iter().try_for_each(|list| self.list(list, depth + 1))?;
                }
                _ => {}
            }
        }
        self.int(4, 0);
        Ok(())
    }

    /// One pair with its size, without the lists that follow it.
    pub(super) fn pair(&mut self, name: &str, value: &Value) -> Result<(), NvlistError> {
        let (number, count, width, elements) = integers(value);
        let mut pair = Self { bytes: Vec::new(), order: self.order };
        let name_len = i16::try_from(name.len() + 1).map_err(|_| NvlistError::TooLong)?;
        pair.int(2, name_len as u64);
        pair.int(2, 0);
        pair.count(count)?;
        pair.int(4, number as u64);
        pair.text(name)?;
        pair.align();
        pair.ints(width, elements);
        match value {
            Value::String(string) => pair.text(string)?,
            Value::StringArray(strings) => {
                // Room for pointers stands before the strings themselves.
                pair.ints(8, strings.iter().map(|_| 0));
                strings.iter().try_for_each(|string| pair.text(string))?;
            }
            Value::Nvlist(_) => pair.structs(1),
            Value::NvlistArray(lists) => {
                pair.ints(8, lists.iter().map(|_| 0));
                pair.structs(lists.len());
            }
            _ => {}
        }
        pair.align();
        self.count(pair.bytes.len() + 4)?;
        self.bytes.extend(pair.bytes);
        Ok(())
    }

    /// Fills a pair up to a multiple of eight, counting its size, which stands before it.
    fn align(&mut self) {
        self.bytes.resize((self.bytes.len() + 4).next_multiple_of(8) - 4, 0);
    }
}

/// A value's type, its number of elements, the width of one in the native layout, and the
/// elements; strings and lists have none.
pub(super) fn integers(value: &Value) -> (i32, usize, usize, Vec<u64>) {
    fn all<T: Copy>(
        number: i32,
        width: usize,
        values: &[T],
        f: impl Fn(T) -> u64,
    ) -> (i32, usize, usize, Vec<u64>) {
        (number, values.len(), width, values.iter().map(|value| f(*value)).collect())
    }
    let one = |number, width, value: u64| (number, 1, width, vec![value]);
    match value {
        Value::Boolean => (kind::BOOLEAN, 0, 0, vec![]),
        Value::BooleanValue(v) => one(kind::BOOLEAN_VALUE, 4, u64::from(*v)),
        Value::Byte(v) => one(kind::BYTE, 1, u64::from(*v)),
        Value::Int8(v) => one(kind::INT8, 1, *v as u64),
        Value::Uint8(v) => one(kind::UINT8, 1, u64::from(*v)),
        Value::Int16(v) => one(kind::INT16, 2, *v as u64),
        Value::Uint16(v) => one(kind::UINT16, 2, u64::from(*v)),
        Value::Int32(v) => one(kind::INT32, 4, *v as u64),
        Value::Uint32(v) => one(kind::UINT32, 4, u64::from(*v)),
        Value::Int64(v) => one(kind::INT64, 8, *v as u64),
        Value::Uint64(v) => one(kind::UINT64, 8, *v),
        Value::Hrtime(v) => one(kind::HRTIME, 8, *v as u64),
        Value::Double(v) => one(kind::DOUBLE, 8, v.to_bits()),
        Value::String(_) => (kind::STRING, 1, 0, vec![]),
        Value::Nvlist(_) => (kind::NVLIST, 1, 0, vec![]),
        Value::BooleanArray(v) => all(kind::BOOLEAN_ARRAY, 4, v, u64::from),
        Value::ByteArray(v) => all(kind::BYTE_ARRAY, 1, v, u64::from),
        Value::Int8Array(v) => all(kind::INT8_ARRAY, 1, v, |v| v as u64),
        Value::Uint8Array(v) => all(kind::UINT8_ARRAY, 1, v, u64::from),
        Value::Int16Array(v) => all(kind::INT16_ARRAY, 2, v, |v| v as u64),
        Value::Uint16Array(v) => all(kind::UINT16_ARRAY, 2, v, u64::from),
        Value::Int32Array(v) => all(kind::INT32_ARRAY, 4, v, |v| v as u64),
        Value::Uint32Array(v) => all(kind::UINT32_ARRAY, 4, v, u64::from),
        Value::Int64Array(v) => all(kind::INT64_ARRAY, 8, v, |v| v as u64),
        Value::Uint64Array(v) => all(kind::UINT64_ARRAY, 8, v, |v| v),
        Value::StringArray(v) => (kind::STRING_ARRAY, v.len(), 0, vec![]),
        Value::NvlistArray(v) => (kind::NVLIST_ARRAY, v.len(), 0, vec![]),
    }
}
