//! Who is let in, to what, and what a killed process leaves behind.

mod common;

use std::{fs, process::Stdio, sync::mpsc::channel};

use common::{
    Pair, Proxy, Server, command, driftline, json, keygen, noise, recorded_sha256, sha256, zstream,
};

#[test]
fn an_unpinned_key_is_refused_on_either_side() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let stranger = keygen(pair.path(), "stranger.key");
    let source = zstream("lz4-16k.full.zs");
    for (key, peer) in [("stranger.key", pair.server.as_str()), ("client.key", &stranger)] {
        let refused =
            json(pair.path(), 3, &["push", &source, &target, "--key", key, "--peer", peer]);
        // The next run would fail as well.
        assert_eq!(refused["error"]["reason"], "denied");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains("during the handshake"), "{detail}");
        assert!(!pair.image().exists());
    }
    json(pair.path(), 0, &pair.push(&source, &target));
    let log = server.log();
    assert!(log.contains(&stranger) && log.contains("not let in"), "{log}");
}

#[test]
fn a_key_may_do_what_the_configuration_says_and_no_more() {
    let pair = Pair::new();
    let dir = pair.path().display();
    let secret = noise(&pair.path().join("secret.img"), 1 << 16, 1);
    let server = pair.serve(&format!(
        "push = [\"vm\"]\n\
         [[volume]]\nname = \"vm\"\ntarget = \"file:{dir}/vm.img\"\n\
         [[volume]]\nname = \"other\"\ntarget = \"file:{dir}/other.img\"\n\
         [[volume]]\nname = \"secret\"\nsource = \"file:{dir}/secret.img\"\n"
    ));
    let key = ["--key", "client.key", "--peer", &pair.server];
    let source = zstream("lz4-16k.full.zs");
    for name in ["other", "secret", "nothing"] {
        let place = format!("{name}@{}", server.address);
        let push = [&["push", &source, &place][..], &key].concat();
        let pull = [&["pull", &place, "file:stolen.img"][..], &key].concat();
        let status = [&["status", &place][..], &key].concat();
        for request in [push, pull, status] {
            let refused = json(pair.path(), 3, &request);
            assert_eq!(refused["error"]["reason"], "denied", "{request:?}");
        }
    }
    assert!(!pair.path().join("other.img").exists());
    let stolen = fs::read(pair.path().join("stolen.img")).unwrap_or_default();
    assert!(stolen.is_empty());
    assert_eq!(fs::read(pair.path().join("secret.img")).unwrap(), secret);
}

#[test]
fn an_overwrite_needs_the_consent_of_both_sides() {
    let pair = Pair::new();
    let push = |server: &common::Server, code, stream: &str, full: &[&str]| {
        let (source, target) = (zstream(stream), format!("vm@{}", server.address));
        json(pair.path(), code, &[&pair.push(&source, &target)[..], full].concat())
    };
    let careful = pair.serve_vm();
    push(&careful, 0, "lz4-16k.full.zs", &["--full"]);
    let refused = push(&careful, 3, "zstd-8k.full.zs", &["--full"]);
    assert_eq!(refused["error"]["reason"], "denied");
    assert_eq!(sha256(&pair.image()), recorded_sha256("lz4-16k@s1"));
    drop(careful);
    let generous = pair.serve_vm_with("overwrite = true\n");
    let refused = push(&generous, 3, "zstd-8k.full.zs", &[]);
    assert_eq!(refused["error"]["reason"], "base-mismatch");
    push(&generous, 0, "zstd-8k.full.zs", &["--full"]);
    assert_eq!(sha256(&pair.image()), recorded_sha256("zstd-8k@s1"));
}

#[test]
fn status_is_told_locally_and_over_the_network() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let key = ["--key", "client.key", "--peer", &pair.server];
    let both = |code, condition: &str| {
        let remote = json(pair.path(), code, &[&["status", &target][..], &key].concat());
        let mut local = json(pair.path(), code, &["status", "file:vm.img"]);
        // A session may not have closed it yet, which only this machine can tell.
        local["writer"].take();
        assert_eq!(remote, local);
        assert_eq!(local["condition"], condition);
        local
    };
    // A job asks before anything was ever pushed.
    assert_eq!(both(9, "absent")["generation"], serde_json::Value::Null);
    json(pair.path(), 0, &pair.push(&zstream("lz4-16k.full.zs"), &target));
    let local = both(0, "whole");
    assert_eq!(local["generation"], "zfs:14672962806766498543");
    assert_eq!(local["size"], 16 << 20);
    assert_eq!(local["incomplete"], false);
    assert!(local.get("chunk_key").is_none(), "the key that names chunks is nobody's business");
}

