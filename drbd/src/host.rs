//! The handle on the DRBD of this machine and the storage beneath it, all of it by commands:
//! `drbdsetup`, `drbdadm`, LVM's and `zfs`.
//!
//! Nothing here forces anything, and only snapshots with a name of our own are removed.

mod command;
mod error;
pub(crate) mod group;
mod lvm;
mod text;
mod thin;
mod zvol;

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub(crate) use command::text as command_text;
use command::{PATIENCE, run};
pub use error::HostError;
pub use lvm::LogicalVolume;
pub use text::{Link, MetaDisk};
pub use zvol::Zvol;

use crate::Layout;

/// Where DRBD tells its version, and 8.4 its state.
const PROC: &str = "/proc/drbd";

/// How long a snapshot's device may take to appear, and to be closed by whoever looks at it.
const DEVICE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often that is looked at.
const DEVICE_POLL: Duration = Duration::from_millis(50);

/// Entries of `/dev` that are looked at for names of a device.
const NAMES_MAX: usize = 100_000;

/// A volume of a resource, as DRBD tells of it now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The resource.
    pub resource: String,
    /// The volume's number in it.
    pub volume: u32,
    /// The minor of its device.
    pub minor: u32,
    /// The minors of all devices of the resource: DRBD 8.4 suspends them together.
    pub minors: Vec<u32>,
    /// Whether it is DRBD 8.4, and not 9.
    pub is_84: bool,
    /// The device with the data.
    pub backing: PathBuf,
    /// Where the metadata is.
    pub meta: MetaDisk,
    /// `Primary` or `Secondary`.
    pub role: String,
    /// `UpToDate`, `Inconsistent`, …
    pub disk: String,
    /// Whether its I/O is suspended.
    pub suspended: bool,
    /// The connections to its peers.
    pub links: Vec<Link>,
    /// The other hosts of its configuration that have an address elsewhere; `None` if it has no
    /// configuration.
    pub peers: Option<Vec<String>>,
}

impl Found {
    /// Asks DRBD.
    ///
    /// # Errors
    ///
    /// Where there is no DRBD, resource or volume, or the volume has no disk here.
    pub fn look(resource: &str, volume: u32) -> Result<Self, HostError> {
        let name = format!("{resource}/{volume}");
        let is_84 = is_84()?;
        let args = ["drbdsetup", "show", resource];
        let shown = run(&args, PATIENCE).map_err(|error| match error {
            HostError::Failed { said, .. } if said.contains("No such") => {
                HostError::NoVolume { name: name.clone() }
            }
            other => other,
        })?;
        let Some(volumes) = text::parse_show(&shown, resource) else {
            // Of a resource that is not there it says nothing.
            if shown.trim().is_empty() {
                return Err(HostError::NoVolume { name });
            }
            return Err(HostError::not_understood(&command_text(&args), &shown));
        };
        let minors = volumes.iter().map(|volume| volume.minor).collect();
        let this = volumes.into_iter().find(|found| found.number == volume);
        let this = this.ok_or_else(|| HostError::NoVolume { name: name.clone() })?;
        let (backing, meta) = this.disk.ok_or(HostError::NoDisk { name })?;
        let args = ["drbdsetup", "events2", "--now", "--statistics", resource];
        let told = run(&args, PATIENCE)?;
        let state = text::parse_events(&told, volume);
        let state = state.ok_or_else(|| HostError::not_understood(&command_text(&args), &told))?;
        let text::State { role, suspended, disk, links } = state;
        let (resource, minor) = (resource.to_owned(), this.minor);
        let peers = configured_peers(&resource);
        Ok(Self {
            resource,
            volume,
            minor,
            minors,
            is_84,
            backing,
            meta,
            role,
            disk,
            suspended,
            links,
            peers,
        })
    }

    /// How `drbd:` names it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.resource, self.volume)
    }

    /// Its device.
    pub fn device(&self) -> String {
        format!("/dev/drbd{}", self.minor)
    }
}

