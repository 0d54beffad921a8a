//! The commands of README's chapter on the network, and of the one on restores, as they are written
//! there.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use common::{Server, noise, sha256};
use tempfile::TempDir;

const README: &str = include_str!("../../../README.md");
const REPLICAS: &str = include_str!("../../../target/README.md");

/// A chapter of a page, up to the next one.
fn chapter(page: &'static str, title: &str) -> &'static str {
    let (_, rest) = page.split_once(&format!("\n## {title}\n")).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// The lines of the blocks of these kinds.
fn blocks<'a>(chapter: &'a str, kinds: &[&str]) -> Vec<&'a str> {
    let mut lines = Vec::new();
    for block in chapter.split("```").skip(1).step_by(2) {
        let (kind, text) = block.split_once('\n').unwrap();
        if kinds.contains(&kind) {
            lines.extend(text.lines());
        }
    }
    lines
}

/// Two machines in a folder.
struct Machines {
    dir: TempDir,
    /// What stands for the names that README has for machines, keys and places.
    names: Vec<(String, String)>,
}

impl Machines {
    fn path(&self, machine: &str) -> String {
        self.dir.path().join(machine).display().to_string()
    }

    /// A line of README, as it is meant on this machine.
    fn meant(&self, machine: &str, line: &str) -> String {
        let here = self.path(machine);
        let mut line = line.split("  # ").next().unwrap().to_owned();
        for place in ["/etc/driftline", "/srv/replicas", "/var/tmp", "/dev/vg"] {
            line = line.replace(place, &format!("{here}{place}"));
        }
        self.names.iter().for_each(|(name, is)| line = line.replace(name, is));
        line
    }

    /// Runs it, with our program as `driftline`; gives what it printed.
    fn run(&self, machine: &str, line: &str) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_driftline")).parent().unwrap().display();
        let here = self.path(machine);
        let output = Command::new("sh")
            .args(["-ec", &self.meant(machine, line)])
            .current_dir(&here)
            .env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap()))
            .env("DRIFTLINE_TRUST_DIR", format!("{here}/trust"))
            .env("DRIFTLINE_KEY", format!("{here}/etc/driftline/secret.key"))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{machine}# {line}: {log}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn the_chapter_on_the_network_is_run_as_it_is_written() {
    let mut machines = Machines { dir: TempDir::new().unwrap(), names: Vec::new() };
    for machine in ["source", "target"] {
        fs::create_dir_all(machines.dir.path().join(machine)).unwrap();
    }
    // The volume, and what it is restored to, are files here.
    let content = noise(&machines.dir.path().join("source/vm1"), 3 << 20, 1);
    let file = |name: &str| format!("file:{}/{name}", machines.path("source"));
    let places = [("zfs:tank/vm1", file("vm1")), ("drbd:vm1/0", file("disk"))];
    machines.names.extend(places.map(|(name, is)| (name.to_owned(), is)));
    fs::create_dir_all(machines.dir.path().join("source/dev/vg")).unwrap();
    fs::create_dir_all(machines.dir.path().join("source/var/tmp")).unwrap();
    let chapter = chapter(README, "Over the network");

    // Each key is followed by what README calls it.
    let keys = blocks(chapter, &["console"]);
    for pair in keys.chunks(2) {
        let (machine, command) = pair[0].split_once("# ").unwrap();
        let key = machines.run(machine, command).trim().to_owned();
        assert!(key.starts_with("dlp1"), "{key}");
        machines.names.push((pair[1].to_owned(), key));
        let folder = machines.dir.path().join(machine).join("etc/driftline");
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }
    assert_eq!(machines.names.len(), 4);

    let config = blocks(chapter, &["toml"]).join("\n");
    let config = machines.meant("target", &config).replace("0.0.0.0:7420", "127.0.0.1:0");
    let at = machines.dir.path().join("target");
    fs::write(at.join("etc/driftline/driftline.toml"), &config).unwrap();
    let mut server = None;
    let pushed = |machines: &Machines| {
        sha256(&machines.dir.path().join("target/srv/replicas/vm1.img"))
            == sha256(&machines.dir.path().join("source/vm1"))
    };
    for line in blocks(chapter, &["sh"]) {
        let (machine, command) = line.split_once("# ").unwrap();
        if command != "driftline serve" {
            machines.run(machine, command);
            continue;
        }
        fs::write(at.join("serve.toml"), &config).unwrap();
        let started = Server::start(&at);
        machines.names.push(("target.example:7420".to_owned(), started.address.to_string()));
        server = Some(started);
    }
    assert!(server.is_some() && pushed(&machines));

    // And back, as the chapter on restores says.
    let restores = blocks(self::chapter(REPLICAS, "Restore"), &["sh"]);
    let remote: Vec<_> = restores.iter().filter(|line| line.contains("target.example")).collect();
    assert_eq!(remote.len(), 1, "{restores:?}");
    machines.run("source", remote[0].strip_prefix("source# ").unwrap());
    assert!(fs::read(machines.dir.path().join("source/disk")).unwrap() == content);
}
