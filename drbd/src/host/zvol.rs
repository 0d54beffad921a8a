//! Volumes of ZFS as backing devices, and their snapshots.

use super::{
    HostError, Taken,
    command::{PATIENCE, run},
};

/// The property of a snapshot at which the bitmap was cleared: the UUID.
const MARK: &str = "driftline:rotated";

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

    pub(super) fn mark(&self, name: &str, uuid: u64) -> Result<(), HostError> {
        run(&["zfs", "set", &format!("{MARK}={uuid:016x}"), &self.of(name)], PATIENCE).map(drop)
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

    fn of(&self, name: &str) -> String {
        format!("{}@{name}", self.0)
    }
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