/// Whether the DRBD of this machine is 8.4, and not 9.
pub(crate) fn is_84() -> Result<bool, HostError> {
    let text = fs::read_to_string(PROC).map_err(|_| HostError::NoDrbd)?;
    let version = text::parse_version(&text);
    Ok(version.ok_or_else(|| HostError::not_understood(PROC, &text))? == 8)
}

/// The hosts that the configuration names besides this one, but for those at an address of this
/// machine alone: no machine can be reached there.
fn configured_peers(resource: &str) -> Option<Vec<String>> {
    let text = run(&["drbdadm", "dump", resource], PATIENCE).ok()?;
    let hosts = text::parse_dump(&text, resource)?;
    let this = this_host();
    let is_peer = |(name, nowhere): &(String, bool)| !nowhere && *name != this;
    Some(hosts.into_iter().filter(is_peer).map(|(name, _)| name).collect())
}

/// What this machine is called.
pub(crate) fn this_host() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

/// Space for what is overwritten while a snapshot of a thick logical volume exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CowSize {
    /// So many bytes.
    Bytes(u64),
    /// This share of the volume.
    Percent(u8),
}

impl CowSize {
    /// What is taken if nothing is said.
    pub const DEFAULT: Self = Self::Percent(20);

    fn of_lvcreate(self) -> [String; 2] {
        match self {
            Self::Bytes(bytes) => ["--size".to_owned(), format!("{bytes}b")],
            Self::Percent(percent) => ["--extents".to_owned(), format!("{percent}%ORIGIN")],
        }
    }
}

impl std::str::FromStr for CowSize {
    type Err = String;

    /// Reads `20%`, or a number of bytes with K, M, G or T.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no size: write 20% of the volume, or as in 512M or 10G");
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        let shift = match text.chars().last() {
            Some('K') => 10,
            Some('M') => 20,
            Some('G') => 30,
            Some('T') => 40,
            _ => 0,
        };
        let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.filter(|bytes| *bytes > 0).map(Self::Bytes).ok_or_else(wrong)
    }
}

/// A snapshot of a backing device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) name: String,
    /// The current UUID in it, if the bitmap was cleared at its instant.
    pub(crate) mark: Option<u64>,
    /// Whether it has run out of space, and holds nothing any more.
    pub(crate) spoilt: bool,
}

/// What tells a snapshot from all others in its pool, and that from all others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) now: String,
    /// As it was remembered when it was taken.
    pub(crate) then: Option<String>,
}

impl Identity {
    /// Whether it is the snapshot that was taken then.
    pub(crate) fn is_same(&self) -> bool {
        self.then.as_ref() == Some(&self.now)
    }
}

/// What a backing device is cut from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    /// A logical volume, thin or thick.
    Lvm(LogicalVolume),
    /// A volume of ZFS.
    Zvol(Zvol),
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm(LogicalVolume { group, name, .. }) => write!(f, "{group}/{name}"),
            Self::Zvol(Zvol(name)) => f.write_str(name),
        }
    }
}

impl Store {
    /// The store of this device.
    ///
    /// # Errors
    ///
    /// Where no snapshot of it can be taken, and why.
    pub fn find(device: &Path) -> Result<Self, HostError> {
        let refuse = |why: &str| HostError::Store {
            device: device.display().to_string(),
            why: why.to_owned(),
        };
        let metadata = fs::metadata(device).map_err(|error| refuse(&error.to_string()))?;
        if !metadata.file_type().is_block_device() {
            return Err(refuse("it is no block device"));
        }
        let names = names_of(metadata.rdev());
        if let Some(zvol) = names.iter().find_map(|name| name.strip_prefix("/dev/zvol/")) {
            let zvol = Zvol(zvol.replace('+', " "));
            zvol.check()?;
            return Ok(Self::Zvol(zvol));
        }
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        let uuid = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid"));
        if uuid.is_ok_and(|uuid| uuid.starts_with("LVM-")) {
            return LogicalVolume::find(device).map(Self::Lvm);
        }
        Err(refuse("it is neither a logical volume nor a volume of ZFS"))
    }

