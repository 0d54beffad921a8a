//! Real streams through the real program: local, over loopback, pushed and pulled.

mod common;

use std::{fs, os::unix::fs::MetadataExt};

use common::{Pair, Proxy, driftline, json, noise, recorded_sha256, sha256, stream, zstream};
use tempfile::TempDir;

const STEPS: [(&str, &str); 4] = [("full", "s1"), ("1-2", "s2"), ("2-3", "s3"), ("3-4", "s4")];
const SIZES: [u64; 4] = [16 << 20, 16 << 20, 24 << 20, 8 << 20];

#[test]
fn every_recorded_generation_comes_out_equal() {
    for family in ["lz4-16k", "zstd-8k", "lz4-1M"] {
        for first in ["full", "full-plain"] {
            let dir = TempDir::new().unwrap();
            let image = dir.path().join("out.img");
            for ((step, snapshot), size) in STEPS.into_iter().zip(SIZES) {
                let step = if step == "full" { first } else { step };
                let source = zstream(&format!("{family}.{step}.zs"));
                let done = json(dir.path(), 0, &["push", &source, "file:out.img"]);
                assert_eq!(done["result"], "committed");
                assert_eq!(sha256(&image), recorded_sha256(&format!("{family}@{snapshot}")));
                let metadata = fs::metadata(&image).unwrap();
                assert_eq!(metadata.len(), size);
                // 1.1 MiB of data and 1 MiB of zeros and holes were written to the source.
                assert!(metadata.blocks() * 512 < 2 << 20, "{family}@{snapshot} is not sparse");
            }
            let clean = json(dir.path(), 0, &["verify", "file:out.img"]);
            assert_eq!(clean["result"], "clean");
        }
    }
}

#[test]
fn compound_bookmark_and_decrypted_streams_are_taken_too() {
    let dir = TempDir::new().unwrap();
    let push = |stream: &str, target: &str| {
        json(dir.path(), 0, &["push", &zstream(stream), &format!("file:{target}")])
    };
    push("lz4-16k.full.zs", "compound");
    let done = push("lz4-16k.I1-4.zs", "compound");
    assert_eq!(done["increments"].as_array().unwrap().len(), 3);
    assert_eq!(sha256(&dir.path().join("compound")), recorded_sha256("lz4-16k@s4"));
    push("lz4-16k.full.zs", "bookmark");
    push("lz4-16k.b1-2.zs", "bookmark");
    assert_eq!(sha256(&dir.path().join("bookmark")), recorded_sha256("lz4-16k@s2"));
    push("enc.full.zs", "decrypted");
    assert_eq!(sha256(&dir.path().join("decrypted")), recorded_sha256("enc@s1"));
}

#[test]
fn a_sparse_tebibyte_costs_what_is_in_it() {
    let dir = TempDir::new().unwrap();
    for (stream, blocks) in [("big1T.full.zs", 1), ("big1T.1-2.zs", 2)] {
        json(dir.path(), 0, &["push", &zstream(stream), "file:big.img"]);
        let image = fs::metadata(dir.path().join("big.img")).unwrap();
        assert_eq!(image.len(), 1 << 40);
        let books = fs::read_dir(dir.path().join("big.img.driftline")).unwrap();
        let books: u64 = books.map(|file| file.unwrap().metadata().unwrap().blocks()).sum();
        assert!((image.blocks() + books) * 512 < blocks << 20, "after {stream}");
    }
    let clean = json(dir.path(), 0, &["verify", "file:big.img"]);
    assert_eq!(clean["result"], "clean");
}

