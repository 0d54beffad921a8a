//! libzfs_core, loaded at run time, in the place of the crate of this name that links it.
//!
//! libzetta calls what is here as if it were linked. [`available`] says whether the library is
//! there, and why not; without it the functions fail with [`ENOTSUP`] and
//! nothing exists. All of them but [`libzfs_core_init`] want that one to have succeeded before.
//! A result is 0, an errno, or a `ZFS_ERR_…` of `sys/fs/zfs.h`, from 1024 on.
//!
//! * [`hold`]: holds that vanish with the process, which libzetta lacks. It is all safe code
//!   outside.
//!
//! The signatures are those of `libzfs_core.h`; they are the same in OpenZFS 0.8 to 2.4.
#![expect(unsafe_code, reason = "this crate exists to call a C library")]

mod hold;

use std::ffi::{c_char, c_int, c_uint};

pub use hold::{HoldError, Holds, hold};
use nvpair_sys::{ENOTSUP, boolean_t, loaded};
pub use nvpair_sys::{Unavailable, nvlist_t};

/// What [`lzc_create`] makes.
pub mod lzc_dataset_type {
    /// How one is passed.
    pub type Type = std::ffi::c_uint;
    /// A file system. The name is spelled as in the crate that this one replaces.
    pub const LZC_DATSET_TYPE_ZFS: Type = 2;
    /// A volume.
    pub const LZC_DATSET_TYPE_ZVOL: Type = 3;
}

/// Whether libzfs_core and libnvpair are there and have all that is called here. It does not
/// say whether the kernel module is: [`libzfs_core_init`] does, by `ENOENT`.
///
/// # Errors
///
/// What is missing, and what to do.
pub fn available() -> Result<(), Unavailable> {
    nvpair_sys::available()?;
    functions().map(|_| ()).map_err(Clone::clone)
}

loaded! {
    "libzfs_core.so.3";

    fn libzfs_core_init() -> c_int = ENOTSUP;
    fn libzfs_core_fini();
    fn lzc_exists(name: *const c_char) -> boolean_t::Type = boolean_t::B_FALSE;
    fn lzc_create(
        name: *const c_char,
        kind: lzc_dataset_type::Type,
        properties: *mut nvlist_t,
        key: *mut u8,
        key_len: c_uint,
    ) -> c_int = ENOTSUP;
    fn lzc_snapshot(
        snapshots: *mut nvlist_t, properties: *mut nvlist_t, errors: *mut *mut nvlist_t
    ) -> c_int = ENOTSUP;
    fn lzc_destroy_snaps(
        snapshots: *mut nvlist_t, defer: boolean_t::Type, errors: *mut *mut nvlist_t
    ) -> c_int = ENOTSUP;
    fn lzc_bookmark(bookmarks: *mut nvlist_t, errors: *mut *mut nvlist_t) -> c_int = ENOTSUP;
    fn lzc_destroy_bookmarks(
        bookmarks: *mut nvlist_t, errors: *mut *mut nvlist_t
    ) -> c_int = ENOTSUP;
    fn lzc_hold(
        holds: *mut nvlist_t, cleanup: c_int, errors: *mut *mut nvlist_t
    ) -> c_int = ENOTSUP;
    fn lzc_send(
        tip: *const c_char, base: *const c_char, output: c_int, flags: c_uint
    ) -> c_int = ENOTSUP;
    fn lzc_channel_program(
        pool: *const c_char,
        program: *const c_char,
        instructions: u64,
        memory: u64,
        arguments: *mut nvlist_t,
        results: *mut *mut nvlist_t,
    ) -> c_int = ENOTSUP;
    fn lzc_channel_program_nosync(
        pool: *const c_char,
        program: *const c_char,
        instructions: u64,
        memory: u64,
        arguments: *mut nvlist_t,
        results: *mut *mut nvlist_t,
    ) -> c_int = ENOTSUP;
}
