//! A library that is not there, or is not what it should be, is an error in words.
#![expect(unsafe_code, reason = "the functions under test are those of a C library")]

use std::ffi::{c_double, c_int};

mod nowhere {
    nvpair_sys::loaded! {
        "libdriftline-nowhere.so.0";
        fn nowhere_number(value: super::c_int) -> super::c_int = nvpair_sys::ENOTSUP;
        fn nowhere_nothing();
    }

    pub(super) fn why() -> String {
        functions().err().expect("there is no such library").to_string()
    }
}

/// The C library: it is there, so that what is not in it can be told apart.
mod incomplete {
    nvpair_sys::loaded! {
        "libm.so.6";
        fn cos(x: super::c_double) -> super::c_double = f64::NAN;
        fn driftline_has_no_such_function(value: super::c_int) -> super::c_int = -7;
    }

    pub(super) fn why() -> String {
        functions().err().expect("there is no such function").to_string()
    }
}

mod complete {
    nvpair_sys::loaded! {
        "libm.so.6";
        fn cos(x: super::c_double) -> super::c_double = f64::NAN;
    }
}

#[test]
fn a_missing_library_is_named_and_its_functions_fail() {
    let why = nowhere::why();
    assert!(why.starts_with("libdriftline-nowhere.so.0 cannot be used: "), "{why}");
    assert!(why.contains("No such file") && why.contains("zfsutils-linux"), "{why}");
    // SAFETY: there is no library that they could call.
    unsafe {
        assert_eq!(nowhere::nowhere_number(1), nvpair_sys::ENOTSUP);
        nowhere::nowhere_nothing();
    }
}

#[test]
fn a_missing_function_is_named_and_none_is_called() {
    let why = incomplete::why();
    assert!(why.contains("it has no driftline_has_no_such_function"), "{why}");
    // SAFETY: cos of libm takes and returns a double; the other is not there.
    unsafe {
        assert!(incomplete::cos(0.0).is_nan());
        assert_eq!(incomplete::driftline_has_no_such_function(1), -7);
    }
}

#[test]
fn what_is_there_is_called() {
    // SAFETY: cos of libm takes and returns a double.
    assert_eq!(unsafe { complete::cos(0.0) }, 1.0);
}

/// On a machine with libnvpair a list can be made; without it the error says so, and nothing
/// that libnv calls panics.
#[test]
fn libnvpair_is_there_or_not() {
    use nvpair_sys::{available, nvlist_alloc, nvlist_empty, nvlist_free, nvlist_next_nvpair};
    let mut list = std::ptr::null_mut();
    // SAFETY: the list is the library's own, or null, which all of these take.
    let (errno, empty, first) = unsafe {
        let errno = nvlist_alloc(&raw mut list, 0, 0);
        let found = (errno, nvlist_empty(list), nvlist_next_nvpair(list, std::ptr::null()));
        nvlist_free(list);
        found
    };
    assert!(first.is_null());
    assert_eq!(empty, nvpair_sys::boolean_t::B_TRUE);
    match available() {
        Ok(()) => assert_eq!((errno, list.is_null()), (0, false)),
        Err(error) => {
            assert_eq!((errno, list.is_null()), (nvpair_sys::ENOTSUP, true));
            assert!(error.to_string().starts_with("libnvpair.so.3 cannot be used"), "{error}");
        }
    }
}