#[test]
fn the_wrong_base_is_refused_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    json(dir.path(), 0, &["push", &zstream("lz4-16k.full.zs"), "file:out.img"]);
    let status = json(dir.path(), 0, &["status", "file:out.img"]);
    for wrong in ["lz4-16k.2-3.zs", "zstd-8k.1-2.zs", "zstd-8k.full.zs"] {
        let refused = json(dir.path(), 3, &["push", &zstream(wrong), "file:out.img"]);
        assert_eq!(refused["error"]["reason"], "base-mismatch", "{wrong}");
        assert_eq!(sha256(&dir.path().join("out.img")), recorded_sha256("lz4-16k@s1"));
        assert_eq!(json(dir.path(), 0, &["status", "file:out.img"]), status);
    }
    // An increment needs something to stand on, and a refusal leaves nothing behind.
    let refused = json(dir.path(), 3, &["push", &zstream("lz4-16k.1-2.zs"), "file:none.img"]);
    assert_eq!(refused["error"]["reason"], "base-mismatch");
    assert!(!dir.path().join("none.img").exists());
    assert!(!dir.path().join("none.img.driftline").exists());
    // With consent, another volume's full stream replaces it, and only by what differs.
    json(dir.path(), 0, &["push", &zstream("zstd-8k.full.zs"), "file:out.img", "--full"]);
    assert_eq!(sha256(&dir.path().join("out.img")), recorded_sha256("zstd-8k@s1"));
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    for (stream, says) in [("fs.full.zs", "file system"), ("encraw.full.zs", "raw encrypted")] {
        let refused = json(dir.path(), 3, &["push", &zstream(stream), "file:out.img"]);
        assert_eq!(refused["error"]["reason"], "unsupported");
        let detail = refused["error"]["detail"].as_str().unwrap();
        assert!(detail.contains(says) && detail.contains(stream), "{detail}");
    }
}

#[test]
fn a_truncated_stream_leaves_the_replica_as_it_was() {
    let dir = TempDir::new().unwrap();
    json(dir.path(), 0, &["push", &zstream("lz4-16k.full.zs"), "file:out.img"]);
    let whole = fs::read(stream("lz4-16k.1-2.zs")).unwrap();
    for len in [whole.len() - 1, whole.len() - 312, whole.len() / 2, 313] {
        fs::write(dir.path().join("cut.zs"), &whole[..len]).unwrap();
        let damaged = json(dir.path(), 4, &["push", "zstream:cut.zs", "file:out.img"]);
        assert_eq!(damaged["error"]["reason"], "stream-damaged");
        assert_eq!(sha256(&dir.path().join("out.img")), recorded_sha256("lz4-16k@s1"));
    }
    json(dir.path(), 0, &["push", &zstream("lz4-16k.1-2.zs"), "file:out.img"]);
    assert_eq!(sha256(&dir.path().join("out.img")), recorded_sha256("lz4-16k@s2"));
}

#[test]
fn a_stream_from_standard_input_is_a_stream() {
    let dir = TempDir::new().unwrap();
    let input = fs::File::open(stream("zstd-8k.full.zs")).unwrap();
    let status = common::command(dir.path(), &["-q", "push", "zstream:-", "file:out.img"])
        .stdin(input)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(sha256(&dir.path().join("out.img")), recorded_sha256("zstd-8k@s1"));
}

#[test]
fn the_map_says_what_changed_and_what_is_a_hole() {
    let dir = TempDir::new().unwrap();
    let map = json(dir.path(), 0, &["map", &zstream("lz4-16k.2-3.zs")]);
    assert_eq!(map["size"], 24 << 20);
    assert_eq!(map["granularity"], 16384);
    assert_eq!(map["base"], "zfs:17056389756854695150");
    assert_eq!(map["tip"], "zfs:985389201224908894");
    assert_eq!((&map["standing"], &map["reason"]), (&"proven".into(), &().into()));
    let extent = |offset: u64, length: u64| serde_json::json!({"offset": offset, "length": length});
    assert_eq!(map["changed"], serde_json::json!([extent(19_988_480, 32_768)]));
    let zero = [extent(16_777_216, 3_211_264), extent(20_021_248, 5_144_576)];
    assert_eq!(map["zero"], serde_json::json!(zero));

    fs::write(dir.path().join("plain"), [1; 5000]).unwrap();
    let map = json(dir.path(), 0, &["map", "file:plain"]);
    assert_eq!((&map["standing"], &map["reason"]), (&"suspect".into(), &"map-missing".into()));
    assert_eq!(map["changed"], serde_json::json!([extent(0, 5000)]));
}

