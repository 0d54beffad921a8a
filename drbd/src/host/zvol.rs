//! Volumes of ZFS as backing devices, and their snapshots.

use super::{
    HostError, Identity, Taken,
    command::{PATIENCE, run, text},
};

/// The property of a snapshot at which the bitmap was cleared: the UUID.
const MARK: &str = "driftline:rotated";

/// The property of a snapshot that is remembered: its identity.
const IDENTITY: &str = "driftline:identity";

/// A volume of ZFS, by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zvol(pub(super) String);

impl Zvol {
    /// That the devices of its snapshots are there to be read.
    pub(super) fn check(&self) -> Result<(), HostError> {
        let shows = run(&["zfs", "get", "-H", "-o", "value", "snapdev", &self.0], PATIENCE)?;
        if shows.trim() == "visible" {
            return Ok(());
        }
        let why = format!("its snapshots have no devices: `zfs set snapdev=visible {}`", self.0);
        Err(HostError::Store { device: self.0.clone(), why })
    }

    /// Takes snapshots of all of these at one instant.
    pub(super) fn take(volumes: &[(&Self, &str)]) -> Result<(), HostError> {
        let names: Vec<String> = volumes.iter().map(|(volume, name)| volume.of(name)).collect();
        let args: Vec<&str> =
            ["zfs", "snapshot"].into_iter().chain(names.iter().map(String::as_str)).collect();
        run(&args, PATIENCE).map(drop)
    }

    /// Whether snapshots of both can be taken at one instant.
    pub(super) fn has_pool_of(&self, other: &Self) -> bool {
        self.0.split('/').next() == other.0.split('/').next()
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), HostError> {
        run(&["zfs", "destroy", &self.of(name)], PATIENCE).map(drop)
    }

    pub(super) fn mark(
        &self,
        name: &str,
        uuid: u64,
        identity: Option<&str>,
    ) -> Result<(), HostError> {
        let (name, mark) = (self.of(name), format!("{MARK}={uuid:016x}"));
        let identity = identity.map(|identity| format!("{IDENTITY}={identity}"));
        let mut args = vec!["zfs", "set", &mark];
        args.extend(identity.as_deref());
        args.push(&name);
        run(&args, PATIENCE).map(drop)
    }

    /// By its guid.
    pub(super) fn identity(&self, name: &str) -> Result<Identity, HostError> {
        let (name, properties) = (self.of(name), format!("guid,{IDENTITY}"));
        let args = ["zfs", "get", "-H", "-p", "-o", "value", &properties, &name];
        let told = run(&args, PATIENCE)?;
        parse_identity(&told).ok_or_else(|| HostError::not_understood(&text(&args), &told))
    }

    /// All snapshots of it.
    pub(super) fn taken(&self) -> Result<Vec<Taken>, HostError> {
        let columns = format!("name,{MARK}");
        let args = ["zfs", "list", "-H", "-d", "1", "-t", "snapshot", "-o", &columns, &self.0];
        Ok(parse_snapshots(&run(&args, PATIENCE)?))
    }

    pub(super) fn device(&self, name: &str) -> String {
        // udev writes + for a space.
        format!("/dev/zvol/{}", self.of(name)).replace(' ', "+")
    }

    /// How ZFS calls a snapshot of it.
    pub(crate) fn of(&self, name: &str) -> String {
        format!("{}@{name}", self.0)
    }
}

fn parse_identity(told: &str) -> Option<Identity> {
    let mut lines = told.lines();
    let (now, then) = (lines.next()?, lines.next()?);
    let guid = now.parse::<u64>().ok()?;
    Some(Identity { now: guid.to_string(), then: (then != "-").then(|| then.to_owned()) })
}

fn parse_snapshots(text: &str) -> Vec<Taken> {
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    rows.filter_map(|(name, mark)| {
        let (_, name) = name.split_once('@')?;
        let mark = u64::from_str_radix(mark, 16).ok();
        Some(Taken { name: name.to_owned(), mark, spoilt: false })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_snapshot_was_and_is_are_found_in_what_zfs_prints() {
        let identity = |told: &str| parse_identity(told).map(|identity| identity.is_same());
        assert_eq!(identity("1234\n1234\n"), Some(true));
        assert_eq!(identity("1234\n1235\n"), Some(false));
        assert_eq!(identity("1234\n-\n"), Some(false));
        assert_eq!((identity("-\n-\n"), identity("1234\n")), (None, None));
    }

    #[test]
    fn snapshots_are_found_in_what_zfs_prints() {
        let text = "tank/a b@x\t-\ntank/a b@driftline-1-2\t00000000000000ab\n";
        let row = |name: &str, mark| Taken { name: name.into(), mark, spoilt: false };
        assert_eq!(parse_snapshots(text), [row("x", None), row("driftline-1-2", Some(0xab))]);
        // What OpenZFS 2.3.9 says: `tests/recorded/README.md`.
        let text = include_str!("../../tests/recorded/zfs-list");
        assert_eq!(parse_snapshots(text), [row("driftline-x-1", Some(0xab)), row("s", None)]);
        let volume = Zvol("tank/a b".to_owned());
        assert_eq!(volume.device("x"), "/dev/zvol/tank/a+b@x");
        assert!(
            volume.has_pool_of(&Zvol("tank".into())) && !volume.has_pool_of(&Zvol("tan/a".into()))
        );
    }
}
