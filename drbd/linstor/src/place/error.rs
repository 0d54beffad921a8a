//! Why a volume cannot be used here, in words, and where it can.

use driftline_extent::{Explained, Reason};

use super::Storage;
use crate::{NodeName, ProviderKind, ResourceName};

/// Why it cannot be told where a volume is, or not be used there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// There is no such resource anywhere.
    #[error("LINSTOR has no resource {0} on any node: see linstor resource list")]
    NoResource(ResourceName),
    /// The resource has no such volume.
    #[error("the resource {resource} has no volume {volume}: see linstor volume list")]
    NoVolume {
        /// The resource.
        resource: ResourceName,
        /// The volume.
        volume: u32,
    },
    /// The data are not on this node.
    #[error("the resource {resource} {} on the node {node}: {}",
        if *diskless { "is diskless" } else { "is not" }, run_on(satellites))]
    NotHere {
        /// The resource.
        resource: ResourceName,
        /// This node.
        node: NodeName,
        /// Whether the resource is here at all.
        diskless: bool,
        /// The nodes that have the data.
        satellites: Vec<String>,
    },
    /// The data are here, but not to be relied upon.
    #[error(
        "the resource {resource} on the node {node} is marked as {flag} by LINSTOR: {}",
        run_on(satellites)
    )]
    Unready {
        /// The resource.
        resource: ResourceName,
        /// This node.
        node: NodeName,
        /// The mark.
        flag: String,
        /// Other nodes that have the data.
        satellites: Vec<String>,
    },
    /// Something that is not known stands between the data and what they are stored on.
    #[error(
        "the resource {resource} has a layer of {layer}: only DRBD on storage, and storage alone, \
         can be replicated"
    )]
    Layer {
        /// The resource.
        resource: ResourceName,
        /// The layer.
        layer: String,
    },
    /// The storage is of a kind that is not known.
    #[error(
        "the resource {resource} is stored on {kind}: only LVM, LVM_THIN, ZFS and ZFS_THIN can be \
         replicated"
    )]
    Unsupported {
        /// The resource.
        resource: ResourceName,
        /// The kind.
        kind: ProviderKind,
    },
    /// LINSTOR cannot take a snapshot there.
    #[error(
        "LINSTOR takes no snapshots of {group}/{volume}, which is no thin volume: use a storage \
         pool of LVM_THIN or ZFS"
    )]
    NoSnapshots {
        /// Volume group.
        group: String,
        /// Logical volume.
        volume: String,
    },
    /// The controller tells no such pool.
    #[error("LINSTOR has no storage pool {pool} on the node {node}: see linstor storage-pool list")]
    NoPool {
        /// The pool.
        pool: String,
        /// This node.
        node: NodeName,
    },
    /// What the controller tells makes no name.
    #[error(
        "what LINSTOR tells of the storage pool {pool} names no {kind}: {what} is {value:?}; see \
         linstor storage-pool list-properties"
    )]
    BadPool {
        /// The pool.
        pool: String,
        /// What it should be.
        kind: ProviderKind,
        /// What is wrong.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// What the controller tells of the resource makes no sense.
    #[error("what LINSTOR tells of the resource {resource} on the node {node} lacks {what}")]
    Lacking {
        /// The resource.
        resource: ResourceName,
        /// This node.
        node: NodeName,
        /// What is not there.
        what: &'static str,
    },
    /// The device has another name than it should.
    #[error(
        "LINSTOR says that {} is {told}, by its own rules it would be {}: neither is used",
        storage, storage.device().display()
    )]
    OtherReplicas {
        /// What follows from the names.
        storage: Storage,
        /// The device that the controller tells.
        told: String,
    },
}

fn run_on(satellites: &[String]) -> String {
    match satellites {
        [] => "no node has its data".to_owned(),
        [one] => format!("run driftline on the node {one}"),
        several => format!("run driftline on one of the nodes {}", several.join(", ")),
    }
}

impl Explained for PlaceError {
    fn reason(&self) -> Reason {
        match self {
            Self::Layer { .. } | Self::Unsupported { .. } | Self::NoSnapshots { .. } => {
                Reason::Unsupported
            }
            _ => Reason::Failed,
        }
    }
}
