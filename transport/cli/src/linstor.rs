//! `linstor:RESOURCE/VOLUME` as a source: a volume that LINSTOR keeps on this node.
//!
//! LINSTOR takes the snapshot and deletes it, and what it is stored on says how it is read:
//!
//! * ZFS: as a `zfs:` source, from that snapshot of the data set. What has arrived is bookmarked,
//!   and the snapshot that arrived last stays, as does one that was cut off in the middle.
//! * Thin LVM: the snapshot's device, all of which is compared. LINSTOR takes snapshots without
//!   letting anybody start DRBD's bitmap anew at their instant, so that no map of it is proven.
//!
//! Only snapshots that are named as those of this volume, node and target are ever deleted.

mod error;

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use driftline_drbd::{DrbdVolume, Layout, SharedVolume};
use driftline_extent::{
    Change, Finish, Generation, Plan, PlanKind, Source, TargetState, Volume, VolumeId,
};
use driftline_linstor::{
    Client, ClientConfig, Controller, Identity, LinstorError, NodeName, OwnNames, OwnSnapshot,
    ResourceName, Storage, TlsFiles, Token, place,
};
use driftline_target::FileDisk;
use driftline_zfs::{DatasetName, LiveOptions, LiveSource, Pick, host::Zfs};

pub(crate) use self::error::LinstorSourceError;
use crate::{
    args,
    clock::now_ms,
    exit::misused,
    place::Place,
    plain::{PlainVolume, volume_id},
    terms::{Terms, id_of, live_options},
    told::{Told, plain_map},
};

/// The controller where none is named, as to LINSTOR's own client.
const CONTROLLERS: &str = "localhost";

/// How long LINSTOR may take to call a snapshot successful.
const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(600);

/// How long is waited between two looks: so much more each time, and at most so long.
const LOOK_STEP: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(2);

/// A volume of LINSTOR, and what is being replicated of it.
pub(crate) struct LinstorSource {
    client: Client,
    /// How `linstor:` names it, with that.
    name: String,
    node: NodeName,
    resource: ResourceName,
    store: Store,
    names: OwnNames,
    state: Option<TargetState>,
    current: Option<Current>,
}

/// What the volume is stored on, as far as that can be read here.
enum Store {
    Zfs {
        zfs: Zfs,
        dataset: DatasetName,
        options: LiveOptions,
    },
    Thin {
        data: Storage,
        /// Of a volume of DRBD, where its metadata are.
        metadata: Option<Metadata>,
        id: VolumeId,
        overwrite: bool,
        shared: Arc<SharedVolume>,
    },
}

/// Where the metadata of DRBD are.
enum Metadata {
    Internal,
    Apart(Storage),
}

/// The snapshot of this run, and what reads it.
struct Current {
    own: OwnSnapshot,
    reader: Reader,
    /// Whether it is what is being sent, and not the rest of an earlier one.
    planned: bool,
    /// Whether a part of it may have arrived, which can be gone on with.
    begun: bool,
}

enum Reader {
    Zfs(Box<LiveSource>),
    Thin(PlainVolume),
}

/// What can be read of the snapshot of a thin volume.
struct Thin {
    volume: Arc<dyn Volume + Send + Sync>,
    drbd: Option<DrbdVolume>,
}

/// How LINSTOR is spoken to.
pub(crate) fn config(wanted: &args::Linstor) -> anyhow::Result<ClientConfig> {
    let controllers = wanted.controllers.as_deref().unwrap_or(CONTROLLERS);
    let mut config = ClientConfig::new(Controller::list(controllers)?);
    config.token = wanted.token_file.as_deref().map(Token::read).transpose()?;
    let identity = match (&wanted.certificate, &wanted.key) {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: certificate.clone(), key: key.clone() })
        }
        (None, None) => None,
        _ => misused!("a client certificate of LINSTOR and its key are given together"),
    };
    config.tls = TlsFiles { authorities: wanted.ca.clone(), identity };
    Ok(config)
}

/// The name of this node, if it is not said: LINSTOR's nodes are mostly named as their machines.
fn node_name(wanted: &args::Linstor) -> anyhow::Result<NodeName> {
    let name = match &wanted.node {
        Some(name) => name.clone(),
        None => fs::read_to_string("/proc/sys/kernel/hostname").context("this machine's name")?,
    };
    name.trim().parse().context("say with --linstor-node how LINSTOR calls this node")
}

