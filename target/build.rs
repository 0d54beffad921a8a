//! Refuses to build into this crate's own folder, which happens to have cargo's default name.
use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let here = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    assert!(
        !Path::new(&out).starts_with(&here),
        "build output would land in the source of the crate `target/`: run cargo from the \
         repository root, where .cargo/config.toml sets target-dir"
    );
}