#[test]
fn a_plain_file_is_scanned_and_only_what_differs_moves() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("a.img");
    let mut content = noise(&source, (40 << 20) + 777, 1);
    let push = || json(dir.path(), 0, &["push", "file:a.img", "file:b.img"]);
    let first = push();
    assert_eq!(first["increments"][0]["kind"], "full");
    assert_eq!(fs::read(dir.path().join("b.img")).unwrap(), content);

    content[5 << 20] ^= 1;
    let hole = 20 << 20..21 << 20;
    content[hole].fill(0);
    content.truncate(39 << 20);
    content.extend([9; 100]);
    fs::write(&source, &content).unwrap();
    let second = push();
    assert_eq!(second["increments"][0]["kind"], "scan");
    assert_eq!(second["increments"][0]["reason"], "map-missing");
    assert_eq!(fs::read(dir.path().join("b.img")).unwrap(), content);
    // Of one chunk a grain has a changed byte; one has the new end, and nothing of what it had.
    assert_eq!(second["bytes"]["lacking"], 4096 + 65536);

    let third = push();
    assert_eq!(third["bytes"]["lacking"], 0);
    let clean = json(dir.path(), 0, &["verify", "file:b.img", "--against", "file:a.img"]);
    assert_eq!(clean["result"], "clean");
}

#[test]
fn a_replica_changed_behind_our_back_is_reported_and_kept() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("b.img");
    let mut content = noise(&dir.path().join("a.img"), 8 << 20, 1);
    let push = |code, more: &[&str]| {
        json(dir.path(), code, &[&["push", "file:a.img", "file:b.img"], more].concat())
    };
    push(0, &[]);
    let mut changed = content.clone();
    changed[1 << 20] ^= 1;
    fs::write(&image, &changed).unwrap();
    content[7 << 20] ^= 1;
    fs::write(dir.path().join("a.img"), &content).unwrap();

    assert_eq!(push(6, &[])["error"]["reason"], "target-modified");
    assert_eq!(fs::read(&image).unwrap(), changed, "it was written over");
    let verify = driftline(dir.path(), &["--json", "verify", "file:b.img"]);
    assert_eq!(verify.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&verify.stdout).contains("1048576"));

    changed.truncate(5 << 20);
    fs::write(&image, &changed).unwrap();
    assert_eq!(push(6, &[])["error"]["reason"], "target-modified");
    assert_eq!(fs::read(&image).unwrap(), changed, "it was written over");

    push(0, &["--full"]);
    assert_eq!(fs::read(&image).unwrap(), content);
}

#[test]
fn what_is_no_replica_and_what_is_another_volumes_is_kept() {
    let dir = TempDir::new().unwrap();
    noise(&dir.path().join("a.img"), 1 << 20, 1);
    noise(&dir.path().join("other.img"), 1 << 20, 2);
    let precious = noise(&dir.path().join("precious.img"), 1 << 20, 3);
    let push = |code, source: &str, target: &str| {
        json(dir.path(), code, &["push", &format!("file:{source}"), &format!("file:{target}")])
    };
    let refused = push(3, "a.img", "precious.img");
    assert_eq!(refused["error"]["reason"], "target-foreign");
    assert_eq!(fs::read(dir.path().join("precious.img")).unwrap(), precious);
    push(0, "a.img", "b.img");
    let refused = push(3, "other.img", "b.img");
    assert_eq!(refused["error"]["reason"], "source-mismatch");
}

