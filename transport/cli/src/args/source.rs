//! What is said of sources, and of what ZFS receives, by their kind.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

/// What is said of a `zfs:` source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Zfs {
    /// Replicate this snapshot of a zfs: source, and take none.
    #[arg(long, value_name = "NAME", conflicts_with = "latest")]
    pub(crate) snapshot: Option<String>,
    /// Replicate the newest snapshot of a zfs: source, and take none.
    #[arg(long)]
    pub(crate) latest: bool,
    /// How the names of our snapshots and bookmarks begin [default: driftline].
    #[arg(long, value_name = "NAME")]
    pub(crate) prefix: Option<String>,
    /// How many of our snapshots to keep after they arrived, besides the newest [default: 0].
    #[arg(long, value_name = "COUNT")]
    pub(crate) keep: Option<usize>,
    /// Compare what is sent with the snapshot's device: what changed, or all of the volume. On
    /// pools that old software wrote, a stream can lack data. Needs `zfs set snapdev=visible` on
    /// the volume.
    #[arg(long, value_name = "WHAT")]
    pub(crate) read_back: Option<ReadBack>,
    /// From ZFS to ZFS: send the data as it is on disk, which keeps encrypted data encrypted.
    /// Neither side needs a loaded key.
    #[arg(long)]
    pub(crate) raw: bool,
    /// From ZFS to ZFS: also send the data set's properties, or all of the tree below it in one
    /// stream, with its properties, snapshots and clones.
    #[arg(long, value_name = "WHAT")]
    pub(crate) with: Option<With>,
}

/// What goes with a data set from ZFS to ZFS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum With {
    /// Its properties (`zfs send -p`).
    Properties,
    /// All below it (`zfs send -R`). A data set that a cut-off stream left behind is brought up by
    /// a stream of its own.
    Tree,
}

/// How much of a volume is compared with its snapshot's device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReadBack {
    /// What the stream says has changed.
    Changed,
    /// Every byte, by the root over it.
    All,
}

/// What is said of a `drbd:` source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drbd {
    /// What to do with the bitmap of a drbd: source: start it anew at each snapshot, or leave it
    /// alone and compare everything [default: rotate if no peer needs the bitmap].
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<DrbdMode>,
    /// For a drbd: source on a thick logical volume, the space for what is overwritten while its
    /// snapshot exists: a share of the volume, or bytes with K, M, G or T [default: 20%].
    #[arg(long, value_name = "SIZE")]
    pub(crate) cow_size: Option<String>,
    /// Suspend the I/O of a drbd: source for at most this many seconds, 1 to 60 [default: 10].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) freeze_max: Option<u64>,
    /// For a drbd: source on thin LVM or ZFS that is rotated: keep the snapshot that arrived last,
    /// send what differs from it in the pool, and report what DRBD missed.
    #[arg(long)]
    pub(crate) cross_check: bool,
    /// Vouch that the bitmap of a drbdmeta: source was cleared right after the snapshot, while I/O
    /// was suspended (new-current-uuid --clear-bitmap). Only then can the next increment start
    /// from it.
    #[arg(long)]
    pub(crate) rotated: bool,
}

/// What is done about the bitmap of a volume of DRBD.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DrbdMode {
    /// It starts anew at each snapshot: an increment reads what changed since.
    Rotate,
    /// It is left alone: everything is compared.
    Cumulative,
}

/// How LINSTOR is spoken to, of a `linstor:` source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Linstor {
    /// The LINSTOR controllers for a linstor: source, separated by commas; Driftline asks the
    /// first that answers. As in linstor://host, linstor+ssl://host or https://host:port [default:
    /// localhost].
    #[arg(long = "linstor-controllers", value_name = "LIST", env = "LS_CONTROLLERS")]
    pub(crate) controllers: Option<String>,
    /// The file with the token that the controller wants. The token never crosses a network in
    /// plain text.
    #[arg(long = "linstor-token-file", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The certificates of the authority that signs those of the controllers [default: the
    /// system's].
    #[arg(long = "linstor-ca", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate, for controllers that want one.
    #[arg(long = "linstor-certificate", value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// The key of our certificate.
    #[arg(id = "linstor_key", long = "linstor-key", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// LINSTOR's name of this node [default: this machine's name].
    #[arg(long = "linstor-node", value_name = "NAME")]
    pub(crate) node: Option<String>,
}

/// What a `zfs:` target does with the properties in a stream.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Receive {
    /// For a zfs: target, leave this property of the stream out (`zfs receive -x`). Can be
    /// repeated. Left out by default: mountpoint, canmount (a first copy of a file system gets
    /// noauto), quotas, reservations, limits and shares.
    #[arg(long = "exclude-property", value_name = "NAME")]
    #[serde(rename = "exclude_properties")]
    pub(crate) exclude: Vec<String>,
    /// For a zfs: target, set this property (`zfs receive -o`), as in readonly=on. Can be
    /// repeated.
    #[arg(long = "set-property", value_name = "NAME=VALUE", value_parser = property)]
    #[serde(rename = "set_properties")]
    pub(crate) set: Vec<Property>,
    /// For a zfs: target, take over this property of the stream, which is left out by default. Can
    /// be repeated.
    #[arg(long = "take-property", value_name = "NAME")]
    #[serde(rename = "take_properties")]
    pub(crate) take: Vec<String>,
}

/// A property and its value.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Property(pub(crate) String, pub(crate) String);

impl TryFrom<String> for Property {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        property(&text)
    }
}

fn property(text: &str) -> Result<Property, String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no NAME=VALUE"))?;
    Ok(Property(name.to_owned(), value.to_owned()))
}

impl Linstor {
    /// Takes from here what is not said.
    pub(crate) fn fill_from(&mut self, other: Self) {
        let Self { controllers, token_file, ca, certificate, key, node } = other;
        self.controllers = self.controllers.take().or(controllers);
        self.token_file = self.token_file.take().or(token_file);
        self.ca = self.ca.take().or(ca);
        // They belong together.
        if self.certificate.is_none() && self.key.is_none() {
            (self.certificate, self.key) = (certificate, key);
        }
        self.node = self.node.take().or(node);
    }
}

impl Receive {
    /// The properties that are set.
    pub(crate) fn overrides(&self) -> Vec<(String, String)> {
        self.set.iter().map(|Property(name, value)| (name.clone(), value.clone())).collect()
    }
}