    /// Whether LVM takes its snapshots.
    pub(crate) const fn is_lvm(&self) -> bool {
        matches!(self, Self::Lvm(_))
    }

    pub(crate) fn taken(&self) -> Result<Vec<Taken>, HostError> {
        match self {
            Self::Lvm(volume) => volume.taken(),
            Self::Zvol(volume) => volume.taken(),
        }
    }

    /// Whether its snapshots share what they have in common, so that what differs is known.
    pub(crate) const fn shares(&self) -> bool {
        match self {
            Self::Lvm(volume) => volume.thin,
            Self::Zvol(_) => true,
        }
    }

    /// Notes the UUID in a snapshot, and with `identity` what it is.
    pub(crate) fn mark(
        &self,
        name: &str,
        uuid: u64,
        identity: Option<&str>,
    ) -> Result<(), HostError> {
        match self {
            Self::Lvm(volume) => volume.mark(name, uuid, identity),
            Self::Zvol(volume) => volume.mark(name, uuid, identity),
        }
    }

    pub(crate) fn identity(&self, name: &str) -> Result<Identity, HostError> {
        match self {
            Self::Lvm(volume) => volume.identity(name),
            Self::Zvol(volume) => volume.identity(name),
        }
    }

    /// Removes a snapshot; udev may still be looking at its device, which is waited for.
    pub(crate) fn remove(&self, name: &str) -> Result<(), HostError> {
        let started = Instant::now();
        loop {
            let removed = match self {
                Self::Lvm(volume) => volume.remove(name),
                Self::Zvol(volume) => volume.remove(name),
            };
            let is_busy = |said: &str| said.contains("busy") || said.contains("in use");
            match removed {
                Err(HostError::Failed { said, .. })
                    if is_busy(&said) && started.elapsed() < DEVICE_WAIT_MAX =>
                {
                    thread::sleep(DEVICE_POLL);
                }
                other => return other,
            }
        }
    }

    /// The device of a snapshot, once it is there.
    pub(crate) fn device(&self, name: &str) -> Result<PathBuf, HostError> {
        let device = match self {
            Self::Lvm(volume) => volume.device(name),
            Self::Zvol(volume) => volume.device(name),
        };
        let started = Instant::now();
        while !fs::metadata(&device).is_ok_and(|data| data.file_type().is_block_device()) {
            if started.elapsed() > DEVICE_WAIT_MAX {
                let why = "udev has not made it".to_owned();
                return Err(HostError::Store { device, why });
            }
            thread::sleep(DEVICE_POLL);
        }
        Ok(device.into())
    }
}

/// What the name of the metadata's snapshot has after that of the data's.
pub(crate) const META_END: &str = "-md";

/// The stores of a volume: its data's, and its metadata's if that is elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stores {
    /// Where the data is.
    pub data: Store,
    /// Where the metadata is, and how it lies there.
    pub meta: Option<(Store, Layout)>,
}

impl Stores {
    /// Those of this volume.
    ///
    /// # Errors
    ///
    /// Where no snapshot can be taken, and why.
    pub fn find(found: &Found) -> Result<Self, HostError> {
        let data = Store::find(&found.backing)?;
        let meta = match &found.meta {
            MetaDisk::Internal => None,
            MetaDisk::External(path) => Some((Store::find(path)?, Layout::External)),
            MetaDisk::Indexed(path, index) => Some((Store::find(path)?, Layout::Indexed(*index))),
        };
        Ok(Self { data, meta })
    }

    /// Whether one command takes snapshots of all of it at one instant.
    pub(crate) fn is_atomic(&self) -> bool {
        match (&self.data, &self.meta) {
            (_, None) => true,
            (Store::Zvol(data), Some((Store::Zvol(meta), _))) => data.has_pool_of(meta),
            _ => false,
        }
    }

    /// A store whose snapshots are copies of what is overwritten, if there is one.
    pub(crate) fn thick(&self) -> Option<&Store> {
        self.all().map(|(store, _)| store).find(|store| !store.shares())
    }

