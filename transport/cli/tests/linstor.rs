//! Volumes of LINSTOR, with a controller that is not there. Its satellite is a `zfs` that replays
//! recorded streams, or copies files to where logical volumes would be.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, id},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use driftline_linstor::testing::{Cluster, Fake as Controller, Fault, Options};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::Value;
use tempfile::TempDir;

use common::{
    Pair, command,
    fake_zfs::{COLUMNS, Fake as FakeZfs, GUIDS, text},
    json, recorded_sha256, sha256, unpack_drbd,
};

/// What else has the resource: somebody's own, and what another job of Driftline has left.
const OTHERS: [&str; 2] = ["manual", "driftline-00000000-20200101T000000000Z"];

/// A node `alpha` with a resource `web` on ZFS.
fn cluster() -> Cluster {
    let cluster = Cluster::new().node("alpha").node("bravo").node("charlie");
    let cluster = cluster.pool("alpha", "fast", "ZFS_THIN", "tank").resource("web", &[24 << 10]);
    let cluster = cluster.deploy("web", "alpha", "fast").diskless("web", "bravo");
    OTHERS.iter().fold(cluster, |cluster, name| cluster.snapshot("web", name))
}

struct Site {
    zfs: FakeZfs,
    controller: Controller,
}

impl Site {
    fn new() -> Self {
        Self::with(cluster(), Options::default())
    }

    /// A site whose satellite does with ZFS what it is told.
    fn with(cluster: Cluster, options: Options) -> Self {
        let zfs = FakeZfs::new(&[]);
        let columns = COLUMNS.replace("SIZE", "25165824");
        zfs.write("dataset", &format!("tank/web_00000\t{columns}\n"));
        let controller = Controller::with(cluster, options);
        let program = zfs.path("zfs");
        controller.satellite(move |resource, snapshot, taken| {
            let verb = if taken { "snapshot" } else { "destroy" };
            let point = format!("tank/{resource}_00000@{snapshot}");
            assert!(Command::new(&program).args([verb, &point]).status().unwrap().success());
        });
        Self { zfs, controller }
    }

    fn push(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["push", "--json", "linstor:web/0", "file:vm.img"];
        arguments.extend(["--linstor-node", "alpha"]);
        arguments.extend(more);
        let mut push = command(self.zfs.0.path(), &arguments);
        push.env("DRIFTLINE_ZFS", self.zfs.path("zfs"));
        push.env("LS_CONTROLLERS", self.controller.url()).output().unwrap()
    }

    /// Pushes, and the replica must be the recorded snapshot of this number.
    fn arrives(&self, more: &[&str], number: usize) -> Value {
        let output = self.push(more);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let expected = recorded_sha256(&format!("lz4-16k@s{number}"));
        assert_eq!(sha256(&self.zfs.path("vm.img")), expected);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pushes, which must fail with this exit code, and these words in what it says.
    fn fails(&self, more: &[&str], code: i32, words: &[&str]) {
        let output = self.push(more);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    }

    /// The snapshots of this job; those of others must be there too.
    fn own(&self) -> Vec<String> {
        let mut all = self.controller.change(|cluster| cluster.snapshot_names("web"));
        for others in OTHERS {
            let place = all.iter().position(|name| name == others);
            all.remove(place.unwrap_or_else(|| panic!("{others} is gone")));
        }
        all
    }

    fn asked(&self, what: &str) -> bool {
        self.controller.asked().iter().any(|asked| asked.starts_with(what))
    }
}

fn kinds(done: &Value) -> Vec<&str> {
    let increments = done["increments"].as_array().unwrap().iter();
    increments.map(|increment| increment["kind"].as_str().unwrap()).collect()
}

#[test]
fn on_zfs_each_run_sends_an_increment_and_leaves_its_base() {
    let site = Site::new();
    let mut before = Vec::new();
    for (number, kind) in [(1, "full"), (2, "incremental"), (3, "incremental")] {
        assert_eq!(kinds(&site.arrives(&[], number)), [kind]);
        let own = site.own();
        assert_eq!(own.len(), 1, "{own:?}");
        assert_ne!(own, before, "the snapshot is the old one");
        // What has arrived is bookmarked, and ZFS has nothing that LINSTOR does not know.
        let points = site.zfs.points();
        let mark = format!("-{:016x}", GUIDS[number - 1]);
        assert!(points.iter().any(|p| p.contains('#') && p.ends_with(&mark)), "{points:?}");
        assert!(points.contains(&format!("tank/web_00000@{}", own[0])), "{points:?}");
        assert_eq!(points.len(), 1 + number, "{points:?}");
        before = own;
    }
}

/// As of a volume of ZFS that is named itself: where nothing shows the snapshot for reading, that
/// is said.
#[test]
fn on_zfs_the_snapshot_that_linstor_took_is_what_is_audited() {
    let site = Site::new();
    let output = site.push(&[]);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("cannot audit what ZFS calls unchanged"), "{log}");
    assert!(log.contains("zfs set snapdev=visible tank/web_00000"), "{log}");
}

