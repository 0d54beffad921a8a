//! The index of chunks through the real server: what any of its replicas has does not move again.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use common::{Pair, driftline, json, noise};
use serde_json::Value;

const CHUNK: usize = 64 << 10;
const GRAIN: usize = 4096;
const SIZE: usize = 32 << 20;

/// A clone of `base`: one grain in a hundred, wherever chance has put it, is another.
fn clone_of(base: &[u8]) -> Vec<u8> {
    let mut clone = base.to_vec();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for number in 0..base.len() / GRAIN / 100 {
        // xorshift64: the same grains in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let grain = random as usize % (base.len() / GRAIN);
        clone[grain * GRAIN..][..GRAIN].fill(number as u8);
    }
    clone
}

fn moved(done: &Value) -> usize {
    let bytes = |way| done["bytes"][way].as_u64().unwrap() as usize;
    bytes("sent") + bytes("received")
}

/// A server with an index, which takes `base`, `one` and `two`.
fn configure(pair: &Pair) {
    let (at, client) = (pair.path().display(), &pair.client);
    let volumes = ["base", "one", "two"]
        .map(|name| format!("[[volume]]\nname = \"{name}\"\ntarget = \"file:{at}/{name}-copy\"\n"));
    let config = format!(
        "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"{at}/server.key\"\nindex = \"{at}/index\"\n\
         [[peer]]\nname = \"client\"\nkey = \"{client}\"\npush = [\"base\", \"one\", \"two\"]\n{}",
        volumes.concat()
    );
    fs::write(pair.path().join("serve.toml"), config).unwrap();
}

fn is_equal(dir: &Path, volume: &str, content: &[u8]) -> bool {
    fs::read(dir.join(format!("{volume}-copy"))).unwrap() == content
}

/// That their books say the same, once no server has them open.
fn verify(dir: &Path, volumes: &[&str]) {
    for volume in volumes {
        json(dir, 0, &["verify", &format!("file:{volume}-copy")]);
    }
}

fn rebuild(dir: &Path) -> (Option<i32>, String) {
    let output = driftline(dir, &["index", "rebuild", "--config", "serve.toml"]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_a_replica_of_the_server_has_does_not_move_again() {
    let pair = Pair::new();
    let dir = pair.path();
    configure(&pair);
    let base = noise(&dir.join("base.img"), SIZE, 1);
    let clone = clone_of(&base);
    fs::write(dir.join("clone.img"), &clone).unwrap();
    let mut server = common::Server::start(dir);
    let push = |address, source: &str, volume: &str| {
        json(dir, 0, &pair.push(source, &format!("{volume}@{address}")))
    };
    assert!(moved(&push(server.address, "file:base.img", "base")) > SIZE);
    // By the names of chunks alone: nothing says what it is like.
    let first = moved(&push(server.address, "file:clone.img", "one"));
    assert!(first * 100 <= SIZE * 16, "{first} bytes moved");
    assert!(is_equal(dir, "one", &clone));
    // What went elsewhere by whole chunks.
    let mut shifted = clone.clone();
    shifted.rotate_right(5 * CHUNK);
    fs::write(dir.join("clone.img"), &shifted).unwrap();
    let second = moved(&push(server.address, "file:clone.img", "one"));
    assert!(second * 100 <= SIZE * 2, "{second} bytes moved");
    assert!(is_equal(dir, "one", &shifted));

    // While somebody uses it, it is not made anew.
    let (code, said) = rebuild(dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("used by another process"), "{said}");
    server.kill();
    let whole = fs::read(dir.join("index")).unwrap();
    // What never was an index stays, and costs the server nothing but its index.
    fs::write(dir.join("index"), "rubbish").unwrap();
    let (code, said) = rebuild(dir);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("index is no index of Driftline"), "{said}");
    let mut server = common::Server::start(dir);
    push(server.address, "file:clone.img", "two");
    assert!(server.log().contains("index is no index of Driftline"), "{}", server.log());
    server.kill();
    assert_eq!(fs::read(dir.join("index")).unwrap(), b"rubbish");
    fs::write(dir.join("index"), &whole[..whole.len() / 2]).unwrap();
    let (code, said) = rebuild(dir);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("chunks of 2 replicas"), "{said}");
    let mut server = common::Server::start(dir);
    let third = moved(&push(server.address, "file:clone.img", "two"));
    assert!(third * 100 <= SIZE * 2, "{third} bytes moved");
    assert!(is_equal(dir, "two", &shifted));
    server.kill();

    // One that is damaged is put aside, loudly, and nothing else comes of it.
    fs::write(dir.join("index"), &whole[..whole.len() / 2]).unwrap();
    let mut server = common::Server::start(dir);
    let grown = [&shifted[..], &base[..7 * CHUNK]].concat();
    fs::write(dir.join("clone.img"), &grown).unwrap();
    let fourth = moved(&push(server.address, "file:clone.img", "two"));
    assert!(fourth * 100 <= SIZE * 2, "{fourth} bytes moved");
    assert!(is_equal(dir, "two", &grown));
    assert!(dir.join("index.damaged").exists());
    assert!(server.log().contains("ERROR"), "{}", server.log());
    server.kill();
    verify(dir, &["base", "one", "two"]);
}

/// The server is killed in the middle of pushes, and so is its index.
#[test]
fn a_server_that_is_killed_has_an_index_that_costs_no_byte() {
    let pair = Pair::new();
    let dir = pair.path();
    configure(&pair);
    let base = noise(&dir.join("base.img"), SIZE / 4, 3);
    let clone = clone_of(&base);
    fs::write(dir.join("clone.img"), &clone).unwrap();
    let mut server = common::Server::start(dir);
    for (after, source, volume) in [
        (64 * CHUNK, "file:base.img", "base"),
        (100 * CHUNK, "file:base.img", "base"),
        (2 * CHUNK, "file:clone.img", "one"),
        (9 * CHUNK, "file:clone.img", "one"),
    ] {
        let id = server.id().to_string();
        let proxy = common::Proxy::start(server.address, after as u64, move || {
            let mut kill = Command::new("kill");
            kill.args(["-KILL", &id]).stdout(Stdio::null()).status().unwrap();
        });
        let target = format!("{volume}@{}", proxy.address);
        // Whether it was done before the server died is all the same.
        driftline(dir, &pair.push(source, &target));
        server = common::Server::start(dir);
    }
    for (source, volume, content) in
        [("file:base.img", "base", &base), ("file:clone.img", "one", &clone)]
    {
        json(dir, 0, &pair.push(source, &format!("{volume}@{}", server.address)));
        assert!(is_equal(dir, volume, content));
    }
    let copied =
        moved(&json(dir, 0, &pair.push("file:clone.img", &format!("two@{}", server.address))));
    assert!(copied * 100 <= base.len() * 3, "{copied} bytes moved");
    assert!(is_equal(dir, "two", &clone));
    server.kill();
    verify(dir, &["base", "one", "two"]);
}
