//! libnvpair, loaded at run time, in the place of the crate of this name that links it.
//!
//! libzetta and libnv call what is here as if it were linked. With it, one program is built
//! without any ZFS package and starts on machines without ZFS. [`available`] says whether the
//! library is there, and why not; without it the functions fail with [`ENOTSUP`], find
//! nothing, and never panic.
//!
//! The functions and types are those that libnv 0.4 uses, with the signatures of
//! `sys/nvpair.h`; they are the same in OpenZFS 0.8 to 2.4.
#![expect(unsafe_code, reason = "this crate exists to call a C library")]

mod load;

use std::{
    ffi::{c_char, c_int, c_uint},
    ptr::null_mut,
};

pub use load::{Library, Unavailable};

/// What a function returns where its library is not there: `EOPNOTSUPP` of Linux, "Operation
/// not supported". It is not `ENOENT`, which could be taken for a data set that is not there.
pub const ENOTSUP: c_int = 95;

/// A list of names and values, which only the library looks into.
#[repr(C)]
pub struct nvlist_t {
    opaque: [u8; 0],
}

/// A name with its value, in an [`nvlist_t`].
#[repr(C)]
pub struct nvpair_t {
    opaque: [u8; 0],
}

/// C's truth values.
pub mod boolean_t {
    /// How one is passed.
    pub type Type = std::ffi::c_uint;
    /// False.
    pub const B_FALSE: Type = 0;
    /// True.
    pub const B_TRUE: Type = 1;
}

/// The kinds of value that libnv knows.
#[expect(missing_docs, reason = "each says what it is")]
pub mod data_type_t {
    /// How one is passed.
    pub type Type = std::ffi::c_int;
    pub const DATA_TYPE_UNKNOWN: Type = 0;
    pub const DATA_TYPE_BOOLEAN: Type = 1;
    pub const DATA_TYPE_INT16: Type = 3;
    pub const DATA_TYPE_UINT16: Type = 4;
    pub const DATA_TYPE_INT32: Type = 5;
    pub const DATA_TYPE_UINT32: Type = 6;
    pub const DATA_TYPE_INT64: Type = 7;
    pub const DATA_TYPE_UINT64: Type = 8;
    pub const DATA_TYPE_STRING: Type = 9;
    pub const DATA_TYPE_BOOLEAN_VALUE: Type = 21;
    pub const DATA_TYPE_INT8: Type = 22;
    pub const DATA_TYPE_UINT8: Type = 23;
}

/// Whether libnvpair is there and has all that is called here.
///
/// # Errors
///
/// What is missing, and what to do.
pub fn available() -> Result<(), Unavailable> {
    functions().map(|_| ()).map_err(Clone::clone)
}