impl LinstorSource {
    /// Finds out where the volume is. Nothing is changed yet.
    pub(crate) fn open(named: &Place, terms: Terms<'_>) -> anyhow::Result<Self> {
        let Place::Linstor { resource, volume } = named else { bail!("{named} is not LINSTOR's") };
        let Terms { overwrite, linstor: wanted, zfs: of_zfs, to, .. } = terms;
        if of_zfs.latest || of_zfs.snapshot.is_some() || of_zfs.keep.is_some() {
            misused!("--snapshot, --latest and --keep are said of zfs: sources, and it is {named}");
        }
        let (config, node) = (config(wanted)?, node_name(wanted)?);
        let client = Client::new(&config).map_err(told)?;
        let resources = client.resources(std::slice::from_ref(resource)).map_err(told)?;
        let pools = client.storage_pools(std::slice::from_ref(&node)).map_err(told)?;
        let found = place(&node, resource, *volume, &resources, &pools).map_err(told)?;
        let name = named.to_string();
        if let (Some(state), Some(_)) = (&found.disk_state, &found.drbd)
            && state != "UpToDate"
        {
            let (node, state) = (node.to_string(), state.clone());
            return Err(told(LinstorSourceError::NotUpToDate { name, node, state }));
        }
        let names = OwnNames::new(id_of(&[&name, to, &node.to_string()]));
        // That LINSTOR cannot take snapshots there is known before one is asked for.
        found.data.snapshot(names.snapshot(0).name()).map_err(told)?;
        let store = match found.data {
            Storage::Zfs(dataset) => Store::Zfs {
                zfs: Zfs::find().map_err(told)?,
                dataset: dataset.parse()?,
                options: live_options(Pick::Latest, terms)?,
            },
            data => Store::Thin {
                data,
                metadata: found
                    .drbd
                    .map(|drbd| drbd.metadata.map_or(Metadata::Internal, Metadata::Apart)),
                id: volume_id("driftline volume id v1 linstor", name.as_bytes()),
                overwrite,
                shared: Arc::default(),
            },
        };
        let resource = resource.clone();
        Ok(Self { client, name, node, resource, store, names, state: None, current: None })
    }

    /// The volume of the snapshot that is being read, for reading at random.
    pub(crate) fn volume(&self) -> Option<Arc<dyn Volume + Send + Sync>> {
        match &self.store {
            Store::Zfs { .. } => None,
            Store::Thin { shared, .. } => Some(shared.clone()),
        }
    }

    /// Whether what it is stored on says what has changed.
    pub(crate) const fn has_maps(&self) -> bool {
        matches!(self.store, Store::Zfs { .. })
    }

    /// What a snapshot that is taken for that says has changed.
    pub(crate) fn maps(&mut self) -> Result<Vec<Told>, LinstorSourceError> {
        let Store::Thin { .. } = self.store else { return Err(LinstorSourceError::NoMap) };
        self.tidy(None);
        let own = self.take()?;
        let maps = self.maps_of(&own);
        self.delete(&own);
        maps
    }

    fn maps_of(&self, own: &OwnSnapshot) -> Result<Vec<Told>, LinstorSourceError> {
        let thin = self.open_thin(own)?;
        match &thin.drbd {
            Some(drbd) => Ok(drbd.maps()?.into_iter().map(Told::from).collect()),
            None => {
                let map = plain_map(thin.volume.as_ref()).map_err(|error| self.unread(error))?;
                Ok(vec![map.into()])
            }
        }
    }

    fn unread(&self, error: std::io::Error) -> LinstorSourceError {
        LinstorSourceError::Read { name: self.name.clone(), error }
    }

    /// Has a snapshot taken, and leaves none behind if that fails.
    fn take(&self) -> Result<OwnSnapshot, LinstorSourceError> {
        let own = self.names.snapshot(now_ms());
        match self.take_named(&own) {
            Ok(()) => Ok(own),
            // It was never heard of.
            Err(error @ LinstorSourceError::Linstor(LinstorError::Unreachable { .. })) => {
                Err(error)
            }
            Err(error) => {
                self.delete(&own);
                Err(error)
            }
        }
    }

