//! Where volumes are, by what a controller told of a cluster: `golden/` has its answers.

use driftline_extent::{Explained as _, Reason};
use driftline_linstor::{
    NodeName, PlaceError, Resource, SnapshotName, StoragePool, place,
    testing::{Cluster, Fake},
};
use proptest::prelude::*;

fn resources() -> Vec<Resource> {
    serde_json::from_str(include_str!("golden/resources.json")).expect("it is LINSTOR's shape")
}

fn pools() -> Vec<StoragePool> {
    let text = include_str!("golden/storage-pools.json");
    serde_json::from_str(text).expect("it is LINSTOR's shape")
}

fn find(node: &str, resource: &str, volume: u32) -> Result<driftline_linstor::Place, PlaceError> {
    let (node, resource) = (node.parse().expect("a name"), resource.parse().expect("a name"));
    place(&node, &resource, volume, &resources(), &pools())
}

/// Node, resource, volume; what it is stored on; its device; its snapshot and the device of that.
type Row = ((&'static str, &'static str, u32), [&'static str; 4]);

const PLACES: [Row; 10] = [
    (
        ("alpha", "Web-1", 0),
        [
            "lvm-thin vg-fast/Web-1_00000 in pool0",
            "/dev/vg-fast/Web-1_00000",
            "lvm-thin vg-fast/Web-1_00000_snap_1 in pool0",
            "/dev/vg-fast/Web-1_00000_snap_1",
        ],
    ),
    // Names are told from others without regard to case, and written as they were created.
    (
        ("ALPHA", "web-1", 1),
        [
            "lvm-thin vg-fast/Web-1_00001 in pool0",
            "/dev/vg-fast/Web-1_00001",
            "lvm-thin vg-fast/Web-1_00001_snap_1 in pool0",
            "/dev/vg-fast/Web-1_00001_snap_1",
        ],
    ),
    (
        ("beta", "Web-1", 0),
        [
            "lvm-thin vg/Web-1_00000 in pool0",
            "/dev/vg/Web-1_00000",
            "lvm-thin vg/Web-1_00000_snap_1 in pool0",
            "/dev/vg/Web-1_00000_snap_1",
        ],
    ),
    (
        ("alpha", "plain", 0),
        [
            "lvm-thin vg-fast/plain_00000 in pool0",
            "/dev/vg-fast/plain_00000",
            "lvm-thin vg-fast/plain_00000_snap_1 in pool0",
            "/dev/vg-fast/plain_00000_snap_1",
        ],
    ),
    (
        ("alpha", "zvol", 0),
        [
            "zfs tank/linstor/zvol_00000",
            "/dev/zvol/tank/linstor/zvol_00000",
            "zfs tank/linstor/zvol_00000@snap_1",
            "/dev/zvol/tank/linstor/zvol_00000@snap_1",
        ],
    ),
    (
        ("alpha", "zthin", 0),
        [
            "zfs tank/zthin_00000",
            "/dev/zvol/tank/zthin_00000",
            "zfs tank/zthin_00000@snap_1",
            "/dev/zvol/tank/zthin_00000@snap_1",
        ],
    ),
    // Properties that older versions have.
    (
        ("alpha", "older", 0),
        [
            "lvm-thin vg-old/older_00000 in pool1",
            "/dev/vg-old/older_00000",
            "lvm-thin vg-old/older_00000_snap_1 in pool1",
            "/dev/vg-old/older_00000_snap_1",
        ],
    ),
    (
        ("alpha", "zolder", 0),
        [
            "zfs old/zolder_00000",
            "/dev/zvol/old/zolder_00000",
            "zfs old/zolder_00000@snap_1",
            "/dev/zvol/old/zolder_00000@snap_1",
        ],
    ),
    (
        ("alpha", "apart", 0),
        [
            "lvm-thin vg-fast/apart_00000 in pool0",
            "/dev/vg-fast/apart_00000",
            "lvm-thin vg-fast/apart_00000_snap_1 in pool0",
            "/dev/vg-fast/apart_00000_snap_1",
        ],
    ),
    (
        ("alpha", "thick", 0),
        [
            "lvm vg-slow/thick_00000",
            "/dev/vg-slow/thick_00000",
            "LINSTOR takes no snapshots of vg-slow/thick_00000, which is no thin volume: use a \
             storage pool of LVM_THIN or ZFS",
            "",
        ],
    ),
];

#[test]
fn volumes_and_their_snapshots_are_where_linstor_puts_them() {
    let name: SnapshotName = "snap_1".parse().expect("a name");
    for ((node, resource, volume), expected) in PLACES {
        let place = find(node, resource, volume).unwrap_or_else(|e| panic!("{resource}: {e}"));
        let snapshot = place.data.snapshot(&name);
        let device = snapshot.as_ref().ok().map(|s| s.device().display().to_string());
        let said = snapshot.map_or_else(|error| error.to_string(), |s| s.to_string());
        let found = [
            place.data.to_string(),
            place.data.device().display().to_string(),
            said,
            device.unwrap_or_default(),
        ];
        assert_eq!(found, expected, "{resource}");
    }
}

#[test]
fn what_is_known_of_a_volume_comes_with_it() {
    let place = find("alpha", "web-1", 1).expect("it is there");
    assert_eq!((place.node.as_str(), place.resource.as_str()), ("alpha", "Web-1"));
    assert_eq!((place.volume, place.usable_size_kib), (1, Some(8192)));
    assert_eq!(place.disk_state.as_deref(), Some("Inconsistent"));
    let drbd = place.drbd.expect("it is of DRBD");
    assert_eq!(drbd.device.expect("it has one").to_str(), Some("/dev/drbd1001"));
    assert_eq!((drbd.node_id, drbd.metadata), (Some(0), None));

    let metadata = find("alpha", "apart", 0).expect("it is there").drbd.expect("it is of DRBD");
    let metadata = metadata.metadata.expect("they are apart");
    assert_eq!(metadata.to_string(), "zfs tank/linstor/apart.meta_00000");

    let plain = find("alpha", "plain", 0).expect("it is there");
    assert_eq!((plain.drbd, plain.usable_size_kib, plain.disk_state), (None, None, None));
}

#[test]
fn what_cannot_be_used_is_named() {
    for (node, resource, volume, says) in [
        ("alpha", "none", 0, "LINSTOR has no resource none on any node"),
        ("alpha", "Web-1", 2, "the resource Web-1 has no volume 2"),
        ("alpha", "Web-1", u32::MAX, "has no volume 4294967295"),
        (
            "gamma",
            "Web-1",
            0,
            "the resource Web-1 is diskless on the node gamma: run driftline on one of the nodes \
             alpha, beta",
        ),
        // The second volume is on one of them only.
        ("gamma", "Web-1", 1, "diskless on the node gamma: run driftline on the node alpha"),
        ("delta", "zvol", 0, "is not on the node delta: run driftline on the node alpha"),
        ("alpha", "remote", 0, "run driftline on one of the nodes beta, gamma"),
        ("alpha", "hollow", 0, "is diskless on the node alpha: no node has its data"),
        (
            "alpha",
            "going",
            0,
            "going on the node alpha is marked as DELETE by LINSTOR: run driftline on the node beta",
        ),
        ("alpha", "asleep", 0, "is marked as INACTIVE by LINSTOR: no node has its data"),
        ("alpha", "secret", 0, "has a layer of LUKS"),
        ("alpha", "cached", 0, "has a layer of CACHE"),
        ("alpha", "sparse", 0, "is stored on FILE_THIN: only LVM, LVM_THIN, ZFS and ZFS_THIN"),
        ("alpha", "nvme", 0, "is stored on SPDK"),
        (
            "alpha",
            "moved",
            0,
            "LINSTOR says that lvm-thin vg-fast/moved_00000 in pool0 is \
             /dev/vg-other/moved_00000, by its own rules it would be /dev/vg-fast/moved_00000",
        ),
        ("alpha", "renamed", 0, "would be /dev/zvol/tank/linstor/renamed_00000"),
        ("alpha", "lost", 0, "LINSTOR has no storage pool nowhere on the node alpha"),
        ("alpha", "nameless", 0, "names no LVM_THIN: StorDriver/StorPoolName is \"\""),
        ("alpha", "escape", 0, "StorDriver/StorPoolName is \"../../etc/x\""),
        ("alpha", "zescape", 0, "StorDriver/StorPoolName is \"tank/../x@y\""),
        ("alpha", "option", 0, "StorDriver/StorPoolName is \"-f\""),
        ("alpha", "bare", 0, "lacks its layers"),
        ("alpha", "headless", 0, "lacks what DRBD knows of it"),
        ("alpha", "halfapart", 0, "lacks where the metadata of DRBD are"),
    ] {
        let error = find(node, resource, volume).expect_err(resource);
        assert!(error.to_string().contains(says), "{error}");
        let unsupported = ["LUKS", "CACHE", "FILE_THIN", "SPDK"].iter().any(|w| says.contains(w));
        let reason = if unsupported { Reason::Unsupported } else { Reason::Failed };
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[test]
fn satellites_to_go_to_are_told() {
    let error = find("alpha", "remote", 0).expect_err("it is elsewhere");
    let PlaceError::NotHere { satellites, diskless, node, .. } = error else { panic!("{error}") };
    assert_eq!(satellites, ["beta", "gamma"]);
    assert!(diskless && node.is("alpha"));
}

#[test]
fn a_controllers_answers_lead_there_as_well() {
    let cluster = Cluster::new()
        .node("alpha")
        .pool("alpha", "thin", "LVM_THIN", "vg0/pool0")
        .pool("alpha", "tank", "ZFS", "tank/linstor")
        .resource("web", &[8, 16])
        .deploy_apart("web", "alpha", "thin", "tank");
    let fake = Fake::start(cluster);
    let controllers = driftline_linstor::Controller::list(&fake.url()).expect("an address");
    let client = driftline_linstor::Client::new(&driftline_linstor::ClientConfig::new(controllers))
        .expect("the configuration is right");
    let node: NodeName = "alpha".parse().expect("a name");
    let resource = "web".parse().expect("a name");
    let resources = client.resources(&[]).expect("it answers");
    let pools = client.storage_pools(&[]).expect("it answers");
    let place = place(&node, &resource, 1, &resources, &pools).expect("it is there");
    assert_eq!(place.data.to_string(), "lvm-thin vg0/web_00001 in pool0");
    let metadata = place.drbd.and_then(|drbd| drbd.metadata).expect("they are apart");
    assert_eq!(metadata.to_string(), "zfs tank/linstor/web.meta_00001");
}

proptest! {
    /// Whatever a pool is said to be called, what is made of it stays below `/dev`, is one part
    /// for each name, and is no option of any command.
    #[test]
    fn no_name_of_a_pool_leads_elsewhere(
        name in "[-/.@#% a-c]{0,8}|[a-c]{1,3}/[a-c.-]{1,3}",
        kind in prop::sample::select(vec!["LVM", "LVM_THIN", "ZFS", "ZFS_THIN"]),
    ) {
        let mut resource = resources().swap_remove(0);
        let kind = driftline_linstor::ProviderKind::from(kind.to_owned());
        resource.volumes[0].provider_kind = kind.clone();
        let storage = resource.layer_object.as_mut().and_then(|layer| layer.children.first_mut());
        storage.expect("it has storage").storage = None;
        let mut pools = pools();
        for pool in &mut pools {
            pool.provider_kind = kind.clone();
            pool.props.insert("StorDriver/StorPoolName".to_owned(), name.clone());
        }
        let (node, of) = ("alpha".parse().expect("a name"), "Web-1".parse().expect("a name"));
        if let Ok(place) = place(&node, &of, 0, &[resource], &pools) {
            let device = place.data.device();
            let device = device.to_str().expect("it is text");
            prop_assert!(device.starts_with("/dev/") && device.ends_with("/Web-1_00000"));
            for part in device.split('/').skip(1) {
                prop_assert!(!["", ".", ".."].contains(&part) && !part.contains(['@', '%', '#', ' ']));
            }
            let named = place.data.to_string();
            prop_assert!(!named.contains(" -") || named.starts_with("zfs"), "{}", named);
        }
    }
}