#[test]
fn two_writers_of_one_replica_are_kept_apart() {
    let pair = Pair::new();
    noise(&pair.path().join("a.img"), 8 << 20, 1);
    let server = pair.serve_vm();
    let (reached, middle) = channel();
    let proxy = Proxy::start(server.address, 2 << 20, move || reached.send(()).unwrap());
    let slow = format!("vm@{}", proxy.address);
    let mut first = command(pair.path(), &pair.push("file:a.img", &slow))
        .args(["-q", "--limit-rate", "3M"])
        .spawn()
        .unwrap();
    middle.recv().unwrap();
    let busy = json(pair.path(), 3, &["push", "file:a.img", "file:vm.img"]);
    assert_eq!(busy["error"]["reason"], "target-busy");
    assert!(first.wait().unwrap().success());
    assert_eq!(fs::read(pair.image()).unwrap(), fs::read(pair.path().join("a.img")).unwrap());
}

/// A push of a plain file that was killed in the middle.
struct Killed {
    pair: Pair,
    server: Server,
    /// What the source holds.
    content: Vec<u8>,
    /// Where it can go on, in bytes.
    from: u64,
}

impl Killed {
    fn new(first_copy: bool, kill_server: bool) -> Self {
        // A first copy can be resumed from checkpoints, 256 MiB apart; an increment from anywhere.
        let (len, after) = if first_copy { (400 << 20, 300 << 20) } else { (64 << 20, 40 << 20) };
        let pair = Pair::new();
        let source = pair.path().join("a.img");
        let mut server = pair.serve_vm();
        let mut content = noise(&source, len, 1);
        if !first_copy {
            json(pair.path(), 0, &pair.push("file:a.img", &format!("vm@{}", server.address)));
            content = noise(&source, len, 2);
        }
        let (reached, middle) = channel();
        let proxy = Proxy::start(server.address, after, move || reached.send(()).unwrap());
        let target = format!("vm@{}", proxy.address);
        let mut push = command(pair.path(), &pair.push("file:a.img", &target))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        middle.recv().unwrap();
        if kill_server {
            server.kill();
            assert_eq!(push.wait().unwrap().code(), Some(5), "the connection failed");
            server = pair.serve_vm();
        } else {
            push.kill().unwrap();
            push.wait().unwrap();
        }
        let status = driftline(pair.path(), &["--json", "status", "file:vm.img"]);
        let code = status.status.code();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let expected = if status["incomplete"] == true { 10 } else { 0 };
        assert_eq!(code, Some(expected), "{status}");
        let from = status["resume"]["from"].as_u64().expect("something to go on with");
        assert!(from > 0);
        Self { pair, server, content, from }
    }

    fn push_again(&self) -> serde_json::Value {
        let target = format!("vm@{}", self.server.address);
        json(self.pair.path(), 0, &self.pair.push("file:a.img", &target))
    }
}

/// What a killed push had moved already, the next one does not move again.
fn killed(first_copy: bool, kill_server: bool) {
    let killed = Killed::new(first_copy, kill_server);
    let again = killed.push_again();
    assert!(fs::read(killed.pair.image()).unwrap() == killed.content);
    let (lacking, from) = (again["bytes"]["lacking"].as_u64().unwrap(), killed.from);
    let len = killed.content.len() as u64;
    assert!(lacking <= len - from, "{lacking} moved although {from} had arrived");
}

/// What a killed push had moved is of no use where the source has no snapshots and has changed since:
/// one run finds that, and brings all.
fn killed_and_changed(first_copy: bool) {
    let killed = Killed::new(first_copy, false);
    let content = noise(&killed.pair.path().join("a.img"), killed.content.len(), 3);
    let again = killed.push_again();
    assert!(fs::read(killed.pair.image()).unwrap() == content);
    assert_eq!(again["degraded"], serde_json::Value::Null);
    let log = killed.server.log();
    assert!(log.contains("resume-mismatch"), "{log}");
    // Nothing is wrong with either side.
    assert_eq!(json(killed.pair.path(), 0, &["incidents"])["incidents"], serde_json::json!([]));
}