    fn take_named(&self, own: &OwnSnapshot) -> Result<(), LinstorSourceError> {
        let Self { client, resource, node, .. } = self;
        for warning in client.create_snapshots(std::slice::from_ref(resource), own)? {
            tracing::warn!(volume = self.name, snapshot = %own, "{warning}");
        }
        let started = Instant::now();
        let taken = client.wait_successful(resource, own.name(), |looks| {
            thread::sleep(LOOK_STEP.saturating_mul(looks).min(LOOK_MAX));
            started.elapsed() < SNAPSHOT_WAIT_MAX
        })?;
        if !taken.is_on(node) {
            let (snapshot, node) = (own.to_string(), node.to_string());
            return Err(LinstorSourceError::OtherReplicas { snapshot, node });
        }
        tracing::info!(volume = self.name, snapshot = %own, "snapshot taken");
        Ok(())
    }

    /// Deletes a snapshot; one that stays is deleted by the next run.
    fn delete(&self, own: &OwnSnapshot) {
        if let Err(error) = self.client.delete_snapshot(&self.resource, own) {
            tracing::warn!(
                snapshot = %own, %error,
                "cannot remove this snapshot; the next run removes it"
            );
        }
    }

    /// Deletes what earlier runs have left, but for what the target holds or has a part of.
    fn tidy(&self, base: Option<&Generation>) {
        let current = self.current.as_ref().map(|current| &current.own);
        let gone = self.client.snapshots(&self.resource).map_err(LinstorSourceError::from);
        let gone = gone.and_then(|all| {
            let ours = self.names.own(&all).into_iter().filter(|own| Some(own) != current);
            self.needless(ours.collect(), base)
        });
        match gone {
            Ok(gone) => gone.iter().for_each(|own| self.delete(own)),
            Err(error) => {
                let volume = &self.name;
                tracing::warn!(volume, %error, "cannot remove snapshots that are no longer needed");
            }
        }
    }

    /// What an increment that was cut off led to.
    fn cut(&self) -> Option<Generation> {
        self.state.as_ref()?.resume.as_ref()?.tip
    }

    /// Those of these snapshots that no increment starts from or goes on with.
    fn needless(
        &self,
        mut ours: Vec<OwnSnapshot>,
        base: Option<&Generation>,
    ) -> Result<Vec<OwnSnapshot>, LinstorSourceError> {
        let Store::Zfs { zfs, dataset, .. } = &self.store else { return Ok(ours) };
        if ours.is_empty() {
            return Ok(ours);
        }
        let points = zfs.points(dataset)?;
        let cut = self.cut();
        let is =
            |guid: u64, generation: Option<&Generation>| generation == Some(&Generation::zfs(guid));
        // Of another past of the volume it cannot be told what is needed.
        if base.is_some() && !points.iter().any(|point| is(point.guid, base)) {
            return Ok(Vec::new());
        }
        let needed = |own: &OwnSnapshot| {
            points.iter().any(|point| {
                point.is_snapshot()
                    && point.name.short() == own.name().as_str()
                    && (is(point.guid, base) || is(point.guid, cut.as_ref()))
            })
        };
        ours.retain(|own| !needed(own));
        Ok(ours)
    }

    fn read(&self, own: &OwnSnapshot) -> Result<Reader, LinstorSourceError> {
        match &self.store {
            Store::Zfs { zfs, dataset, options } => {
                let pick = Pick::Named(own.to_string());
                let options = LiveOptions { pick, ..options.clone() };
                Ok(Reader::Zfs(Box::new(LiveSource::new(zfs.clone(), dataset.clone(), options))))
            }
            Store::Thin { id, overwrite, shared, .. } => {
                let volume = self.open_thin(own)?.volume;
                shared.set(Some(volume.clone()));
                Ok(Reader::Thin(PlainVolume::of(self.name.clone(), *id, volume, *overwrite)))
            }
        }
    }

    /// Opens the snapshot of a thin volume, without the metadata that DRBD has behind the data.
    fn open_thin(&self, own: &OwnSnapshot) -> Result<Thin, LinstorSourceError> {
        let Store::Thin { data, metadata, .. } = &self.store else {
            return Err(LinstorSourceError::NoMap);
        };
        let open = |storage: &Storage| {
            let device = storage.snapshot(own.name())?.device();
            match open_device(&device) {
                Ok(disk) => Ok(disk),
                Err(error) => Err(LinstorSourceError::Open { device, error }),
            }
        };
        let volume = open(data)?;
        let meta = match metadata {
            None => return Ok(Thin { volume, drbd: None }),
            Some(Metadata::Internal) => None,
            Some(Metadata::Apart(storage)) => Some((open(storage)?, Layout::External)),
        };
        let drbd = DrbdVolume::open(volume, meta)?;
        drbd.check()?;
        Ok(Thin { volume: drbd.volume(), drbd: Some(drbd) })
    }

