//! A first copy of what is like another volume of the target: little moves, and nobody reads by
//! it what he may not.

mod common;

use std::fs;

use common::{Pair, json, noise};
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
fn likeness_is_used_between_local_places_and_from_job_files() {
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
    assert!(detail.contains("said to be like"), "{detail}");
}
