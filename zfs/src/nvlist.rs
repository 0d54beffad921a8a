//! Name-value lists: reads packed ones, in the sender's native layout and in XDR.

mod encode;

use thiserror::Error;

use crate::checksum::ByteOrder;

/// How deep lists may stand in lists.
const DEPTH_MAX: u32 = 32;

/// How many names, strings and lists one list may hold in all.
const VALUES_MAX: u32 = 1 << 20;

/// Why an nvlist cannot be read or packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum NvlistError {
    /// It ends too early.
    #[error("it ends too early")]
    Truncated,
    /// Its first bytes name no known layout.
    #[error("its layout is not known")]
    UnknownLayout,
    /// A value has a type that is not known.
    #[error("a value has the unknown type {0}")]
    UnknownType(i32),
    /// A pair contradicts itself.
    #[error("a pair contradicts itself")]
    Malformed,
    /// Lists stand in lists too deep.
    #[error("lists stand in lists more than {DEPTH_MAX} deep")]
    TooDeep,
    /// Something is longer than the format can say.
    #[error("it is longer than its layout allows")]
    TooLong,
    /// There are too many values.
    #[error("it has more than {VALUES_MAX} values")]
    TooMany,
}

/// One value of an nvlist.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the names are those of the format")]
pub enum Value {
    /// Present, without a value.
    Boolean,
    BooleanValue(bool),
    Byte(u8),
    Int8(i8),
    Uint8(u8),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    /// Nanoseconds.
    Hrtime(i64),
    Double(f64),
    /// Whatever is no UTF-8 is replaced.
    String(String),
    Nvlist(Nvlist),
    BooleanArray(Vec<bool>),
    ByteArray(Vec<u8>),
    Int8Array(Vec<i8>),
    Uint8Array(Vec<u8>),
    Int16Array(Vec<i16>),
    Uint16Array(Vec<u16>),
    Int32Array(Vec<i32>),
    Uint32Array(Vec<u32>),
    Int64Array(Vec<i64>),
    Uint64Array(Vec<u64>),
    StringArray(Vec<String>),
    NvlistArray(Vec<Nvlist>),
}

/// Names with their values, in the order of the stream.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Nvlist(pub Vec<(String, Value)>);

impl Nvlist {
    /// Decodes a packed list; bytes behind its end are padding.
    ///
    /// Memory is bounded by a small multiple of `bytes`, and by the limits on depth and on
    /// the number of values.
    pub fn decode(bytes: &[u8]) -> Result<Self, NvlistError> {
        let ([layout, endian, _, _], body) =
            bytes.split_first_chunk::<4>().ok_or(NvlistError::Truncated)?;
        let order = match endian {
            0 => ByteOrder::Big,
            1 => ByteOrder::Little,
            _ => return Err(NvlistError::UnknownLayout),
        };
        let mut values = VALUES_MAX;
        match layout {
            0 => {
                let mut input = Input { rest: body, order, values: &mut values };
                input.bytes(8)?;
                native_pairs(&mut input, 0)
            }
            1 => {
                let order = ByteOrder::Big;
                xdr_list(&mut Input { rest: body, order, values: &mut values }, 0)
            }
            _ => Err(NvlistError::UnknownLayout),
        }
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|pair| pair.0 == name).map(|pair| &pair.1)
    }

    /// The value of this name, if it is an unsigned 64-bit integer.
    pub fn get_u64(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Uint64(value) => Some(*value),
            _ => None,
        }
    }
}

/// What is left to decode.
struct Input<'a, 'v> {
    rest: &'a [u8],
    order: ByteOrder,
    /// How many more values there may be.
    values: &'v mut u32,
}