#[test]
fn what_a_killed_run_has_left_is_deleted_by_the_next() {
    let site = Site::new();
    site.arrives(&[], 1);
    let own = site.own();
    let owner = own[0].rsplit_once('-').unwrap().0;
    let left = format!("{owner}-20200101T000000000Z");
    site.controller.change(|cluster| *cluster = cluster.clone().snapshot("web", &left));
    site.arrives(&[], 2);
    assert_eq!(site.own().len(), 1);
    assert!(!site.own().contains(&left));
    let delete = format!("DELETE /v1/resource-definitions/web/snapshots/{left}");
    assert!(site.asked(&delete), "{:?}", site.controller.asked());
}

#[test]
fn what_failed_in_the_middle_is_kept_until_the_next_run_knows_better() {
    let site = Site::new();
    site.arrives(&[], 1);
    let first = site.own();
    site.zfs.write("fails", "warning: cannot send: I/O error\n");
    site.fails(&[], 1, &["I/O error"]);
    // A part of it may be there.
    let cut = site.own();
    assert!(cut.len() == 2 && cut.contains(&first[0]), "{cut:?}");
    fs::remove_file(site.zfs.path("fails")).unwrap();
    // The target has kept nothing of it, so it starts anew from a snapshot of its own.
    site.zfs.write("next", &format!("2 {}\n", GUIDS[1]));
    assert_eq!(kinds(&site.arrives(&[], 2)), ["incremental"]);
    let own = site.own();
    assert!(own.len() == 1 && !cut.contains(&own[0]), "{own:?}");
}

#[test]
fn a_snapshot_that_fails_is_told_and_not_left() {
    let site = Site::with(cluster().looks(1_000_000), Options::default());
    // The satellite is lost once it has begun.
    thread::scope(|scope| {
        scope.spawn(|| {
            let lost = || {
                site.controller.change(|cluster| {
                    let begun = cluster.snapshot_names("web").len() > OTHERS.len();
                    if begun {
                        cluster.connect("alpha", false);
                    }
                    begun
                })
            };
            while !lost() {
                thread::yield_now();
            }
        });
        site.fails(&[], 1, &["failed (FAILED_DISCONNECT)", "linstor snapshot list"]);
    });
    assert_eq!(site.own(), [""; 0]);
    // Now none can be taken at all.
    site.fails(&[], 1, &["The satellite 'alpha' is lost."]);
    assert_eq!(site.own(), [""; 0]);
    // An answer that is none, after the snapshot was taken.
    site.controller.change(|cluster| cluster.connect("alpha", true));
    site.controller.fail("/snapshots/driftline-", Fault::Answer(200, "{}".to_owned()));
    site.fails(&[], 1, &["is not understood"]);
    assert_eq!(site.own(), [""; 0]);
    assert!(!site.zfs.path("vm.img").exists(), "a refused push left a file");
}

