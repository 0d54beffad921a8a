//! Where the data of a volume are on a node, by what the controller says of it.
//!
//! LINSTOR tells the devices of volumes, but not those of snapshots. Both have names that follow
//! from the storage pool, the resource and the number of the volume:
//!
//! | kind | the volume | its snapshot |
//! |---|---|---|
//! | LVM | `/dev/VG/RES_00000` | none |
//! | LVM_THIN | `/dev/VG/RES_00000` | `/dev/VG/RES_00000_SNAP` |
//! | ZFS, ZFS_THIN | data set `POOL/RES_00000` | `POOL/RES_00000@SNAP` |
//!
//! Metadata of DRBD that are not on the same device are in a second volume, `RES.meta_00000`, of
//! which the same is true. A device that the controller tells and that is not the one that
//! follows from the names is an error: then this is not understood, and another volume would be
//! read.

mod error;
mod storage;

use std::path::{Path, PathBuf};

pub use error::PlaceError;
pub use storage::{Storage, StoredSnapshot};
use storage::{group_of, thin_pool_of, zpool_of};

use crate::{Layer, NodeName, ProviderKind, Resource, ResourceName, StoragePool, Volume};

/// Flags of a resource that has no data on its node.
const DISKLESS: [&str; 5] =
    ["DISKLESS", "DRBD_DISKLESS", "TIE_BREAKER", "NVME_INITIATOR", "EBS_INITIATOR"];
/// Flags of a resource whose data are not kept up, or not for long.
const UNREADY: [&str; 5] = ["DELETE", "INACTIVE", "INACTIVE_PERMANENTLY", "EVICTED", "EVACUATE"];
/// Behind the name of a resource, in names of storage for DRBD's metadata.
const META: &str = ".meta";
/// Highest number of a volume.
const VOLUME_MAX: u32 = 65_535;

/// A volume of a resource on a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The node.
    pub node: String,
    /// The resource, as it is written in names of storage.
    pub resource: String,
    /// The volume.
    pub volume: u32,
    /// Where the data are.
    pub data: Storage,
    /// Of a volume of DRBD.
    pub drbd: Option<DrbdPlace>,
    /// How much of `data` its users see, in KiB, where the node has told it.
    pub usable_size_kib: Option<u64>,
    /// Such as `UpToDate`, where the node has told it.
    pub disk_state: Option<String>,
}

/// What DRBD adds to a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrbdPlace {
    /// Such as `/dev/drbd1000`.
    pub device: Option<PathBuf>,
    /// Where its metadata are, if they are not at the end of the data.
    pub metadata: Option<Storage>,
    /// This node's number in the metadata.
    pub node_id: Option<u32>,
}

/// Where the data of this volume are on this node, by all resources of that definition and the
/// storage pools of the node.
///
/// # Errors
///
/// Of data that are not here the nodes where they are; of storage that is not known its kind.
pub fn place(
    node: &NodeName,
    resource: &ResourceName,
    volume: u32,
    resources: &[Resource],
    pools: &[StoragePool],
) -> Result<Place, PlaceError> {
    let all: Vec<_> = resources.iter().filter(|r| resource.is(&r.name)).collect();
    if all.is_empty() {
        return Err(PlaceError::NoResource(resource.clone()));
    }
    let has_volume = |r: &Resource| r.volumes.iter().any(|v| v.volume_number == volume);
    if volume > VOLUME_MAX || !all.iter().any(|r| has_volume(r)) {
        return Err(PlaceError::NoVolume { resource: resource.clone(), volume });
    }
    let ready = |r: &&&Resource| flag_of(r, &UNREADY).is_none() && has_data(r, volume);
    let satellites = all.iter().filter(ready).map(|r| r.node_name.clone()).collect();
    let Some(here) = all.iter().find(|r| node.is(&r.node_name) && has_data(r, volume)) else {
        let (resource, node) = (resource.clone(), node.clone());
        let diskless = all.iter().any(|r| node.is(&r.node_name));
        return Err(PlaceError::NotHere { resource, node, diskless, satellites });
    };
    if let Some(flag) = flag_of(here, &UNREADY) {
        let (resource, node) = (resource.clone(), node.clone());
        return Err(PlaceError::Unready { resource, node, flag, satellites });
    }
    Finder { node, resource, here, number: volume, pools }.find()
}

/// The first flag of a resource that is among these.
fn flag_of(resource: &Resource, flags: &[&str]) -> Option<String> {
    resource.flags.iter().find(|flag| flags.contains(&flag.as_str())).cloned()
}

fn has_data(resource: &Resource, volume: u32) -> bool {
    flag_of(resource, &DISKLESS).is_none()
        && resource
            .volumes
            .iter()
            .any(|v| v.volume_number == volume && v.provider_kind != ProviderKind::Diskless)
}

/// Looks for a volume that is on this node.
struct Finder<'a> {
    node: &'a NodeName,
    resource: &'a ResourceName,
    here: &'a Resource,
    number: u32,
    pools: &'a [StoragePool],
}

