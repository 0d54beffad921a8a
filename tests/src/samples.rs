//! Send streams that real ZFS wrote.

use std::{fs, path::PathBuf};

/// The path of a file in the folder of the samples.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/zfs").join(name)
}

/// The sample with this name.
///
/// # Panics
/// If there is none.
pub fn sample(name: &str) -> Vec<u8> {
    fs::read(data(&format!("{name}.zs"))).expect("the sample is part of the project")
}

/// Every sample with its name, in the order of their names.
///
/// # Panics
/// If one is missing, or is new to this.
pub fn all_samples() -> Vec<(String, Vec<u8>)> {
    let mut samples: Vec<_> = fs::read_dir(data(""))
        .expect("the samples are part of the project")
        .map(|entry| entry.expect("the folder can be read").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".zs")?.to_owned()))
        .map(|name| (name.clone(), sample(&name)))
        .collect();
    samples.sort();
    assert_eq!(samples.len(), 25, "a sample was added or lost");
    samples
}
