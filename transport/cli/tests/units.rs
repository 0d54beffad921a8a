//! The units of systemd that are shipped: what each job needs, and no more.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist")
}

fn unit(name: &str) -> String {
    fs::read_to_string(dist().join("systemd").join(name)).unwrap()
}

/// The settings of a service, each with all its words. Of lists systemd puts together what a drop-in
/// adds; of others the last one counts.
fn settings(texts: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = texts.iter().flat_map(|text| text.lines());
    for (key, value) in
        lines.filter(|line| !line.starts_with('#')).filter_map(|l| l.split_once('='))
    {
        let words = match key {
            // A device and its rights are one.
            "DeviceAllow" => vec![value.to_owned()],
            _ => value.split(' ').map(str::to_owned).collect(),
        };
        let is_list = matches!(
            key,
            "CapabilityBoundingSet" | "RestrictAddressFamilies" | "ReadWritePaths" | "DeviceAllow"
        );
        let known = all.entry(key.to_owned()).or_default();
        if !is_list {
            known.clear();
        }
        known.extend(words);
    }
    all
}

fn has(settings: &BTreeMap<String, Vec<String>>, key: &str, word: &str) -> bool {
    settings.get(key).is_some_and(|words| words.iter().any(|known| known == word))
}

#[test]
fn a_drbd_job_runs_from_the_unit_with_its_drop_in() {
    let (push, drop_in) = (unit("driftline-push@.service"), unit("drbd.conf"));
    let needs = [
        ("CapabilityBoundingSet", "CAP_NET_ADMIN"),
        ("RestrictAddressFamilies", "AF_NETLINK"),
        ("ReadWritePaths", "/run"),
        ("ReadWritePaths", "-/etc/lvm"),
        ("DeviceAllow", "/dev/mapper/control rw"),
        ("KillMode", "process"),
    ];
    let with = settings(&[&push, &drop_in]);
    let without = settings(&[&push]);
    for (key, word) in needs {
        assert!(has(&with, key, word), "{key}={word}");
        // Jobs of other sources keep what they had.
        assert!(!has(&without, key, word), "{key}={word}");
    }
    // What a drbd: job needs as any other does is not taken away.
    for (key, word) in [
        ("CapabilityBoundingSet", "CAP_SYS_ADMIN"),
        ("RestrictAddressFamilies", "AF_INET"),
        ("DeviceAllow", "block-* rw"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
    ] {
        assert!(has(&with, key, word), "{key}={word}");
    }
    // And it loosens nothing else.
    let keys: Vec<String> = settings(&[&drop_in]).into_keys().collect();
    let mut expected: Vec<&str> = needs.iter().map(|need| need.0).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(keys, expected);
}

#[test]
fn the_metrics_of_the_sample_job_can_be_written() {
    let job = fs::read_to_string(dist().join("job.toml")).unwrap();
    let line = job.lines().find_map(|line| line.strip_prefix("# metrics = \"")).unwrap();
    let path = Path::new(line.split('"').next().unwrap());
    for verb in ["push", "pull"] {
        let settings = settings(&[&unit(&format!("driftline-{verb}@.service"))]);
        let writable = settings["ReadWritePaths"].iter().map(|path| path.trim_start_matches('-'));
        let writable: Vec<&str> = writable.collect();
        assert!(writable.iter().any(|folder| path.starts_with(folder)), "{verb}: {writable:?}");
    }
}

#[test]
fn systemd_takes_every_unit_and_the_drop_in() {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(dist().join("systemd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // The program that is here, not the one that is installed.
        let text = unit(&name).replace("/usr/bin/driftline", env!("CARGO_BIN_EXE_driftline"));
        let to = match name.as_str() {
            "drbd.conf" => {
                let folder = dir.path().join("driftline-push@.service.d");
                fs::create_dir(&folder).unwrap();
                folder.join(name)
            }
            _ => dir.path().join(name),
        };
        fs::write(to, text).unwrap();
    }
    let units = ["driftline-push@x.service", "driftline-pull@x.service", "driftline-serve.service"];
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(units.map(|unit| dir.path().join(unit)))
        .output()
        .expect("systemd-analyze must be there: install systemd");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
