//! What a controller tells, as far as it is used here. Fields that are not here are ignored, and
//! those without which nothing could be decided must be there.
//!
//! Sizes are in KiB, as LINSTOR has them. It writes -1 where it does not know one yet.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize};

use crate::NodeName;

/// Values by name, such as the properties of a storage pool.
pub type Props = BTreeMap<String, String>;

/// What is empty is left out by some versions and `null` in others.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Which controller this is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct ControllerVersion {
    /// Version of LINSTOR.
    pub version: String,
    /// Version of its interface.
    pub rest_api_version: String,
}

/// What storage is made of.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum ProviderKind {
    /// None: the data are only on other nodes.
    Diskless,
    /// Logical volumes.
    Lvm,
    /// Thin logical volumes.
    LvmThin,
    /// Volumes of ZFS that reserve their space.
    Zfs,
    /// Volumes of ZFS that do not.
    ZfsThin,
    /// Files as loop devices.
    File,
    /// Sparse files as loop devices.
    FileThin,
    /// What is not used here, by LINSTOR's word.
    Other(String),
}

/// Kinds and their words.
const KINDS: [(ProviderKind, &str); 7] = [
    (ProviderKind::Diskless, "DISKLESS"),
    (ProviderKind::Lvm, "LVM"),
    (ProviderKind::LvmThin, "LVM_THIN"),
    (ProviderKind::Zfs, "ZFS"),
    (ProviderKind::ZfsThin, "ZFS_THIN"),
    (ProviderKind::File, "FILE"),
    (ProviderKind::FileThin, "FILE_THIN"),
];

impl From<String> for ProviderKind {
    fn from(word: String) -> Self {
        let known = KINDS.iter().find(|(_, name)| *name == word);
        known.map_or(Self::Other(word), |(kind, _)| kind.clone())
    }
}

impl From<ProviderKind> for String {
    fn from(kind: ProviderKind) -> Self {
        kind.to_string()
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = KINDS.iter().find(|(kind, _)| kind == self);
        match (known, self) {
            (Some((_, name)), _) => f.write_str(name),
            (None, Self::Other(word)) => f.write_str(word),
            (None, kind) => write!(f, "{kind:?}"),
        }
    }
}

/// What is the same for a resource on all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct ResourceDefinition {
    /// Its name, as it is written in names of storage.
    pub name: String,
    /// Such as `DELETE`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    /// Its volumes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub volume_definitions: Vec<VolumeDefinition>,
}

/// What is the same for a volume on all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct VolumeDefinition {
    /// Its number within the resource.
    pub volume_number: u32,
    /// Its size as its users see it.
    pub size_kib: u64,
}

/// A resource on one node.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
pub struct Resource {
    /// Its name, as it is written in names of storage.
    pub name: String,
    /// Where it is.
    pub node_name: String,
    /// Such as `DISKLESS` or `DELETE`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    /// The highest of the layers that it is made of.
    #[serde(default)]
    pub layer_object: Option<Layer>,
    /// Whether it is in use, where the node has said so.
    #[serde(default)]
    pub state: Option<ResourceState>,
    /// Its volumes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub volumes: Vec<Volume>,
}

/// What a node says of a resource.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct ResourceState {
    /// Whether it is open there, as Primary.
    #[serde(default)]
    pub in_use: Option<bool>,
}

/// A layer of a resource, above its children.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
pub struct Layer {
    /// Such as `DRBD`, `LUKS` or `STORAGE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stands behind the name of the resource in names of storage; empty for the data.
    #[serde(default, deserialize_with = "null_is_default")]
    pub resource_name_suffix: String,
    /// The layers beneath.
    #[serde(default, deserialize_with = "null_is_default")]
    pub children: Vec<Self>,
    /// Of a layer of DRBD.
    #[serde(default)]
    pub drbd: Option<DrbdResource>,
    /// Of a layer of storage.
    #[serde(default)]
    pub storage: Option<StorageResource>,
}

/// What DRBD knows of a resource on one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct DrbdResource {
    /// This node's number in its metadata.
    #[serde(default)]
    pub node_id: Option<u32>,
    /// How many peers its metadata have room for.
    #[serde(default)]
    pub peer_slots: Option<u32>,
    /// Its volumes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub drbd_volumes: Vec<DrbdVolume>,
}

/// What DRBD knows of a volume on one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct DrbdVolume {
    /// Which volume it is.
    #[serde(default)]
    pub drbd_volume_definition: Option<DrbdVolumeDefinition>,
    /// Such as `/dev/drbd1000`.
    #[serde(default)]
    pub device_path: Option<String>,
    /// What it is made of.
    #[serde(default)]
    pub backing_device: Option<String>,
    /// Where its metadata are; absent or `internal` if they are on the same device.
    #[serde(default)]
    pub meta_disk: Option<String>,
    /// The storage pool of metadata that are elsewhere.
    #[serde(default)]
    pub ext_meta_stor_pool: Option<String>,
    /// Such as `UpToDate`.
    #[serde(default)]
    pub disk_state: Option<String>,
}

/// What is the same for a volume of DRBD on all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct DrbdVolumeDefinition {
    /// Its number within the resource.
    pub volume_number: u32,
    /// The number of its device.
    #[serde(default)]
    pub minor_number: Option<u32>,
}

/// The storage of a resource on one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct StorageResource {
    /// Its volumes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub storage_volumes: Vec<StorageVolume>,
}