    /// Reads the snapshot of this run no more, and deletes it unless it is needed still.
    fn let_go(&mut self) {
        let Some(Current { own, reader, begun, .. }) = self.current.take() else { return };
        let is_kept = begun && matches!(reader, Reader::Zfs(_));
        // Nothing may have it open.
        drop(reader);
        if let Store::Thin { shared, .. } = &self.store {
            shared.set(None);
        }
        if !is_kept {
            self.delete(&own);
        }
    }
}

fn open_device(device: &Path) -> std::io::Result<Arc<dyn Volume + Send + Sync>> {
    Ok(Arc::new(FileDisk::open_read(device)?))
}

/// What goes wrong with LINSTOR, as every source's failure.
fn told(error: impl Into<LinstorSourceError>) -> anyhow::Error {
    error.into().into()
}

impl Source for LinstorSource {
    type Error = LinstorSourceError;

    fn learn(&mut self, target: &TargetState) {
        self.state = Some(target.clone());
    }

    /// Nothing is taken before it is known what the target holds. It is called again only once
    /// the last increment is committed.
    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, LinstorSourceError> {
        self.tidy(base);
        if self.current.is_none() {
            let own = self.take()?;
            match self.read(&own) {
                Ok(reader) => {
                    self.current = Some(Current { own, reader, planned: false, begun: false })
                }
                Err(error) => {
                    self.delete(&own);
                    return Err(error);
                }
            }
        }
        let cut = self.cut();
        let Some(Current { reader, planned, .. }) = &mut self.current else {
            return Err(LinstorSourceError::Unplanned);
        };
        let plan = match reader {
            Reader::Zfs(live) => {
                if let Some(state) = &self.state {
                    live.learn(state);
                }
                live.plan(base)?
            }
            Reader::Thin(plain) => plain.plan(base)?,
        };
        *planned = cut.is_none() || plan.tip != cut;
        if let (PlanKind::UpToDate, Reader::Thin(_)) = (plan.kind, &*reader) {
            self.let_go();
        }
        Ok(plan)
    }

    fn next_change(&mut self, from: u64) -> Result<Option<Change>, LinstorSourceError> {
        let Some(current) = &mut self.current else { return Err(LinstorSourceError::Unplanned) };
        let change = match &mut current.reader {
            Reader::Zfs(live) => live.next_change(from)?,
            Reader::Thin(plain) => plain.next_change(from)?,
        };
        current.begun |= current.planned;
        Ok(change)
    }

    fn finish(&mut self) -> Result<Finish, LinstorSourceError> {
        match &mut self.current {
            Some(Current { reader: Reader::Zfs(live), planned, begun, .. }) => {
                let finish = live.finish()?;
                // Of a scan no change was asked for.
                *begun |= *planned;
                Ok(finish)
            }
            Some(Current { reader: Reader::Thin(plain), .. }) => Ok(plain.finish()?),
            None => Err(LinstorSourceError::Unplanned),
        }
    }

    fn seeks(&self) -> bool {
        matches!(&self.current, Some(Current { reader: Reader::Zfs(live), .. }) if live.seeks())
    }

    fn read_back(&mut self) -> Result<Option<Box<dyn Volume>>, LinstorSourceError> {
        match &mut self.current {
            Some(Current { reader: Reader::Zfs(live), .. }) => Ok(live.read_back()?),
            _ => Ok(None),
        }
    }

    fn plan_whole(&mut self) -> Result<Option<Plan>, LinstorSourceError> {
        match &mut self.current {
            Some(Current { reader: Reader::Zfs(live), .. }) => Ok(live.plan_whole()?),
            _ => Ok(None),
        }
    }

    fn reader(&mut self) -> Result<Option<Arc<dyn Volume + Send + Sync>>, LinstorSourceError> {
        match &mut self.current {
            Some(Current { reader: Reader::Zfs(live), .. }) => Ok(live.reader()?),
            _ => Ok(None),
        }
    }

    fn bytes_read(&self) -> u64 {
        match &self.current {
            Some(Current { reader: Reader::Zfs(live), .. }) => live.bytes_read(),
            Some(Current { reader: Reader::Thin(plain), .. }) => plain.bytes_read(),
            None => 0,
        }
    }
}

impl Drop for LinstorSource {
    fn drop(&mut self) {
        self.let_go();
    }
}