#[test]
fn over_loopback_nothing_is_in_clear_and_nothing_new_moves_little() {
    let pair = Pair::new();
    let dir = pair.path().display();
    let server = pair.serve(&format!(
        "push = [\"payroll\"]\n[[volume]]\nname = \"payroll\"\n\
         target = \"file:{dir}/vm.img\"\noverwrite = true\n\
         loss_max = \"100%\"\n"
    ));
    let proxy = Proxy::capture(server.address);
    let target = format!("payroll@{}", proxy.address);
    // A volume whose every 16 bytes can be told from noise, which zstd leaves as it is.
    let content = noise(&pair.path().join("a.img"), 4 << 20, 7);
    let first = json(pair.path(), 0, &pair.push("file:a.img", &target));
    assert_eq!(fs::read(pair.image()).unwrap(), content);
    let captured = proxy.captured();
    assert_eq!(
        captured.len() as u64,
        first["bytes"]["sent"].as_u64().unwrap() + first["bytes"]["received"].as_u64().unwrap()
    );
    let windows: std::collections::HashSet<&[u8]> = captured.windows(16).collect();
    for piece in content.chunks_exact(16) {
        assert!(!windows.contains(piece), "a piece of the volume crossed in clear");
    }
    let names = ["payroll", "vm.img", "a.img", "client"].map(str::as_bytes);
    assert!(names.iter().all(|name| !captured.windows(name.len()).any(|seen| seen == *name)));

    // The same with a stream whose data compresses, and its data set's name.
    for stream in ["lz4-16k.full.zs", "lz4-16k.1-2.zs"] {
        json(pair.path(), 0, &[&pair.push(&zstream(stream), &target)[..], &["--full"]].concat());
    }
    assert_eq!(sha256(&pair.image()), recorded_sha256("lz4-16k@s2"));
    let captured = proxy.captured();
    assert!(!captured.windows(9).any(|seen| seen == b"tank/lz4-"));

    let before = proxy.captured().len();
    let again = json(pair.path(), 0, &pair.push(&zstream("lz4-16k.1-2.zs"), &target));
    assert_eq!(again["result"], "up-to-date");
    let moved = proxy.captured().len() - before;
    assert!(moved < 4096, "{moved} bytes moved for nothing");
}

#[test]
fn nothing_new_in_a_plain_file_moves_little_too() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let source = fs::File::create(pair.path().join("a.img")).unwrap();
    source.set_len(1 << 30).unwrap();
    drop(source);
    json(pair.path(), 0, &pair.push("file:a.img", &target));
    let again = json(pair.path(), 0, &pair.push("file:a.img", &target));
    let moved =
        again["bytes"]["sent"].as_u64().unwrap() + again["bytes"]["received"].as_u64().unwrap();
    assert!(moved < 4096, "{moved} bytes moved for nothing");
}

#[test]
fn a_volume_is_pulled_as_it_is_pushed() {
    let pair = Pair::new();
    let dir = pair.path().display();
    let content = noise(&pair.path().join("golden.img"), 3 << 20, 5);
    let server = pair.serve(&format!(
        "pull = [\"golden\"]\n[[volume]]\nname = \"golden\"\nsource = \"file:{dir}/golden.img\"\n"
    ));
    let source = format!("golden@{}", server.address);
    let pull = ["pull", &source, "file:copy.img", "--key", "client.key", "--peer", &pair.server];
    let done = json(pair.path(), 0, &pull);
    assert_eq!(done["increments"][0]["kind"], "full");
    assert_eq!(fs::read(pair.path().join("copy.img")).unwrap(), content);
    assert_eq!(json(pair.path(), 0, &pull)["increments"][0]["kind"], "scan");
}

#[test]
fn a_bandwidth_limit_and_no_compression_change_no_byte() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    let target = format!("vm@{}", server.address);
    let content = noise(&pair.path().join("a.img"), 1 << 20, 9);
    let more = ["--limit-rate", "4M", "--compress", "off"];
    json(pair.path(), 0, &[&pair.push("file:a.img", &target)[..], &more].concat());
    assert_eq!(fs::read(pair.image()).unwrap(), content);
}