    pub(crate) fn has_lvm(&self) -> bool {
        self.all().any(|(store, _)| store.is_lvm())
    }

    fn all(&self) -> impl Iterator<Item = (&Store, &'static str)> {
        let meta = self.meta.iter().map(|(store, _)| (store, META_END));
        std::iter::once((&self.data, "")).chain(meta)
    }

    /// Takes a snapshot of data and metadata, one after the other if they are of different
    /// stores.
    pub(crate) fn take(&self, name: &str, cow: CowSize) -> Result<(), HostError> {
        let named: Vec<(&Store, String)> =
            self.all().map(|(store, end)| (store, format!("{name}{end}"))).collect();
        let zvols: Vec<(&Zvol, &str)> = named
            .iter()
            .filter_map(|(store, name)| match store {
                Store::Zvol(volume) => Some((volume, name.as_str())),
                Store::Lvm(_) => None,
            })
            .collect();
        // Those of two pools cannot be taken by one command.
        let of_one = zvols.windows(2).all(|pair| pair[0].0.has_pool_of(pair[1].0));
        for group in zvols.chunks(if of_one { 2 } else { 1 }) {
            Zvol::take(group)?;
        }
        for (store, name) in &named {
            if let Store::Lvm(volume) = store {
                volume.take(name, cow)?;
            }
        }
        Ok(())
    }