/// The storage of a volume on one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct StorageVolume {
    /// Its number within the resource.
    pub volume_number: u32,
    /// Its device, once the node has told it.
    #[serde(default)]
    pub device_path: Option<String>,
    /// What its users see of it.
    #[serde(default)]
    pub usable_size_kib: Option<i64>,
}

/// A volume of a resource on one node.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct Volume {
    /// Its number within the resource.
    pub volume_number: u32,
    /// Where its data are.
    pub storage_pool_name: String,
    /// What that is.
    pub provider_kind: ProviderKind,
    /// The device of its highest layer, once the node has told it.
    #[serde(default)]
    pub device_path: Option<String>,
    /// What its users see of it.
    #[serde(default)]
    pub usable_size_kib: Option<i64>,
    /// What it takes up.
    #[serde(default)]
    pub allocated_size_kib: Option<i64>,
    /// How it is, where the node has said so.
    #[serde(default)]
    pub state: Option<VolumeState>,
}

/// What a node says of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct VolumeState {
    /// Such as `UpToDate`.
    #[serde(default)]
    pub disk_state: Option<String>,
}

/// Storage that a node lends to LINSTOR.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct StoragePool {
    /// Its name, which is the same on several nodes.
    pub storage_pool_name: String,
    /// Where it is.
    pub node_name: String,
    /// What it is.
    pub provider_kind: ProviderKind,
    /// Among them what it is called there: `StorDriver/StorPoolName`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub props: Props,
    /// Whether LINSTOR can take snapshots there.
    #[serde(default)]
    pub supports_snapshots: Option<bool>,
    /// What is left of it.
    #[serde(default)]
    pub free_capacity: Option<i64>,
    /// What it had when it was empty.
    #[serde(default)]
    pub total_capacity: Option<i64>,
}

/// A snapshot of a resource, on all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct Snapshot {
    /// Its name, as it is written in names of storage.
    pub name: String,
    /// What it is of.
    pub resource_name: String,
    /// The nodes that it is on.
    #[serde(default, deserialize_with = "null_is_default")]
    pub nodes: Vec<String>,
    /// How far it is, see [`Snapshot::progress`].
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    /// The volumes at that time.
    #[serde(default, deserialize_with = "null_is_default")]
    pub volume_definitions: Vec<SnapshotVolume>,
    /// What each node has of it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub snapshots: Vec<SnapshotNode>,
}

/// A volume at the time of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct SnapshotVolume {
    /// Its number within the resource.
    pub volume_number: u32,
    /// Its size as its users saw it.
    pub size_kib: u64,
}

/// What a node has of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct SnapshotNode {
    /// The node.
    pub node_name: String,
    /// When it was taken there, in milliseconds since 1970, once it was.
    #[serde(default)]
    pub create_timestamp: Option<i64>,
}

/// How far a snapshot is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is being taken.
    Pending,
    /// It was taken on all of its nodes.
    Successful,
    /// It came to nothing, by the flag that says so.
    Failed(String),
    /// It is being deleted.
    Deleting,
}

impl Snapshot {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let has = |wanted: &str| self.flags.iter().any(|flag| flag == wanted);
        let failed = self.flags.iter().find(|flag| flag.starts_with("FAILED"));
        match failed {
            _ if has("DELETE") => Progress::Deleting,
            Some(flag) => Progress::Failed(flag.clone()),
            None if has("SUCCESSFUL") => Progress::Successful,
            None => Progress::Pending,
        }
    }

    /// Whether this node has a part in it. One that was lost or is being emptied when it was
    /// taken has none.
    pub fn is_on(&self, node: &NodeName) -> bool {
        self.nodes.iter().any(|name| node.is(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_linstors_words_and_others_are_kept() {
        for word in ["LVM", "ZFS_THIN", "SPDK", "EBS_TARGET", ""] {
            assert_eq!(ProviderKind::from(word.to_owned()).to_string(), word);
        }
        assert_eq!(ProviderKind::from("LVM_THIN".to_owned()), ProviderKind::LvmThin);
        assert_eq!(ProviderKind::from("SPDK".to_owned()), ProviderKind::Other("SPDK".to_owned()));
        // No kind is without a word.
        assert_eq!(ProviderKind::Diskless.to_string(), "DISKLESS");
    }

    #[test]
    fn progress_is_what_the_flags_say() {
        let progress = |flags: &[&str]| {
            let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
            Snapshot { flags, ..Snapshot::default() }.progress()
        };
        assert_eq!(progress(&[]), Progress::Pending);
        assert_eq!(progress(&["NEW_FLAG"]), Progress::Pending);
        assert_eq!(progress(&["SUCCESSFUL"]), Progress::Successful);
        let failed = Progress::Failed("FAILED_DISCONNECT".to_owned());
        assert_eq!(progress(&["SUCCESSFUL", "FAILED_DISCONNECT"]), failed);
        assert_eq!(progress(&["SUCCESSFUL", "DELETE"]), Progress::Deleting);
    }

    #[test]
    fn what_is_empty_may_be_absent_or_null() {
        let short: Snapshot = serde_json::from_str(r#"{"name":"s","resource_name":"r"}"#)
            .expect("nothing else is needed");
        let nulls = r#"{"name":"s","resource_name":"r","nodes":null,"flags":null,
                        "volume_definitions":null,"snapshots":null,"uuid":7}"#;
        assert_eq!(serde_json::from_str::<Snapshot>(nulls).expect("null is empty"), short);
        for lacking in [r#"{"name":"s"}"#, r#"{"resource_name":"r"}"#, r#"{"name":null}"#] {
            assert!(serde_json::from_str::<Snapshot>(lacking).is_err(), "{lacking}");
        }
    }
}
