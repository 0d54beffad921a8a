//! What volumes and snapshots are stored on, and what their storage pools are called.

use std::{fmt, path::PathBuf};

use super::PlaceError;
use crate::{SnapshotName, StoragePool};

/// What a node calls a pool, and what it called it before LINSTOR 1.0.
const POOL_NAME: &str = "StorDriver/StorPoolName";
const OLD_GROUP: &str = "StorDriver/LvmVg";
const OLD_THIN: &str = "StorDriver/ThinPool";
const OLD_ZPOOLS: [&str; 2] = ["StorDriver/ZPool", "StorDriver/ZPoolThin"];
/// Longest name of storage, in bytes.
const STORAGE_NAME_MAX: usize = 255;

/// What a volume is stored on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Storage {
    /// A logical volume, which LINSTOR takes no snapshots of.
    Lvm {
        /// Volume group.
        group: String,
        /// Logical volume.
        volume: String,
    },
    /// A thin logical volume.
    LvmThin {
        /// Volume group.
        group: String,
        /// Thin pool, in the same group.
        pool: String,
        /// Logical volume.
        volume: String,
    },
    /// A volume of ZFS, by the name of its data set.
    Zfs(String),
}

/// A snapshot of what a volume is stored on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum StoredSnapshot {
    /// A thin logical volume, which can only be read.
    LvmThin {
        /// Volume group.
        group: String,
        /// Thin pool, in the same group.
        pool: String,
        /// Logical volume.
        volume: String,
    },
    /// A snapshot of a volume of ZFS.
    Zfs {
        /// Data set.
        dataset: String,
        /// Snapshot, as it is behind the `@`.
        snapshot: String,
    },
}

impl Storage {
    /// The device of the volume.
    pub fn device(&self) -> PathBuf {
        match self {
            Self::Lvm { group, volume } | Self::LvmThin { group, volume, .. } => {
                PathBuf::from(format!("/dev/{group}/{volume}"))
            }
            Self::Zfs(dataset) => PathBuf::from(format!("/dev/zvol/{dataset}")),
        }
    }

    /// The snapshot of this name. Whether it exists is the controller's to say.
    ///
    /// # Errors
    ///
    /// [`PlaceError::NoSnapshots`] for logical volumes that are not thin.
    pub fn snapshot(&self, name: &SnapshotName) -> Result<StoredSnapshot, PlaceError> {
        match self {
            Self::Lvm { group, volume } => {
                Err(PlaceError::NoSnapshots { group: group.clone(), volume: volume.clone() })
            }
            Self::LvmThin { group, pool, volume } => Ok(StoredSnapshot::LvmThin {
                group: group.clone(),
                pool: pool.clone(),
                volume: format!("{volume}_{name}"),
            }),
            Self::Zfs(dataset) => {
                Ok(StoredSnapshot::Zfs { dataset: dataset.clone(), snapshot: name.to_string() })
            }
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm { group, volume } => write!(f, "lvm {group}/{volume}"),
            Self::LvmThin { group, pool, volume } => {
                write!(f, "lvm-thin {group}/{volume} in {pool}")
            }
            Self::Zfs(dataset) => write!(f, "zfs {dataset}"),
        }
    }
}

impl StoredSnapshot {
    /// The device of the snapshot. That of ZFS is there only if the property `snapdev` of its
    /// data set says so.
    pub fn device(&self) -> PathBuf {
        match self {
            Self::LvmThin { group, volume, .. } => PathBuf::from(format!("/dev/{group}/{volume}")),
            Self::Zfs { dataset, snapshot } => {
                PathBuf::from(format!("/dev/zvol/{dataset}@{snapshot}"))
            }
        }
    }
}

impl fmt::Display for StoredSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LvmThin { group, pool, volume } => {
                write!(f, "lvm-thin {group}/{volume} in {pool}")
            }
            Self::Zfs { dataset, snapshot } => write!(f, "zfs {dataset}@{snapshot}"),
        }
    }
}

fn bad(pool: &StoragePool, what: &'static str, value: &str) -> PlaceError {
    PlaceError::BadPool {
        pool: pool.storage_pool_name.clone(),
        kind: pool.provider_kind.clone(),
        what,
        value: value.chars().take(STORAGE_NAME_MAX).collect(),
    }
}

/// The first of these properties that the pool has.
fn property<'a>(
    pool: &'a StoragePool,
    names: &[&'static str],
) -> Result<(&'static str, &'a str), PlaceError> {
    let found = names.iter().find_map(|name| Some((*name, pool.props.get(*name)?.trim())));
    found.ok_or_else(|| bad(pool, POOL_NAME, ""))
}

pub(super) fn group_of(pool: &StoragePool) -> Result<String, PlaceError> {
    let (what, group) = property(pool, &[POOL_NAME, OLD_GROUP])?;
    match is_lvm_name(group) {
        true => Ok(group.to_owned()),
        false => Err(bad(pool, what, group)),
    }
}

/// The volume group, and the thin pool in it.
pub(super) fn thin_pool_of(pool: &StoragePool) -> Result<(String, String), PlaceError> {
    let (what, value) = property(pool, &[POOL_NAME, OLD_THIN])?;
    let (group, thin) = match value.split_once('/') {
        Some((group, thin)) => (group, thin),
        None => (property(pool, &[OLD_GROUP])?.1, value),
    };
    match is_lvm_name(group) && is_lvm_name(thin) {
        true => Ok((group.to_owned(), thin.to_owned())),
        false => Err(bad(pool, what, value)),
    }
}

/// The pool of ZFS, or a data set in one.
pub(super) fn zpool_of(pool: &StoragePool) -> Result<String, PlaceError> {
    let (what, value) = property(pool, &[POOL_NAME, OLD_ZPOOLS[0], OLD_ZPOOLS[1]])?;
    let legal = |part: &str| {
        !part.is_empty()
            && ![".", ".."].contains(&part)
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    match value.len() <= STORAGE_NAME_MAX && value.split('/').all(legal) {
        true => Ok(value.to_owned()),
        false => Err(bad(pool, what, value)),
    }
}

/// Whether LVM takes it for a name, and a path for one of its parts.
fn is_lvm_name(name: &str) -> bool {
    (1..=STORAGE_NAME_MAX).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
}
