//! LINSTOR: a client for its controller, and where the data of a resource are on a node.
//!
//! * [`Client`]: what a controller is asked, over version 1 of its REST interface. It reads
//!   resources, storage pools and snapshots, and takes and deletes snapshots. Nothing else is
//!   changed, and only snapshots that were made here are deleted ([`OwnNames`]).
//! * [`place`]: the logical volume or data set that holds a volume on this node, and, by
//!   [`Storage::snapshot`], what holds a snapshot of it; or the nodes to go to instead.
//! * [`Controller`], [`ClientConfig`]: which controllers, with what token and certificates.
//!
//! Whatever comes from a controller is bounded before it is read, and whatever becomes a part of
//! a path is checked against LINSTOR's, LVM's and ZFS's own rules for names.
//!
//! # A snapshot of a volume, from its name to its device
//!
//! ```
//! use driftline_linstor::{Client, ClientConfig, Controller, OwnNames, place};
//! # use driftline_linstor::testing::{Cluster, Fake};
//! # let cluster = Cluster::new().node("alpha").pool("alpha", "thin", "LVM_THIN", "vg0/pool0");
//! # let cluster = cluster.resource("web", &[1024]).deploy("web", "alpha", "thin");
//! # let fake = Fake::start(cluster);
//! # let controllers = fake.url();
//! # let pause = |_: u32| true;
//! let client = Client::new(&ClientConfig::new(Controller::list(&controllers)?))?;
//! let (node, resource, volume) = ("alpha".parse()?, "web".parse()?, 0);
//!
//! // Where it is, before anything is taken: elsewhere is an error that says where.
//! let resources = client.resources(std::slice::from_ref(&resource))?;
//! let pools = client.storage_pools(std::slice::from_ref(&node))?;
//! let place = place(&node, &resource, volume, &resources, &pools)?;
//!
//! let names = OwnNames::new([0x48, 0xc3, 0xa6, 0x3f]);
//! let own = names.snapshot(1_795_380_000_123);
//! for warning in client.create_snapshots(std::slice::from_ref(&resource), &own)? {
//!     eprintln!("{warning}");
//! }
//! let taken = client.wait_successful(&resource, own.name(), pause)?;
//! assert!(taken.is_on(&node), "it was taken elsewhere alone");
//! let snapshot = place.data.snapshot(own.name())?;
//! assert_eq!(
//!     snapshot.device().to_str(),
//!     Some("/dev/vg0/web_00000_driftline-48c3a63f-20261122T204000123Z"),
//! );
//!
//! // Later, all of our own that are no more needed.
//! for old in names.own(&client.snapshots(&resource)?) {
//!     client.delete_snapshot(&resource, &old)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod address;
mod answer;
mod calls;
mod client;
mod config;
mod error;
mod model;
mod name;
mod own;
mod place;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use address::{AddressError, Controller};
pub use answer::{Level, Message};
pub use client::Client;
pub use config::{ClientConfig, Identity, Timeouts, TlsFiles, Token};
pub use error::{Attempt, LinstorError};
pub use model::{
    ControllerVersion, DrbdResource, DrbdVolume, DrbdVolumeDefinition, Layer, Progress, Props,
    ProviderKind, Resource, ResourceDefinition, ResourceState, Snapshot, SnapshotNode,
    SnapshotVolume, StoragePool, StorageResource, StorageVolume, Volume, VolumeDefinition,
    VolumeState,
};
pub use name::{NameError, NodeName, ResourceName, SnapshotName};
pub use own::{OwnNames, OwnSnapshot};
pub use place::{DrbdPlace, Place, PlaceError, Storage, StoredSnapshot, place};
