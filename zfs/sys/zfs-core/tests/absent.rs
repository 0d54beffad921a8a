//! Without libzfs_core, or without the kernel module, there are errors in words.
#![expect(unsafe_code, reason = "the functions under test are those of a C library")]

use std::path::Path;

use libzetta_zfs_core_sys::{HoldError, available, hold, libzfs_core_init, lzc_exists, lzc_send};

/// What holds on any machine depends on what it has; what may never happen is a panic.
#[test]
fn each_missing_part_is_named() {
    // SAFETY: it may be called at any time; and without the library the others call nothing.
    let errno = unsafe { libzfs_core_init() };
    let held = hold("driftline-test", ["driftline-no-such-pool/none@none"]).unwrap_err();
    match available() {
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains("cannot be used") && words.contains("install"), "{words}");
            assert_eq!(held.to_string(), words);
            assert_eq!(errno, nvpair_sys::ENOTSUP);
            // SAFETY: without the library they call nothing.
            let (exists, sent) = unsafe {
                let name = c"tank/a@b".as_ptr();
                (lzc_exists(name), lzc_send(name, std::ptr::null(), -1, 0))
            };
            assert_eq!((exists, sent), (0, nvpair_sys::ENOTSUP));
        }
        Ok(()) if !Path::new("/dev/zfs").exists() => {
            assert_ne!(errno, 0);
            assert!(matches!(held, HoldError::Device(_)), "{held}");
            assert!(held.to_string().contains("load the kernel module"), "{held}");
        }
        Ok(()) => assert!(!held.to_string().is_empty()),
    }
}