    /// Removes what there is of a snapshot.
    pub(crate) fn remove(&self, name: &str) -> Result<(), HostError> {
        for (store, end) in self.all() {
            let name = format!("{name}{end}");
            if store.taken()?.iter().any(|taken| taken.name == name) {
                store.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The snapshots whose names begin so, oldest first, without the ends of metadata's. One
    /// whose data or metadata is missing, or holds nothing any more, is spoilt.
    pub(crate) fn ours(&self, prefix: &str) -> Result<Vec<Taken>, HostError> {
        let mut data = self.data.taken()?;
        data.retain(|taken| taken.name.starts_with(prefix));
        if let Some((store, _)) = &self.meta {
            let meta = store.taken()?;
            let meta = meta.iter().filter(|taken| taken.name.starts_with(prefix));
            let meta: Vec<(&str, bool)> = meta
                .filter_map(|taken| Some((taken.name.strip_suffix(META_END)?, taken.spoilt)))
                .collect();
            for taken in &mut data {
                taken.spoilt |= !meta.iter().any(|(name, spoilt)| *name == taken.name && !spoilt);
            }
            let alone = meta.iter().filter(|row| data.iter().all(|taken| taken.name != row.0));
            let alone =
                alone.map(|(name, _)| Taken { name: (*name).to_owned(), mark: None, spoilt: true });
            let alone: Vec<Taken> = alone.collect();
            data.extend(alone);
        }
        data.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(data)
    }

    /// Whether a snapshot has run out of space.
    pub(crate) fn is_spoilt(&self, name: &str) -> Result<bool, HostError> {
        let ours = self.ours(name)?;
        Ok(!ours.iter().any(|taken| taken.name == name && !taken.spoilt))
    }
}

/// That LVM reads none of the devices that are suspended with this one.
pub(crate) fn check_filter(found: &Found) -> Result<(), HostError> {
    let mut names = BTreeSet::new();
    for minor in &found.minors {
        let device = format!("/dev/drbd{minor}");
        if let Ok(metadata) = fs::metadata(&device) {
            names.extend(names_of(metadata.rdev()));
        }
        names.insert(device);
    }
    lvm::check_filter(&names)
}

/// What is done to a device while it is suspended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Minor(pub(crate) u32);

impl Minor {
    pub(crate) fn suspend(self, within: Duration) -> Result<(), HostError> {
        run(&["drbdsetup", "suspend-io", &self.0.to_string()], within).map(drop)
    }

    /// How many requests to the backing device are on their way. DRBD 9 has waited for them when
    /// it says that it is suspended.
    pub(crate) fn in_flight(self) -> Result<u64, HostError> {
        let text = fs::read_to_string(PROC).map_err(|_| HostError::NoDrbd)?;
        match text::parse_version(&text) {
            Some(8) => text::parse_in_flight(&text, self.0)
                .ok_or_else(|| HostError::not_understood(PROC, &text)),
            _ => Ok(0),
        }
    }

    pub(crate) fn clear(self, within: Duration) -> Result<(), HostError> {
        run(&["drbdsetup", "new-current-uuid", &self.0.to_string(), "--clear-bitmap"], within)
            .map(drop)
    }

    /// The current UUID, of DRBD 8.4.
    pub(crate) fn current_uuid(self) -> Result<u64, HostError> {
        let minor = self.0.to_string();
        let args = ["drbdsetup", "get-gi", &minor];
        let told = run(&args, PATIENCE)?;
        let uuid = text::parse_current_uuid(&told);
        uuid.ok_or_else(|| HostError::not_understood(&command_text(&args), &told))
    }

    /// Gives the volume a new current UUID, and clears nothing.
    pub(crate) fn rename(self) -> Result<(), HostError> {
        run(&["drbdsetup", "new-current-uuid", &self.0.to_string()], PATIENCE).map(drop)
    }

    /// Whether its I/O is suspended now.
    pub(crate) fn is_suspended(self) -> Result<bool, HostError> {
        let text = fs::read_to_string(PROC).map_err(|_| HostError::NoDrbd)?;
        if text::parse_version(&text) == Some(8) {
            return text::parse_suspended_84(&text, self.0)
                .ok_or_else(|| HostError::not_understood(PROC, &text));
        }
        let args = ["drbdsetup", "events2", "--now"];
        let told = run(&args, PATIENCE)?;
        text::parse_suspended(&told, self.0)
            .ok_or_else(|| HostError::not_understood(&command_text(&args), &told))
    }

    pub(crate) fn resume(self, within: Duration) -> Result<(), HostError> {
        run(&["drbdsetup", "resume-io", &self.0.to_string()], within).map(drop)
    }
}

/// Runs a command and returns what it printed.
pub(crate) fn execute(args: &[String]) -> Result<String, HostError> {
    run(&args.iter().map(String::as_str).collect::<Vec<_>>(), PATIENCE)
}

/// Every name below `/dev` of the device with this number, as LVM would find it.
fn names_of(rdev: u64) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/dev")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > NAMES_MAX {
                return names;
            }
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
                continue;
            }
            let is_it =
                |data: &fs::Metadata| data.file_type().is_block_device() && data.rdev() == rdev;
            if fs::metadata(&path).is_ok_and(|data| is_it(&data)) {
                names.insert(path.display().to_string());
            }
        }
    }
    names
}

/// How the kernel packs a device's numbers for `stat`.
const fn major(rdev: u64) -> u64 {
    (rdev >> 8) & 0xfff | (rdev >> 32) & 0xffff_f000
}

const fn minor(rdev: u64) -> u64 {
    rdev & 0xff | (rdev >> 12) & 0xffff_ff00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("20%".parse(), Ok(CowSize::Percent(20)));
        assert_eq!("512M".parse(), Ok(CowSize::Bytes(512 << 20)));
        assert_eq!("7".parse(), Ok(CowSize::Bytes(7)));
        for bad in [
            "",
            "%",
            "0%",
            "101%",
            "M",
            "0",
            "-1G",
            "1Q",
            "99999999999999999999",
            "9999999999T",
            "é",
        ] {
            assert!(bad.parse::<CowSize>().is_err(), "{bad}");
        }
        assert_eq!(CowSize::Bytes(1024).of_lvcreate(), ["--size", "1024b"]);
        assert_eq!(CowSize::DEFAULT.of_lvcreate(), ["--extents", "20%ORIGIN"]);
    }

    #[test]
    fn device_numbers_are_unpacked() {
        assert_eq!((major(0x9301), minor(0x9301)), (147, 1));
        assert_eq!((major(0xfd_03), minor(0x1000_fd03)), (253, 0x1_0003));
    }
}