#[test]
fn a_killed_source_of_a_first_copy_goes_on() {
    killed(true, false);
}

#[test]
fn a_killed_target_of_a_first_copy_goes_on() {
    killed(true, true);
}

#[test]
fn a_killed_source_of_an_increment_goes_on() {
    killed(false, false);
}

#[test]
fn a_killed_target_of_an_increment_goes_on() {
    killed(false, true);
}

#[test]
fn a_source_that_changed_after_a_killed_first_copy_is_copied() {
    killed_and_changed(true);
}

#[test]
fn a_source_that_changed_after_a_killed_increment_is_copied() {
    killed_and_changed(false);
}

#[test]
fn a_stopped_server_stops_well() {
    let pair = Pair::new();
    let mut server = pair.serve_vm();
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn bad_keys_and_configurations_are_named() {
    let pair = Pair::new();
    let dir = pair.path();
    drop(pair.serve_vm());
    let check = ["serve", "--check", "--config", "serve.toml"];
    assert!(driftline(dir, &check).status.success());

    let says = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = driftline(dir, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        for word in words {
            assert!(text.contains(word), "{text} should say {word}");
        }
    };
    says(&["keygen", "--out", "client.key"], 1, &["client.key"]);
    let key = fs::read_to_string(dir.join("client.key")).unwrap();
    fs::write(dir.join("server.key"), key.replace("dls1", "dls1a")).unwrap();
    says(&check, 1, &["server.key", "56"]);
    fs::write(dir.join("server.key"), "").unwrap();
    says(&check, 1, &["server.key", "one secret key"]);
    fs::write(dir.join("open.key"), key).unwrap();
    says(&["keygen", "--public", "open.key"], 1, &["open.key", "chmod 600"]);
    fs::write(dir.join("serve.toml"), "version = 1\nlisten = \"x\"\nkey = \"k\"\nkey2 = 1\n")
        .unwrap();
    says(&check, 2, &["serve.toml", "key2"]);
    says(&["push", "nonsense", "file:x"], 2, &["nonsense", "zstream:FILE"]);
    says(&["push", "zstream:missing", "file:x"], 1, &["missing"]);
    says(&["push", "file:client.key", "vm@127.0.0.1:9"], 2, &["--peer"]);
    says(&["push"], 2, &["Usage"]);
}

#[test]
fn a_source_that_cannot_be_read_is_named_and_has_its_own_code() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    // As long as a page, and reading it fails: the link has no other side to ask.
    let broken = "/sys/class/net/lo/duplex";
    let source = format!("file:{broken}");
    for target in ["file:local.img", &format!("vm@{}", server.address)] {
        let failed = json(pair.path(), 4, &pair.push(&source, target));
        assert_eq!(failed["error"]["reason"], "source-unreadable", "{failed}");
        let detail = failed["error"]["detail"].as_str().unwrap();
        assert!(detail.starts_with(&source), "{detail}");
    }
    // As long as a page, and ends before that.
    let shorter = "file:/sys/kernel/mm/transparent_hugepage/enabled";
    if fs::exists(&shorter[5..]).unwrap() {
        let failed = json(pair.path(), 4, &["push", shorter, "file:short.img"]);
        assert_eq!(failed["error"]["reason"], "source-changed", "{failed}");
    }
}

#[test]
fn what_a_check_finds_missing_costs_no_other_volume_its_service() {
    let pair = Pair::new();
    let dir = pair.path().display();
    let server = pair.serve(&format!(
        "push = [\"vm\", \"far\"]\n\
         [[volume]]\nname = \"vm\"\ntarget = \"file:{dir}/vm.img\"\n\
         [[volume]]\nname = \"far\"\ntarget = \"file:{dir}/unmounted/far.img\"\n"
    ));
    let checked = driftline(pair.path(), &["serve", "--check", "--config", "serve.toml"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("volume \"far\"") && said.contains("/unmounted"), "{said}");
    assert!(!said.contains("\"vm\""), "{said}");
    noise(&pair.path().join("a.img"), 1 << 20, 1);
    json(pair.path(), 0, &pair.push("file:a.img", &format!("vm@{}", server.address)));
    assert!(server.log().contains("volume \\\"far\\\"") || server.log().contains("volume \"far\""));
}