loaded! {
    "libnvpair.so.3";

    fn nvlist_alloc(list: *mut *mut nvlist_t, flags: c_uint, sleep: c_int) -> c_int = ENOTSUP;
    fn nvlist_free(list: *mut nvlist_t);
    fn nvlist_empty(list: *const nvlist_t) -> boolean_t::Type = boolean_t::B_TRUE;
    fn nvlist_exists(list: *const nvlist_t, name: *const c_char) -> boolean_t::Type
        = boolean_t::B_FALSE;
    fn nvlist_next_nvpair(list: *mut nvlist_t, after: *const nvpair_t) -> *mut nvpair_t
        = null_mut();

    fn nvlist_add_boolean(list: *mut nvlist_t, name: *const c_char) -> c_int = ENOTSUP;
    fn nvlist_add_boolean_value(
        list: *mut nvlist_t, name: *const c_char, value: boolean_t::Type
    ) -> c_int = ENOTSUP;
    fn nvlist_add_int8(list: *mut nvlist_t, name: *const c_char, value: i8) -> c_int = ENOTSUP;
    fn nvlist_add_uint8(list: *mut nvlist_t, name: *const c_char, value: u8) -> c_int = ENOTSUP;
    fn nvlist_add_int16(list: *mut nvlist_t, name: *const c_char, value: i16) -> c_int = ENOTSUP;
    fn nvlist_add_uint16(list: *mut nvlist_t, name: *const c_char, value: u16) -> c_int = ENOTSUP;
    fn nvlist_add_int32(list: *mut nvlist_t, name: *const c_char, value: i32) -> c_int = ENOTSUP;
    fn nvlist_add_uint32(list: *mut nvlist_t, name: *const c_char, value: u32) -> c_int = ENOTSUP;
    fn nvlist_add_int64(list: *mut nvlist_t, name: *const c_char, value: i64) -> c_int = ENOTSUP;
    fn nvlist_add_uint64(list: *mut nvlist_t, name: *const c_char, value: u64) -> c_int = ENOTSUP;
    fn nvlist_add_string(
        list: *mut nvlist_t, name: *const c_char, value: *const c_char
    ) -> c_int = ENOTSUP;
    fn nvlist_add_int8_array(
        list: *mut nvlist_t, name: *const c_char, values: *const i8, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_uint8_array(
        list: *mut nvlist_t, name: *const c_char, values: *const u8, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_int16_array(
        list: *mut nvlist_t, name: *const c_char, values: *const i16, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_uint16_array(
        list: *mut nvlist_t, name: *const c_char, values: *const u16, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_int32_array(
        list: *mut nvlist_t, name: *const c_char, values: *const i32, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_uint32_array(
        list: *mut nvlist_t, name: *const c_char, values: *const u32, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_int64_array(
        list: *mut nvlist_t, name: *const c_char, values: *const i64, count: c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_add_uint64_array(
        list: *mut nvlist_t, name: *const c_char, values: *const u64, count: c_uint
    ) -> c_int = ENOTSUP;

    fn nvlist_lookup_boolean(list: *const nvlist_t, name: *const c_char) -> c_int = ENOTSUP;
    fn nvlist_lookup_boolean_value(
        list: *const nvlist_t, name: *const c_char, value: *mut boolean_t::Type
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int8(
        list: *const nvlist_t, name: *const c_char, value: *mut i8
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint8(
        list: *const nvlist_t, name: *const c_char, value: *mut u8
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int16(
        list: *const nvlist_t, name: *const c_char, value: *mut i16
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint16(
        list: *const nvlist_t, name: *const c_char, value: *mut u16
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int32(
        list: *const nvlist_t, name: *const c_char, value: *mut i32
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint32(
        list: *const nvlist_t, name: *const c_char, value: *mut u32
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int64(
        list: *const nvlist_t, name: *const c_char, value: *mut i64
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint64(
        list: *const nvlist_t, name: *const c_char, value: *mut u64
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_string(
        list: *const nvlist_t, name: *const c_char, value: *mut *mut c_char
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int8_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut i8, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint8_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut u8, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int16_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut i16, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint16_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut u16, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int32_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut i32, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint32_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut u32, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_int64_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut i64, count: *mut c_uint
    ) -> c_int = ENOTSUP;
    fn nvlist_lookup_uint64_array(
        list: *mut nvlist_t, name: *const c_char, values: *mut *mut u64, count: *mut c_uint
    ) -> c_int = ENOTSUP;

    fn nvpair_name(pair: *const nvpair_t) -> *const c_char = c"".as_ptr();
    fn nvpair_type(pair: *const nvpair_t) -> data_type_t::Type = data_type_t::DATA_TYPE_UNKNOWN;
    fn nvpair_value_boolean_value(
        pair: *const nvpair_t, value: *mut boolean_t::Type
    ) -> c_int = ENOTSUP;
    fn nvpair_value_int8(pair: *const nvpair_t, value: *mut i8) -> c_int = ENOTSUP;
    fn nvpair_value_uint8(pair: *const nvpair_t, value: *mut u8) -> c_int = ENOTSUP;
    fn nvpair_value_int16(pair: *const nvpair_t, value: *mut i16) -> c_int = ENOTSUP;
    fn nvpair_value_uint16(pair: *const nvpair_t, value: *mut u16) -> c_int = ENOTSUP;
    fn nvpair_value_int32(pair: *const nvpair_t, value: *mut i32) -> c_int = ENOTSUP;
    fn nvpair_value_uint32(pair: *const nvpair_t, value: *mut u32) -> c_int = ENOTSUP;
    fn nvpair_value_int64(pair: *const nvpair_t, value: *mut i64) -> c_int = ENOTSUP;
    fn nvpair_value_uint64(pair: *const nvpair_t, value: *mut u64) -> c_int = ENOTSUP;
    fn nvpair_value_string(pair: *const nvpair_t, value: *mut *mut c_char) -> c_int = ENOTSUP;
}
