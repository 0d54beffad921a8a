//! Disks that lose power: whatever was not synced is kept, lost or torn, each operation on its own.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use driftline_extent::Extent;
use driftline_target::{Disk, Disks, Replica, TargetError};

#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

fn apply(image: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, bytes) => {
            let end = *offset as usize + bytes.len();
            image.resize(image.len().max(end), 0);
            image[*offset as usize..end].copy_from_slice(bytes);
        }
        Operation::SetLen(len) => image.resize(*len as usize, 0),
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Operation>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    disks: BTreeMap<&'static str, State>,
    operations: u64,
    stop: Option<u64>,
    /// What of the volume cannot be read until it is written again.
    bad: Option<Range<u64>>,
}

/// The disks of one replica.
#[derive(Debug, Default)]
pub(crate) struct Power(Arc<Mutex<Inner>>);

impl Power {
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    pub(crate) fn disks(&self) -> Disks<PowerDisk> {
        let disk = |name| {
            self.0.lock().unwrap().disks.entry(name).or_default();
            PowerDisk { power: Self(self.0.clone()), name }
        };
        Disks {
            volume: disk("volume"),
            state: disk("state"),
            journal: disk("journal"),
            ids: disk("ids"),
            overlay: disk("overlay"),
            repair: disk("repair"),
        }
    }

    /// Writes, cuts and syncs so far.
    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// Power is lost after so many more of them.
    pub(crate) fn stop_after(&self, count: u64) {
        let mut inner = self.0.lock().unwrap();
        inner.stop = Some(inner.operations + count);
    }

    /// Power is back. What was not synced is drawn from `seed`.
    pub(crate) fn crash(&self, seed: u64) {
        let mut inner = self.0.lock().unwrap();
        inner.stop = None;
        let mut random = seed;
        for state in inner.disks.values_mut() {
            for operation in std::mem::take(&mut state.unsynced) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match ((random >> 33) % 3, operation) {
                    (0, _) => {}
                    (1, Operation::Write(offset, mut bytes)) => {
                        bytes.truncate(bytes.len() / 2);
                        apply(&mut state.durable, &Operation::Write(offset, bytes));
                    }
                    (_, operation) => apply(&mut state.durable, &operation),
                }
            }
            state.cache = state.durable.clone();
        }
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.0.lock().unwrap().disks[name].cache.clone()
    }

    /// Somebody else changes what is stored.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.0.lock().unwrap();
        let state = inner.disks.get_mut(name).unwrap();
        change(&mut state.durable);
        state.cache = state.durable.clone();
    }

    /// This part of the volume cannot be read until all of it is written again.
    pub(crate) fn spoil(&self, bytes: Range<u64>) {
        self.0.lock().unwrap().bad = Some(bytes);
    }
}

#[derive(Debug)]
pub(crate) struct PowerDisk {
    power: Power,
    name: &'static str,
}

impl PowerDisk {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.power.0.lock().unwrap();
        if inner.stop.is_some_and(|stop| inner.operations >= stop) {
            return Err(io::Error::other("there is no power"));
        }
        look(&mut inner)
    }

    fn operate(&self, operation: Operation) -> io::Result<()> {
        self.with(|inner| {
            inner.operations += 1;
            if let (Operation::Write(offset, bytes), "volume") = (&operation, self.name) {
                let end = offset + bytes.len() as u64;
                inner.bad.take_if(|bad| *offset <= bad.start && bad.end <= end);
            }
            let state = inner.disks.get_mut(self.name).unwrap();
            apply(&mut state.cache, &operation);
            state.unsynced.push(operation);
            Ok(())
        })
    }
}

impl Disk for PowerDisk {
    fn len(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.disks[self.name].cache.len() as u64))
    }

    fn is_fixed(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(|inner| {
            let end = offset + buf.len() as u64;
            let is_bad = |bad: &Range<u64>| bad.start < end && offset < bad.end;
            if self.name == "volume" && inner.bad.as_ref().is_some_and(is_bad) {
                return Err(io::Error::other("the medium is bad"));
            }
            let bytes = inner.disks[self.name].cache.get(offset as usize..end as usize);
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.operate(Operation::Write(offset, bytes.to_vec()))
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        self.operate(Operation::Write(extent.offset(), vec![0; extent.len() as usize]))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Operation::SetLen(len))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let len = self.len()?;
        Ok(Extent::from_bounds(from.min(len), len))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|inner| {
            inner.operations += 1;
            let state = inner.disks.get_mut(self.name).unwrap();
            state.unsynced.clear();
            state.durable = state.cache.clone();
            Ok(())
        })
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.with(|_| Ok(()))
    }

    fn reopen(&mut self, _writable: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the replica on these disks, and recovers it.
pub(crate) fn opened(power: &Power) -> Result<Replica<PowerDisk>, TargetError> {
    // No two opens may draw the same nonce.
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&power.operations().to_le_bytes());
    Replica::open("replica", power.disks(), seed)
}
