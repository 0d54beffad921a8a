//! Memory is bounded whatever the size of the volume.

mod common;

use std::{
    fs,
    process::Stdio,
    sync::{Arc, Mutex},
};

use common::{Pair, Proxy, command, noise, zstream};

/// What each process may use at its peak, in KiB.
const PEAK_MAX_KIB: u64 = 256 << 10;

/// The peak of a process so far, in KiB; `None` once it is gone.
fn peak_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Pushes `source` over loopback and gives the peaks of client and server, in KiB. The
/// client's is taken when `last` bytes have crossed the connection, shortly before its end.
fn peaks(pair: &Pair, source: &str, last: u64) -> (u64, u64) {
    let server = pair.serve_vm();
    let process = Arc::new(Mutex::new(0));
    let client_peak = Arc::new(Mutex::new(None));
    let (observed, peak) = (process.clone(), client_peak.clone());
    let proxy = Proxy::start(server.address, last, move || {
        *peak.lock().unwrap() = peak_kib(*observed.lock().unwrap());
    });
    let target = format!("vm@{}", proxy.address);
    let mut guard = process.lock().unwrap();
    let mut push = command(pair.path(), &pair.push(source, &target))
        .arg("-q")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    *guard = push.id();
    drop(guard);
    assert!(push.wait().unwrap().success());
    let client = client_peak.lock().unwrap().expect("the client was looked at");
    (client, peak_kib(server.id()).unwrap())
}

#[test]
fn a_large_volume_takes_no_more_memory_than_it_may() {
    let pair = Pair::new();
    let len = 768 << 20;
    noise(&pair.path().join("a.img"), len, 1);
    let (client, server) = peaks(&pair, "file:a.img", len as u64 - (4 << 20));
    println!("first copy of 768 MiB: client {client} KiB, server {server} KiB");
    assert!(client < PEAK_MAX_KIB && server < PEAK_MAX_KIB, "{client} and {server} KiB");

    // Everything differs: an increment as large as the volume.
    noise(&pair.path().join("a.img"), len, 2);
    let (client, server) = peaks(&pair, "file:a.img", len as u64 - (4 << 20));
    println!("increment of 768 MiB: client {client} KiB, server {server} KiB");
    assert!(client < PEAK_MAX_KIB && server < PEAK_MAX_KIB, "{client} and {server} KiB");
}

#[test]
fn a_tebibyte_takes_no_more_memory_than_it_may() {
    let pair = Pair::new();
    let (client, server) = peaks(&pair, &zstream("big1T.full.zs"), 16 << 10);
    println!("first copy of 1 TiB, sparse: client {client} KiB, server {server} KiB");
    assert!(client < PEAK_MAX_KIB && server < PEAK_MAX_KIB, "{client} and {server} KiB");
}