#[test]
fn what_cannot_be_sent_leaves_no_snapshot() {
    let site = Site::new();
    fs::write(site.zfs.path("vm.img"), "somebody's own").unwrap();
    site.fails(&[], 3, &["target-foreign"]);
    assert_eq!(site.own(), [""; 0]);
    fs::remove_file(site.zfs.path("vm.img")).unwrap();
    site.zfs.write("next", &format!("1 {}\n", GUIDS[0]));
    site.arrives(&[], 1);
    // Rolled back: what the target holds has never been.
    site.zfs.write("points", "");
    site.zfs.write("next", "1 7\n");
    site.zfs.write("size.7", "16777216\n");
    let before = site.own();
    site.fails(&[], 3, &["base-mismatch"]);
    assert_eq!(site.own(), before);
}

#[test]
fn elsewhere_the_nodes_to_go_to_are_named() {
    let site = Site::new();
    for (node, says) in [
        ("bravo", "is diskless on the node bravo: run driftline on the node alpha"),
        ("charlie", "is not on the node charlie: run driftline on the node alpha"),
    ] {
        let arguments = ["push", "linstor:web/0", "file:vm.img", "--linstor-node", node];
        let mut push = command(site.zfs.0.path(), &arguments);
        let output = push.env("LS_CONTROLLERS", site.controller.url()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
    site.fails(&["--latest"], 2, &["said of zfs: sources"]);
    assert!(!site.asked("POST"));
}

#[test]
fn storage_without_snapshots_is_refused_before_anything_is_taken() {
    let thick = cluster().pool("alpha", "thick", "LVM", "vg").resource("old", &[1024]);
    let thick = thick.pool("alpha", "files", "FILE_THIN", "/srv").resource("img", &[1024]);
    let thick = thick.deploy("old", "alpha", "thick").deploy("img", "alpha", "files");
    let site = Site::with(thick, Options::default());
    for (resource, says) in [
        ("old", "LINSTOR takes no snapshots of vg/old_00000, which is no thin volume"),
        ("img", "is stored on FILE_THIN"),
    ] {
        let source = format!("linstor:{resource}/0");
        let arguments = ["push", &source, "file:x.img", "--linstor-node", "alpha"];
        let mut push = command(site.zfs.0.path(), &arguments);
        let output = push.env("LS_CONTROLLERS", site.controller.url()).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
    assert!(!site.asked("POST"));
}

/// A controller that is away, or that nobody can know to be the one.
#[test]
fn a_controller_that_cannot_be_reached_is_a_connection_that_failed() {
    let mut site = Site::new();
    let away = site.controller.url();
    site.controller = Controller::start(Cluster::new());
    site.fails(&["--linstor-controllers", &away], 5, &["\"reason\":\"connection\"", "running"]);
    let several = format!("{away},{}", Site::new().controller.url());
    site.fails(&["--linstor-controllers", &several], 5, &["no LINSTOR controller can be reached"]);
}

fn tls(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../drbd/linstor/tests/tls").join(name)
}

#[test]
fn a_token_and_certificates_come_from_files() {
    let options = || Options { token: Some("s3cret".to_owned()), tls: None };
    let site = Site::with(cluster(), options());
    site.fails(&[], 3, &["denied", "it wants a token, and none was given"]);
    site.zfs.write("token", "wrong\n");
    site.fails(&["--linstor-token-file", "token"], 3, &["denied", "is the token right"]);
    site.zfs.write("token", "s3cret\n");
    site.arrives(&["--linstor-token-file", "token"], 1);

    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let certificate = CertificateDer::from_pem_file(tls("controller.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls("controller.key")).unwrap();
    let config = config.with_single_cert(vec![certificate], key).unwrap();
    let site = Site::with(cluster(), Options { tls: Some(Arc::new(config)), ..options() });
    site.zfs.write("token", "s3cret\n");
    let stranger = tls("stranger.pem").display().to_string();
    site.fails(&["--linstor-token-file", "token", "--linstor-ca", &stranger], 5, &["reached"]);
    // In a job file it is the same.
    let ca = tls("authority.pem").display().to_string();
    let job = format!(
        "version = 1\nsource = \"linstor:web/0\"\ntarget = \"file:vm.img\"\n[linstor]\n\
         controllers = \"{}\"\ntoken_file = \"token\"\nca = \"{ca}\"\nnode = \"alpha\"\n",
        site.controller.url()
    );
    site.zfs.write("web.toml", &job);
    let mut push = command(site.zfs.0.path(), &["push", "--job", "./web.toml"]);
    let output = push.env("DRIFTLINE_ZFS", site.zfs.path("zfs")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(sha256(&site.zfs.path("vm.img")), recorded_sha256("lz4-16k@s1"));
}

/// A thin volume of a name that no other test has. What LVM would have in `/dev/GROUP` are files
/// in `/dev/shm`, so the group is called that.
struct ThinSite {
    dir: TempDir,
    resource: String,
    controller: Controller,
}

impl ThinSite {
    fn new(kind: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let resource = format!("driftline-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = TempDir::new().unwrap();
        let cluster = Cluster::new().node("alpha").pool("alpha", "thin", "LVM_THIN", "shm/pool");
        let cluster = cluster.pool("alpha", "meta", "LVM_THIN", "shm/pool");
        let cluster = cluster.resource(&resource, &[128 << 10]);
        let cluster = match kind {
            "internal" => cluster.deploy(&resource, "alpha", "thin"),
            _ => cluster.deploy_apart(&resource, "alpha", "thin", "meta"),
        };
        let controller = Controller::start(cluster);
        let from = dir.path().to_owned();
        controller.satellite(move |resource, snapshot, taken| {
            for (file, suffix) in [("volume", ""), ("metadata", ".meta")] {
                let device = format!("/dev/shm/{resource}{suffix}_00000_{snapshot}");
                match taken {
                    true if from.join(file).exists() => {
                        let mut cp = Command::new("cp");
                        cp.arg("--sparse=always").arg(from.join(file)).arg(&device);
                        assert!(cp.status().unwrap().success());
                    }
                    true => {}
                    false => drop(fs::remove_file(device)),
                }
            }
        });
        Self { dir, resource, controller }
    }

    fn json(&self, code: i32, verb: &str, more: &[&str]) -> Value {
        let source = format!("linstor:{}/0", self.resource);
        let url = self.controller.url();
        let mut arguments = vec![verb, &source];
        arguments.extend(["--linstor-node", "alpha", "--linstor-controllers", &url]);
        arguments.extend(more);
        json(self.dir.path(), code, &arguments)
    }

    fn assert_nothing_left(&self) {
        let left = self.controller.change(|cluster| cluster.snapshot_names(&self.resource));
        assert_eq!(left, [""; 0]);
        let of_it = |name: &str| {
            name.strip_prefix(&self.resource).is_some_and(|rest| rest.starts_with(['_', '.']))
        };
        for entry in fs::read_dir("/dev/shm").unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!of_it(&name.to_string_lossy()), "{name:?} is left");
        }
    }
}

impl Drop for ThinSite {
    fn drop(&mut self) {
        // What a failed test has left would stay in memory.
        for name in self.controller.change(|cluster| cluster.snapshot_names(&self.resource)) {
            for suffix in ["", ".meta"] {
                let device = format!("/dev/shm/{}{suffix}_00000_{name}", self.resource);
                drop(fs::remove_file(device));
            }
        }
    }
}

/// The data of the recorded images, without the metadata behind it.
const SIZE: usize = 134_176_768;

fn assert_is_volume(replica: &Path, image: &Path) {
    let [replica, image] = [replica, image].map(|path| fs::read(path).unwrap());
    assert!(replica == image[..SIZE], "the replica is not the volume");
}

#[test]
fn on_thin_lvm_all_is_compared_and_nothing_is_left() {
    let site = ThinSite::new("internal");
    let (volume, replica) = (site.dir.path().join("volume"), site.dir.path().join("vm.img"));
    for (image, kind) in [("s0", "full"), ("s1", "scan")] {
        unpack_drbd(&format!("v84-live-{image}.raw"), &volume);
        let done = site.json(0, "push", &["file:vm.img"]);
        assert_eq!(kinds(&done), [kind]);
        // DRBD's UUID names no instant here: the content does.
        let tip = done["increments"][0]["tip"].as_str().unwrap();
        assert!(tip.starts_with("content:"), "{tip}");
        assert_is_volume(&replica, &volume);
        site.assert_nothing_left();
    }
    let again = site.json(0, "push", &["file:vm.img"]);
    assert_eq!((kinds(&again), &again["bytes"]["lacking"]), (vec!["scan"], &0.into()));
    // What the metadata say can be looked at.
    let map = site.json(0, "map", &[]);
    assert_eq!(map["activity_log_bytes"], 16 << 20, "{map}");
    // A target that is another's costs a snapshot, and leaves none.
    fs::write(site.dir.path().join("other.img"), "somebody's own").unwrap();
    let refused = site.json(3, "push", &["file:other.img"]);
    assert_eq!(refused["error"]["reason"], "target-foreign");
    site.assert_nothing_left();
}

#[test]
fn a_snapshot_that_is_no_volume_of_drbd_is_refused_and_deleted() {
    let site = ThinSite::new("internal");
    fs::write(site.dir.path().join("volume"), vec![7; 1 << 20]).unwrap();
    let refused = site.json(4, "push", &["file:vm.img"]);
    assert_eq!(refused["error"]["reason"], "metadata-damaged", "{refused}");
    site.assert_nothing_left();
    // Its device does not appear.
    fs::remove_file(site.dir.path().join("volume")).unwrap();
    let failed = site.json(1, "push", &["file:vm.img"]);
    let detail = failed["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("cannot be opened: is it active?"), "{detail}");
    site.assert_nothing_left();
    // Nor is it left where only a look was wanted.
    site.json(1, "map", &[]);
    site.assert_nothing_left();
}

#[test]
fn metadata_apart_are_read_from_their_own_snapshot() {
    let site = ThinSite::new("apart");
    let whole = site.dir.path().join("whole");
    unpack_drbd("v84-live-s0.raw", &whole);
    common::split_drbd(&whole, &site.dir.path().join("volume"), &site.dir.path().join("metadata"));
    assert_eq!(kinds(&site.json(0, "push", &["file:vm.img"])), ["full"]);
    assert_is_volume(&site.dir.path().join("vm.img"), &whole);
    site.assert_nothing_left();
}

#[test]
fn a_peer_pulls_what_linstor_keeps() {
    let site = ThinSite::new("internal");
    let volume = site.dir.path().join("volume");
    let pair = Pair::new();
    let server = pair.serve(&format!(
        "pull = [\"web\"]\n[[volume]]\nname = \"web\"\nsource = \"linstor:{}/0\"\n\
         [linstor]\ncontrollers = \"{}\"\nnode = \"alpha\"\n",
        site.resource,
        site.controller.url()
    ));
    let source = format!("web@{}", server.address);
    let arguments = ["pull", &source, "file:vm.img", "--key", "client.key", "--peer", &pair.server];
    for (image, kind) in [("s0", "full"), ("s1", "scan")] {
        unpack_drbd(&format!("v84-live-{image}.raw"), &volume);
        assert_eq!(kinds(&json(pair.path(), 0, &arguments)), [kind]);
        assert_is_volume(&pair.image(), &volume);
    }
    site.assert_nothing_left();
}