impl<'a> Input<'a, '_> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], NvlistError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(NvlistError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NvlistError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(NvlistError::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, NvlistError> {
        let bytes: [u8; 2] = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u16::from_le_bytes(bytes),
            ByteOrder::Big => u16::from_be_bytes(bytes),
        })
    }

    fn u32(&mut self) -> Result<u32, NvlistError> {
        Ok(self.order.u32(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, NvlistError> {
        Ok(self.order.u64(self.array()?))
    }

    /// A length or a number of elements. No element takes less than a byte, so what is left
    /// bounds what is allocated.
    fn count(&mut self) -> Result<usize, NvlistError> {
        let count = usize::try_from(self.u32()?).map_err(|_| NvlistError::Truncated)?;
        if count > self.rest.len() { Err(NvlistError::Truncated) } else { Ok(count) }
    }

    /// Counts a value that may take more memory than it takes bytes.
    fn spend(&mut self) -> Result<(), NvlistError> {
        *self.values = self.values.checked_sub(1).ok_or(NvlistError::TooMany)?;
        Ok(())
    }

    /// A part of this input as one of its own.
    fn part<'s>(&'s mut self, rest: &'a [u8]) -> Input<'a, 's> {
        Input { rest, order: self.order, values: self.values }
    }

    /// `count` elements, each read by `element`.
    fn many<T>(
        &mut self,
        count: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, NvlistError>,
    ) -> Result<Vec<T>, NvlistError> {
        // Grows as elements are found: `count` may be far more than there are.
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The numbers that stand for types.
mod kind {
    pub(super) const BOOLEAN: i32 = 1;
    pub(super) const BYTE: i32 = 2;
    pub(super) const INT16: i32 = 3;
    pub(super) const UINT16: i32 = 4;
    pub(super) const INT32: i32 = 5;
    pub(super) const UINT32: i32 = 6;
    pub(super) const INT64: i32 = 7;
    pub(super) const UINT64: i32 = 8;
    pub(super) const STRING: i32 = 9;
    pub(super) const BYTE_ARRAY: i32 = 10;
    pub(super) const INT16_ARRAY: i32 = 11;
    pub(super) const UINT16_ARRAY: i32 = 12;
    pub(super) const INT32_ARRAY: i32 = 13;
    pub(super) const UINT32_ARRAY: i32 = 14;
    pub(super) const INT64_ARRAY: i32 = 15;
    pub(super) const UINT64_ARRAY: i32 = 16;
    pub(super) const STRING_ARRAY: i32 = 17;
    pub(super) const HRTIME: i32 = 18;
    pub(super) const NVLIST: i32 = 19;
    pub(super) const NVLIST_ARRAY: i32 = 20;
    pub(super) const BOOLEAN_VALUE: i32 = 21;
    pub(super) const INT8: i32 = 22;
    pub(super) const UINT8: i32 = 23;
    pub(super) const BOOLEAN_ARRAY: i32 = 24;
    pub(super) const INT8_ARRAY: i32 = 25;
    pub(super) const UINT8_ARRAY: i32 = 26;
    pub(super) const DOUBLE: i32 = 27;
}

/// Length of a pair's fixed part in the native layout.
const NATIVE_PAIR: usize = 16;

/// Length of a list's own struct in the native layout, where it stands inside another.
const NATIVE_LIST: usize = 24;

/// Pairs of the native layout, up to the zero that ends them.
fn native_pairs(input: &mut Input<'_, '_>, depth: u32) -> Result<Nvlist, NvlistError> {
    if depth >= DEPTH_MAX {
        return Err(NvlistError::TooDeep);
    }
    let mut pairs = Vec::new();
    loop {
        let size = input.u32()? as usize;
        if size == 0 {
            return Ok(Nvlist(pairs));
        }
        input.spend()?;
        let body = input.bytes(size.checked_sub(4).ok_or(NvlistError::Malformed)?)?;
        let mut pair = input.part(body);
        let name_len = usize::from(pair.u16()?);
        pair.bytes(2)?;
        let count = pair.u32()? as usize;
        let number = pair.u32()? as i32;
        let name = pair.bytes(name_len)?.split_last().ok_or(NvlistError::Malformed)?.1;
        // The value starts at a multiple of eight from the start of the pair.
        let pad = (NATIVE_PAIR + name_len).next_multiple_of(8) - (NATIVE_PAIR + name_len);
        let padding = pad.min(pair.rest.len());
        pair.bytes(padding)?;
        let value = match number {
            // Lists inside a list follow the pair that announces them.
            kind::NVLIST => {
                pair.bytes(NATIVE_LIST)?;
                Value::Nvlist(native_pairs(input, depth + 1)?)
            }
            kind::NVLIST_ARRAY => {
                let structs = count.checked_mul(8 + NATIVE_LIST).ok_or(NvlistError::Truncated)?;
                pair.bytes(structs)?;
                Value::NvlistArray(input.many(count, |input| {
                    input.spend()?;
                    native_pairs(input, depth + 1)
                })?)
            }
            _ => native_value(&mut pair, number, count)?,
        };
        pairs.push((text(name), value));
    }
}

/// A string that a zero byte ends.
fn native_text(input: &mut Input<'_, '_>) -> Result<String, NvlistError> {
    input.spend()?;
    let len = input.rest.iter().position(|b| *b == 0).ok_or(NvlistError::Truncated)?;
    let string = text(input.bytes(len)?);
    input.bytes(1)?;
    Ok(string)
}

fn native_value(
    input: &mut Input<'_, '_>,
    number: i32,
    count: usize,
) -> Result<Value, NvlistError> {
    let byte = |input: &mut Input<'_, '_>| Ok(input.array::<1>()?[0]);
    Ok(match number {
        kind::BYTE => Value::Byte(byte(input)?),
        kind::INT8 => Value::Int8(byte(input)? as i8),
        kind::UINT8 => Value::Uint8(byte(input)?),
        kind::INT16 => Value::Int16(input.u16()? as i16),
        kind::UINT16 => Value::Uint16(input.u16()?),
        kind::STRING => Value::String(native_text(input)?),
        kind::BYTE_ARRAY => Value::ByteArray(input.bytes(count)?.to_vec()),
        kind::UINT8_ARRAY => Value::Uint8Array(input.bytes(count)?.to_vec()),
        kind::INT8_ARRAY => {
            Value::Int8Array(input.bytes(count)?.iter().map(|b| *b as i8).collect())
        }
        kind::INT16_ARRAY => Value::Int16Array(input.many(count, |i| Ok(i.u16()? as i16))?),
        kind::UINT16_ARRAY => Value::Uint16Array(input.many(count, Input::u16)?),
        kind::STRING_ARRAY => {
            // Room for pointers stands before the strings themselves.
            input.bytes(count.checked_mul(8).ok_or(NvlistError::Truncated)?)?;
            Value::StringArray(input.many(count, native_text)?)
        }
        _ => wide_value(input, number, count)?,
    })
}

/// The values that look alike in both layouts: nothing, or integers of four or eight bytes.
fn wide_value(input: &mut Input<'_, '_>, number: i32, count: usize) -> Result<Value, NvlistError> {
    Ok(match number {
        kind::BOOLEAN => Value::Boolean,
        kind::BOOLEAN_VALUE => Value::BooleanValue(input.u32()? != 0),
        kind::INT32 => Value::Int32(input.u32()? as i32),
        kind::UINT32 => Value::Uint32(input.u32()?),
        kind::INT64 => Value::Int64(input.u64()? as i64),
        kind::UINT64 => Value::Uint64(input.u64()?),
        kind::HRTIME => Value::Hrtime(input.u64()? as i64),
        kind::DOUBLE => Value::Double(f64::from_bits(input.u64()?)),
        kind::BOOLEAN_ARRAY => Value::BooleanArray(input.many(count, |i| Ok(i.u32()? != 0))?),
        kind::INT32_ARRAY => Value::Int32Array(input.many(count, |i| Ok(i.u32()? as i32))?),
        kind::UINT32_ARRAY => Value::Uint32Array(input.many(count, Input::u32)?),
        kind::INT64_ARRAY => Value::Int64Array(input.many(count, |i| Ok(i.u64()? as i64))?),
        kind::UINT64_ARRAY => Value::Uint64Array(input.many(count, Input::u64)?),
        other => return Err(NvlistError::UnknownType(other)),
    })
}

/// A list of the XDR layout, with its version and flags.
fn xdr_list(input: &mut Input<'_, '_>, depth: u32) -> Result<Nvlist, NvlistError> {
    if depth >= DEPTH_MAX {
        return Err(NvlistError::TooDeep);
    }
    input.bytes(8)?;
    let mut pairs = Vec::new();
    loop {
        let size = input.u32()? as usize;
        let _size_decoded = input.u32()?;
        if size == 0 {
            return Ok(Nvlist(pairs));
        }
        input.spend()?;
        let body = input.bytes(size.checked_sub(8).ok_or(NvlistError::Malformed)?)?;
        let mut pair = input.part(body);
        let name = xdr_text(&mut pair)?;
        let number = pair.u32()? as i32;
        let count = pair.u32()? as usize;
        let value = match number {
            kind::NVLIST => Value::Nvlist(xdr_list(&mut pair, depth + 1)?),
            kind::NVLIST_ARRAY => Value::NvlistArray(pair.many(count, |input| {
                input.spend()?;
                xdr_list(input, depth + 1)
            })?),
            _ => xdr_value(&mut pair, number, count)?,
        };
        pairs.push((name, value));
    }
}

/// Bytes, filled up to a multiple of four.
fn xdr_bytes<'a>(input: &mut Input<'a, '_>, len: usize) -> Result<&'a [u8], NvlistError> {
    let bytes = input.bytes(len)?;
    input.bytes(len.wrapping_neg() % 4)?;
    Ok(bytes)
}

fn xdr_text(input: &mut Input<'_, '_>) -> Result<String, NvlistError> {
    let len = input.count()?;
    Ok(text(xdr_bytes(input, len)?))
}

fn xdr_value(input: &mut Input<'_, '_>, number: i32, count: usize) -> Result<Value, NvlistError> {
    // Small integers take four bytes each, also in arrays; arrays repeat their count.
    Ok(match number {
        kind::BYTE => Value::Byte(input.u32()? as u8),
        kind::INT8 => Value::Int8(input.u32()? as i8),
        kind::UINT8 => Value::Uint8(input.u32()? as u8),
        kind::INT16 => Value::Int16(input.u32()? as i16),
        kind::UINT16 => Value::Uint16(input.u32()? as u16),
        kind::STRING => Value::String(xdr_text(input)?),
        kind::BYTE_ARRAY => Value::ByteArray(xdr_bytes(input, count)?.to_vec()),
        kind::STRING_ARRAY => Value::StringArray(input.many(count, |input| {
            input.spend()?;
            xdr_text(input)
        })?),
        kind::INT16_ARRAY..=kind::UINT64_ARRAY | kind::BOOLEAN_ARRAY..=kind::UINT8_ARRAY => {
            let count = input.count()?;
            match number {
                kind::INT8_ARRAY => Value::Int8Array(input.many(count, |i| Ok(i.u32()? as i8))?),
                kind::UINT8_ARRAY => Value::Uint8Array(input.many(count, |i| Ok(i.u32()? as u8))?),
                kind::INT16_ARRAY => Value::Int16Array(input.many(count, |i| Ok(i.u32()? as i16))?),
                kind::UINT16_ARRAY => {
                    Value::Uint16Array(input.many(count, |i| Ok(i.u32()? as u16))?)
                }
                _ => wide_value(input, number, count)?,
            }
        }
        _ => wide_value(input, number, count)?,
    })
}

#[cfg(test)]
mod tests;
