//! Holds that vanish with the process: the kernel releases them when it closes a descriptor.

use std::{
    ffi::{CStr, CString, NulError, c_int},
    fs::File,
    io,
    os::fd::AsRawFd as _,
    ptr::{null, null_mut},
};

use nvpair_sys::{
    Unavailable, nvlist_add_string, nvlist_alloc, nvlist_free, nvlist_next_nvpair, nvlist_t,
    nvpair_name, nvpair_value_int32,
};

/// Where the kernel module is reached.
const DEVICE: &str = "/dev/zfs";
/// `NV_UNIQUE_NAME`: adding a name again replaces its value.
const UNIQUE_NAME: u32 = 1;

/// Why snapshots could not be held. None of them is held then.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The library is not there.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The kernel module cannot be reached.
    #[error("{DEVICE} cannot be opened: {0}; load the kernel module zfs, and see who may use it")]
    Device(#[source] io::Error),
    /// A name has a zero byte.
    #[error("a name to hold has a zero byte: {0}")]
    Name(#[from] NulError),
    /// libzfs_core cannot begin, or has no memory: an errno.
    #[error("libzfs_core failed with errno {0}")]
    Library(i32),
    /// ZFS refused, with an errno or `ZFS_ERR_…` for each snapshot that it names; where it
    /// names none, the one in the back is for all.
    #[error("ZFS refused to hold {0:?}, errno {1}")]
    Refused(Vec<(String, i32)>, i32),
}

/// Held snapshots. Dropping it releases them, and so does the end of the process, however it
/// ends.
#[derive(Debug)]
pub struct Holds {
    _cleanup: File,
}

/// Holds all of these snapshots, of one pool, under `tag`, which must be new to each.
///
/// # Errors
///
/// See [`HoldError`]. A snapshot that does not exist is one.
pub fn hold<'a>(
    tag: &str,
    snapshots: impl IntoIterator<Item = &'a str>,
) -> Result<Holds, HoldError> {
    crate::available()?;
    let cleanup = File::options().read(true).write(true).open(DEVICE).map_err(HoldError::Device)?;
    let mut wanted = List::new()?;
    let tag = CString::new(tag)?;
    for snapshot in snapshots {
        wanted.add(&CString::new(snapshot)?, &tag)?;
    }
    let _session = Session::new()?;
    let mut errors = List(null_mut());
    // SAFETY: both lists live on; the library stores one of its own in the second, which is
    // freed with it; the descriptor is open.
    let errno = unsafe { crate::lzc_hold(wanted.0, cleanup.as_raw_fd(), &raw mut errors.0) };
    let refused = errors.numbers();
    // A missing snapshot beside one that exists is in the list only, with a result of 0.
    if errno != 0 || !refused.is_empty() {
        return Err(HoldError::Refused(refused, errno));
    }
    Ok(Holds { _cleanup: cleanup })
}

/// The library in use. It counts those who use it.
struct Session;

impl Session {
    fn new() -> Result<Self, HoldError> {
        // SAFETY: it may be called at any time, by any thread.
        match unsafe { crate::libzfs_core_init() } {
            0 => Ok(Self),
            errno => Err(HoldError::Library(errno)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: it pairs with the call that made this.
        unsafe { crate::libzfs_core_fini() }
    }
}

/// A list of the library's, or null, which reads as empty.
struct List(*mut nvlist_t);

impl List {
    fn new() -> Result<Self, HoldError> {
        let mut list = null_mut();
        // SAFETY: the pointer may be written to.
        match unsafe { nvlist_alloc(&raw mut list, UNIQUE_NAME, 0) } {
            0 => Ok(Self(list)),
            errno => Err(HoldError::Library(errno)),
        }
    }

    fn add(&mut self, name: &CStr, value: &CStr) -> Result<(), HoldError> {
        // SAFETY: the list is ours, and the library copies both strings.
        match unsafe { nvlist_add_string(self.0, name.as_ptr(), value.as_ptr()) } {
            0 => Ok(()),
            errno => Err(HoldError::Library(errno)),
        }
    }

    /// The names in it with their numbers, which are errnos in a list of errors.
    fn numbers(&self) -> Vec<(String, i32)> {
        let mut numbers = Vec::new();
        let mut pair = null();
        loop {
            // SAFETY: the list is ours or null, and the pair null or the one before in it.
            pair = unsafe { nvlist_next_nvpair(self.0, pair) };
            if pair.is_null() {
                return numbers;
            }
            let mut number: c_int = 0;
            // SAFETY: the pair is of the list, its name ends with a zero and lives as long as
            // the list; a value of another type leaves the number as it is.
            let name = unsafe {
                nvpair_value_int32(pair, &raw mut number);
                CStr::from_ptr(nvpair_name(pair))
            };
            numbers.push((name.to_string_lossy().into_owned(), number));
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list is ours, or null, which the library takes.
        unsafe { nvlist_free(self.0) }
    }
}
