//! A first copy of what is like another volume of the target: little moves, and nobody reads by
//! it what he may not.

mod common;

use std::fs;

use common::{
    Pair, Server, command,
    fake_zfs::{Fake, GUIDS, text},
    json, noise, recorded_sha256, sha256,
};
use serde_json::Value;

/// A clone of `base.img`: one grain in a hundred is another.
fn clone_of(base: &[u8]) -> Vec<u8> {
    let mut clone = base.to_vec();
    for (number, grain) in clone.chunks_mut(4096).enumerate().filter(|(n, _)| n % 100 == 37) {
        grain.iter_mut().for_each(|byte| *byte ^= (number % 251) as u8 + 1);
    }
    clone
}

fn moved(done: &Value) -> u64 {
    done["bytes"]["sent"].as_u64().unwrap() + done["bytes"]["received"].as_u64().unwrap()
}

const SIZE: usize = 16 << 20;

#[test]
fn a_clone_moves_what_makes_it_one() {
    let pair = Pair::new();
    let dir = pair.path();
    let base = noise(&dir.join("base.img"), SIZE, 1);
    let clone = clone_of(&base);
    fs::write(dir.join("clone.img"), &clone).unwrap();
    let at = dir.display();
    let server = pair.serve(&format!(
        "push = [\"base\", \"one\", \"two\"]\npull = [\"golden\"]\n\
         [[volume]]\nname = \"base\"\ntarget = \"file:{at}/base-copy.img\"\n\
         [[volume]]\nname = \"one\"\ntarget = \"file:{at}/one.img\"\n\
         [[volume]]\nname = \"two\"\ntarget = \"file:{at}/two.img\"\n\
         [[volume]]\nname = \"golden\"\nsource = \"file:{at}/base.img\"\n\
         [[volume]]\nname = \"secret\"\ntarget = \"file:{at}/secret.img\"\n"
    ));
    let push = |code, source: &str, volume: &str, like: &[&str]| {
        let target = format!("{volume}@{}", server.address);
        json(dir, code, &[&pair.push(source, &target)[..], like].concat())
    };
    push(0, "file:base.img", "base", &[]);
    // Neither one that does not exist, nor one that the key may not have, can be told apart.
    for volume in ["secret", "nothing"] {
        let refused = push(3, "file:clone.img", "one", &["--like", volume]);
        assert_eq!(refused["error"]["reason"], "denied");
    }
    for (volume, like) in [("one", "base"), ("two", "golden")] {
        let done = push(0, "file:clone.img", volume, &["--like", like]);
        assert!(moved(&done) * 100 <= SIZE as u64 * 2, "{} bytes moved", moved(&done));
        assert_eq!(fs::read(dir.join(volume).with_extension("img")).unwrap(), clone);
    }
}