impl Finder<'_> {
    fn find(&self) -> Result<Place, PlaceError> {
        let volume = self.here.volumes.iter().find(|v| v.volume_number == self.number);
        let volume = volume.ok_or_else(|| self.lacking("its volume"))?;
        let top = self.here.layer_object.as_ref();
        let top = top.ok_or_else(|| self.lacking("its layers"))?;
        let (data, drbd) = match top.kind.as_str() {
            "STORAGE" => (self.data(volume, top)?, None),
            "DRBD" => self.under_drbd(volume, top)?,
            _ => return Err(self.bad_layer(top)),
        };
        let state = volume.state.as_ref();
        Ok(Place {
            node: self.here.node_name.clone(),
            resource: self.here.name.clone(),
            volume: self.number,
            data,
            drbd,
            usable_size_kib: volume.usable_size_kib.and_then(|size| u64::try_from(size).ok()),
            disk_state: state.and_then(|state| state.disk_state.clone()),
        })
    }

    fn under_drbd(
        &self,
        volume: &Volume,
        top: &Layer,
    ) -> Result<(Storage, Option<DrbdPlace>), PlaceError> {
        if let Some(other) = top.children.iter().find(|child| child.kind != "STORAGE") {
            return Err(self.bad_layer(other));
        }
        let child = |suffix: &str| top.children.iter().find(|c| c.resource_name_suffix == suffix);
        let data = child("").ok_or_else(|| self.lacking("the storage beneath DRBD"))?;
        let drbd = top.drbd.as_ref().ok_or_else(|| self.lacking("what DRBD knows of it"))?;
        let is_it = |number: Option<u32>| number == Some(self.number);
        let of_drbd = drbd
            .drbd_volumes
            .iter()
            .find(|volume| is_it(volume.drbd_volume_definition.as_ref().map(|d| d.volume_number)));
        let of_drbd = of_drbd.ok_or_else(|| self.lacking("its volume of DRBD"))?;
        let pool = of_drbd.ext_meta_stor_pool.as_deref().filter(|pool| !pool.is_empty());
        let metadata = match (pool, child(META)) {
            (None, None) => None,
            (Some(pool), Some(layer)) => {
                let pool = self.pool(pool)?;
                Some(self.storage(pool, &pool.provider_kind, layer)?)
            }
            _ => return Err(self.lacking("where the metadata of DRBD are")),
        };
        let drbd = DrbdPlace {
            device: of_drbd.device_path.as_ref().map(PathBuf::from),
            metadata,
            node_id: drbd.node_id,
        };
        Ok((self.data(volume, data)?, Some(drbd)))
    }

    /// The storage of the data.
    fn data(&self, volume: &Volume, layer: &Layer) -> Result<Storage, PlaceError> {
        if !layer.children.is_empty() || !layer.resource_name_suffix.is_empty() {
            return Err(self.lacking("storage that is nothing but that"));
        }
        // What is not known at all is told before its pool is looked at.
        if !is_supported(&volume.provider_kind) {
            return Err(self.unsupported(&volume.provider_kind));
        }
        self.storage(self.pool(&volume.storage_pool_name)?, &volume.provider_kind, layer)
    }

    fn pool(&self, name: &str) -> Result<&StoragePool, PlaceError> {
        let is_it = |pool: &&StoragePool| {
            self.node.is(&pool.node_name) && pool.storage_pool_name.eq_ignore_ascii_case(name)
        };
        self.pools
            .iter()
            .find(is_it)
            .ok_or_else(|| PlaceError::NoPool { pool: name.to_owned(), node: self.node.clone() })
    }

    /// The volume of this layer in a pool, by the rules for names.
    fn storage(
        &self,
        pool: &StoragePool,
        kind: &ProviderKind,
        layer: &Layer,
    ) -> Result<Storage, PlaceError> {
        // The name is checked: it is the one that was asked for, but for its case.
        let suffix = &layer.resource_name_suffix;
        let volume = format!("{}{suffix}_{:05}", self.here.name, self.number);
        let storage = match kind {
            ProviderKind::Lvm => Storage::Lvm { group: group_of(pool)?, volume },
            ProviderKind::LvmThin => {
                let (group, pool) = thin_pool_of(pool)?;
                Storage::LvmThin { group, pool, volume }
            }
            ProviderKind::Zfs | ProviderKind::ZfsThin => {
                Storage::Zfs(format!("{}/{volume}", zpool_of(pool)?))
            }
            kind => return Err(self.unsupported(kind)),
        };
        let volumes = layer.storage.iter().flat_map(|storage| &storage.storage_volumes);
        let told = volumes
            .filter(|volume| volume.volume_number == self.number)
            .find_map(|volume| volume.device_path.as_deref());
        match told.filter(|told| !told.is_empty()) {
            Some(told) if storage.device() != Path::new(told) => {
                Err(PlaceError::OtherReplicas { storage, told: told.to_owned() })
            }
            _ => Ok(storage),
        }
    }

    fn lacking(&self, what: &'static str) -> PlaceError {
        PlaceError::Lacking { resource: self.resource.clone(), node: self.node.clone(), what }
    }

    fn bad_layer(&self, layer: &Layer) -> PlaceError {
        PlaceError::Layer { resource: self.resource.clone(), layer: layer.kind.clone() }
    }

    fn unsupported(&self, kind: &ProviderKind) -> PlaceError {
        PlaceError::Unsupported { resource: self.resource.clone(), kind: kind.clone() }
    }
}

fn is_supported(kind: &ProviderKind) -> bool {
    use ProviderKind::{Lvm, LvmThin, Zfs, ZfsThin};
    matches!(kind, Lvm | LvmThin | Zfs | ZfsThin)
}
