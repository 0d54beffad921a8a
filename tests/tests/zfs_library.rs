//! The loaders of `zfs/sys` with the libraries of a real ZFS, as libzetta and libnv use them.
//!
//! The libraries are those beside the program that `DRIFTLINE_ZSTREAM` names, which
//! `tests/real/fetch-zstream` fetches with them, or else the system's. The dynamic linker
//! reads its path when a process starts, so each test runs again in a process of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use driftline_zfs::host::Zfs;
use libnv::nvpair::{NvList, Value};

/// Set in the processes that have the libraries.
const INNER: &str = "DRIFTLINE_TEST_INNER";

/// Runs `check`, which is the test of this name, where the libraries are found.
fn with_libraries(test: &str, check: impl FnOnce()) {
    if env::var_os(INNER).is_some() {
        return check();
    }
    let program = env::var_os("DRIFTLINE_ZSTREAM").expect(
        "DRIFTLINE_ZSTREAM must name the program zstream: \
         run tests/real/fetch-zstream CACHE-FOLDER and set it to the path that it prints",
    );
    let beside = Path::new(&program).parent().map(|folder| folder.join("root"));
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INNER, "1")
        .env(
            "LD_LIBRARY_PATH",
            beside.and_then(|root| folder_of_library(&root)).unwrap_or_default(),
        )
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}\n{errors}");
}

/// The folder below this one that has libzfs_core.
fn folder_of_library(root: &Path) -> Option<PathBuf> {
    if root.join("libzfs_core.so.3").exists() {
        return Some(root.to_owned());
    }
    let folders = fs::read_dir(root).ok()?.filter_map(Result::ok);
    folders
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| folder_of_library(&entry.path()))
}

/// Values go into a list of libnvpair's and come out as they were.
#[test]
fn lists_keep_what_is_put_in() {
    with_libraries("lists_keep_what_is_put_in", || {
        let mut list = NvList::default();
        assert!(list.is_empty());
        list.insert("tank/vm 1@a:b", true).unwrap();
        list.insert_boolean("tank/vm 1#a:b").unwrap();
        list.insert("text", "a value: of words").unwrap();
        list.insert("i8", i8::MIN).unwrap();
        list.insert("u8", u8::MAX).unwrap();
        list.insert("i16", i16::MIN).unwrap();
        list.insert("u16", u16::MAX).unwrap();
        list.insert("i32", i32::MIN).unwrap();
        list.insert("u32", u32::MAX).unwrap();
        list.insert("i64", i64::MIN).unwrap();
        list.insert("u64", u64::MAX).unwrap();
        list.insert_u64_array("many", &mut [1, u64::MAX, 3]).unwrap();
        assert!(!list.is_empty() && list.exists("text").unwrap());
        assert!(!list.exists("tank/vm 1@a").unwrap());
        assert!(list.get_boolean_value("tank/vm 1@a:b").unwrap());
        assert_eq!(list.get_str("text").unwrap(), "a value: of words");
        assert_eq!(list.get_i8("i8").unwrap(), i8::MIN);
        assert_eq!(list.get_u64("u64").unwrap(), u64::MAX);
        assert_eq!(list.get_u64_array("many").unwrap(), [1, u64::MAX, 3]);
        assert!(list.get_u64("i64").is_err(), "it has another type");

        let names: Vec<String> =
            list.iter().map(|pair| pair.key().to_str().unwrap().to_owned()).collect();
        assert_eq!(names[..3], ["tank/vm 1@a:b", "tank/vm 1#a:b", "text"]);
        let mut values = list.into_hashmap();
        assert_eq!(values.remove("tank/vm 1#a:b"), Some(Value::Bool(true)));
        assert_eq!(values.remove("i32"), Some(Value::Int32(i32::MIN)));
        assert_eq!(values.remove("u16"), Some(Value::Uint16(u16::MAX)));
        assert_eq!(values.remove("text"), Some(Value::from("a value: of words")));
        assert_eq!(values.remove("many"), Some(Value::Unknown));
    });
}

/// The functions are looked up once, by whichever thread comes first.
#[test]
fn threads_may_be_first_together() {
    with_libraries("threads_may_be_first_together", || {
        let fill = || {
            let mut list = NvList::default();
            (0..100u32).for_each(|i| list.insert(i.to_string(), i).unwrap());
            list.into_hashmap().len()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(fill)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 100));
        });
    });
}

/// With the libraries and without the kernel module, that is what is said to be missing.
#[test]
fn the_library_says_whether_the_module_is_there() {
    with_libraries("the_library_says_whether_the_module_is_there", || {
        let why = match Zfs::find() {
            Ok(zfs) => zfs.library().err().map(str::to_owned),
            Err(error) => Some(error.to_string()),
        };
        match (Path::new("/dev/zfs").exists(), why) {
            (true, why) => assert_eq!(why, None),
            (false, why) => {
                let why = why.expect("there is nothing that the library could use");
                let says = "libzfs_core cannot use the kernel module by /dev/zfs: No such file";
                assert!(why.contains(says), "{why}");
            }
        }
    });
}