#[test]
fn a_seed_is_used_between_local_places_and_from_job_files() {
    let pair = Pair::new();
    let dir = pair.path();
    let base = noise(&dir.join("base.img"), SIZE, 1);
    let clone = clone_of(&base);
    fs::write(dir.join("clone.img"), &clone).unwrap();
    let job = "version = 1\nsource = \"file:clone.img\"\ntarget = \"file:copy.img\"\n\
               like = \"file:base.img\"\n";
    fs::write(dir.join("job.toml"), job).unwrap();
    let done = json(dir, 0, &["push", "--job", "./job.toml"]);
    assert!(moved(&done) * 100 <= SIZE as u64 * 2, "{} bytes moved", moved(&done));
    assert_eq!(fs::read(dir.join("copy.img")).unwrap(), clone);
    json(dir, 0, &["verify", "file:copy.img"]);
    let missing = json(dir, 1, &["push", "file:clone.img", "file:b.img", "--like", "file:gone"]);
    let detail = missing["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("cannot read the seed"), "{detail}");
}

/// A `zfs` with `tank/vm 1` and a clone of a clone of it, which are all equal, and what pushes
/// from there.
struct Clones {
    zfs: Fake,
    pair: Pair,
}

impl Clones {
    fn new() -> Self {
        let zfs = Fake::tree(&[("tank/clone", "volume"), ("tank/second", "volume")]);
        let datasets = fs::read_to_string(zfs.path("dataset")).unwrap();
        let of = |name: &str, origin: &str| {
            let line = datasets.lines().find(|line| line.starts_with(name)).unwrap();
            line.replacen("\t16384\t-\t", &format!("\t16384\t{origin}\t"), 1) + "\n"
        };
        let (second, clone) = (of("tank/second", "tank/vm 1@x"), of("tank/clone", "tank/second@y"));
        zfs.write("dataset", &(of("tank/vm 1", "-") + &second + &clone));
        let guid = GUIDS[0];
        zfs.write("next", &format!("1 {guid}\n").repeat(9));
        Self { zfs, pair: Pair::new() }
    }

    /// Pushes, which must succeed; gives how many bytes moved, and the log.
    fn push(&self, volume: &str, target: &str, more: &[&str]) -> (u64, String) {
        let source = format!("zfs:{volume}");
        let arguments = [&["-v", "--json"], &self.pair.push(&source, target)[..], more].concat();
        let mut push = command(self.pair.path(), &arguments);
        let output = push.env("DRIFTLINE_ZFS", self.zfs.path("zfs")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let log = String::from_utf8(output.stderr).unwrap();
        (moved(&serde_json::from_slice(&output.stdout).unwrap()), log)
    }

    fn is_equal(&self, file: &str) {
        assert_eq!(sha256(&self.pair.path().join(file)), recorded_sha256("lz4-16k@s1"), "{file}");
    }

    /// A server that takes these volumes, each into a file of its name.
    fn serve(&self, volumes: &[&str]) -> Server {
        let at = self.pair.path().display();
        let volume = |name: &&str| {
            format!("[[volume]]\nname = \"{name}\"\ntarget = \"file:{at}/{name}.img\"\n")
        };
        let volumes_told: String = volumes.iter().map(volume).collect();
        self.pair.serve(&format!("push = {volumes:?}\n{volumes_told}"))
    }
}

const IS_CLONE: &str = "the source is a clone of zfs:tank/vm 1";

#[test]
fn the_origin_of_a_clone_is_found_where_it_was_pushed_to() {
    let clones = Clones::new();
    let server = clones.serve(&["base", "one", "two", "three"]);
    let other = clones.serve(&["away"]);
    let at = |volume: &str, server: &Server| format!("{volume}@{}", server.address);
    let (all, log) = clones.push("tank/vm 1", &at("base", &server), &[]);
    assert!(!log.contains("clone"), "{log}");
    assert!(all > 512 << 10, "{all} bytes are too few to be saved");
    let (little, log) = clones.push("tank/clone", &at("one", &server), &[]);
    assert!(log.contains(IS_CLONE) && log.contains("like=\"base\""), "{log}");
    assert!(little * 50 <= all, "{little} bytes moved of {all}");
    // That was the first copy. The next run has an old version.
    let asked = || clones.zfs.calls().matches("list -Hp -d 0").count();
    let before = asked();
    let (_, log) = clones.push("tank/clone", &at("one", &server), &["--latest"]);
    assert!(!log.contains("clone of"), "{log}");
    assert_eq!(asked(), before + 1, "it is asked again what it is a clone of");
    // Nothing is like it at another place, and what the user says is asked for and no other.
    let (moved, log) = clones.push("tank/clone", &at("away", &other), &[]);
    assert!(moved * 2 > all && !log.contains("clone of"), "{moved} bytes moved: {log}");
    let (moved, log) = clones.push("tank/second", &at("two", &server), &["--like", "three"]);
    assert!(moved * 2 > all && !log.contains("clone of"), "{moved} bytes moved: {log}");
    for file in ["base.img", "one.img", "two.img", "away.img"] {
        clones.is_equal(file);
    }
}

#[test]
fn a_seed_that_was_found_and_may_not_be_had_is_done_without() {
    let clones = Clones::new();
    let mut server = clones.serve(&["base", "one", "two"]);
    let address = server.address.to_string();
    let (all, _) = clones.push("tank/vm 1", &format!("base@{address}"), &[]);
    server.terminate();
    let file = clones.pair.path().join("serve.toml");
    let config = fs::read_to_string(&file).unwrap();
    let config = config.replace("127.0.0.1:0", &address).replacen("\"base\", ", "", 1);
    fs::write(&file, config).unwrap();
    let _server = Server::start(clones.pair.path());
    let (moved, log) = clones.push("tank/second", &format!("one@{address}"), &[]);
    assert!(log.contains(IS_CLONE) && log.contains("asking again without it"), "{log}");
    assert!(moved * 2 > all, "{moved} bytes moved of {all}");
    clones.is_equal("one.img");
    // What is refused for itself stays refused.
    let target = format!("base@{address}");
    let refused = json(clones.pair.path(), 3, &clones.pair.push("file:one.img", &target));
    assert_eq!(refused["error"]["reason"], "denied");
}

#[test]
fn between_local_places_the_origin_is_found_too_and_may_be_gone() {
    let clones = Clones::new();
    let (all, _) = clones.push("tank/vm 1", "file:base.img", &[]);
    let (little, log) = clones.push("tank/second", "file:one.img", &[]);
    assert!(log.contains(IS_CLONE) && log.contains("/base.img"), "{log}");
    assert!(little * 50 <= all, "{little} bytes moved of {all}");
    fs::remove_file(clones.pair.path().join("one.img")).unwrap();
    fs::remove_file(clones.pair.path().join("base.img")).unwrap();
    let (moved, log) = clones.push("tank/clone", "file:two.img", &[]);
    // The nearest of its origins was pushed there as well.
    assert!(log.contains("the source is a clone of zfs:tank/second"), "{log}");
    assert!(log.contains("pushing without a seed"), "{log}");
    assert!(moved * 2 > all, "{moved} bytes moved of {all}");
    clones.is_equal("two.img");
}
