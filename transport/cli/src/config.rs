//! The configuration file of `driftline serve`.

mod places;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use driftline_wire::{PublicKey, Verb, limits::NAME_LEN_MAX};
use serde::Deserialize;

use crate::{
    args,
    exit::Usage,
    place::Place,
    serve::limits::{self, Limits},
    target::{TargetPlace, TargetTerms, loss_max},
    trust::Trust,
};

/// The configuration as it is written. Unknown keys are errors: a misspelt one would
/// otherwise silently not apply.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    listen: String,
    key: PathBuf,
    #[serde(default = "sessions_max_default")]
    sessions_max: usize,
    index: Option<PathBuf>,
    #[serde(default)]
    linstor: args::Linstor,
    trust_dir: Option<PathBuf>,
    #[serde(default)]
    limits: limits::Written,
    #[serde(default)]
    peer: Vec<WrittenPeer>,
    #[serde(default)]
    volume: Vec<WrittenVolume>,
}

const fn sessions_max_default() -> usize {
    16
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPeer {
    name: String,
    key: String,
    #[serde(default)]
    push: Vec<String>,
    #[serde(default)]
    pull: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenVolume {
    name: String,
    source: Option<String>,
    target: Option<String>,
    state_dir: Option<PathBuf>,
    loss_max: Option<String>,
    #[serde(default)]
    overwrite: bool,
    #[serde(default)]
    tree: bool,
    #[serde(default)]
    rotated: bool,
    zfs: Option<args::Zfs>,
    receive: Option<args::Receive>,
    compare_every: Option<String>,
    audit_age: Option<String>,
    audit_sample: Option<String>,
}

impl WrittenVolume {
    /// What is said of how its maps are checked.
    fn audit(&self) -> args::Audit {
        args::Audit {
            compare: false,
            compare_every: self.compare_every.clone(),
            audit_age: self.audit_age.clone(),
            audit_sample: self.audit_sample.clone(),
        }
    }
}

/// A configuration that makes sense.
#[derive(Debug)]
pub(crate) struct Config {
    /// Address and port to listen on.
    pub(crate) listen: String,
    /// Our secret key file.
    pub(crate) key: PathBuf,
    /// What each peer may take.
    pub(crate) limits: Limits,
    /// How LINSTOR is spoken to.
    pub(crate) linstor: args::Linstor,
    /// Where chunks are looked for that other replicas have.
    pub(crate) index: Option<PathBuf>,
    /// Where manifests and incidents are, if not at their usual place.
    pub(crate) trust_dir: Option<PathBuf>,
    peers: Vec<Peer>,
    volumes: BTreeMap<String, Volume>,
}

/// A peer that may connect.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Our name for it, for logs.
    pub(crate) name: String,
    key: PublicKey,
    push: HashSet<String>,
    pull: HashSet<String>,
}

/// A volume of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Volume {
    /// Peers pull it from here.
    Source {
        place: Place,
        /// How it is replicated, if it is ZFS's.
        zfs: args::Zfs,
        /// Whether it is a snapshot at which DRBD's bitmap was cleared.
        rotated: bool,
        /// How much of what its maps call unchanged is read again, and when all is.
        audit: args::Audit,
    },
    /// Peers push it to here.
    Target { place: TargetPlace, terms: TargetTerms },
}

impl Volume {
    /// What has this path below it, if it is a tree.
    fn below(&self, path: &str) -> Option<Self> {
        let Self::Target { place, terms } = self else { return None };
        let place = terms.root.as_ref().and_then(|_| place.below(path).ok())?;
        Some(Self::Target { place, terms: terms.clone() })
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("the configuration {} cannot be used", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        Self::parse(&text)
            .and_then(|config| places::check_apart(&config, Some(path)).map(|()| config))
            .map_err(|error| Usage(format!("{error:#}")))
            .with_context(context)
    }

    /// What is missing where the volumes are, one line for each. It costs no other volume its
    /// service.
    pub(crate) fn missing(&self) -> Vec<String> {
        places::missing(self)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let written: Written = toml::from_str(text)?;
        if written.version != 1 {
            bail!("version is {}, and this build knows version 1", written.version);
        }
        places::check_address(&written.listen).context("listen")?;
        let limits = written.limits.check(written.sessions_max).context("[limits]")?;
        let mut volumes = BTreeMap::new();
        for volume in written.volume {
            let name = volume.name.clone();
            if name.is_empty() || name.len() > NAME_LEN_MAX.into() {
                bail!("a volume's name has 1 to {NAME_LEN_MAX} bytes, {name:?} has not");
            }
            let checked = check_volume(volume).with_context(|| format!("volume {name:?}"))?;
            if volumes.insert(name.clone(), checked).is_some() {
                bail!("volume {name:?} is there twice");
            }
        }
        let mut peers: Vec<Peer> = Vec::new();
        for peer in written.peer {
            let name = peer.name.clone();
            let peer = check_peer(peer, &volumes).with_context(|| format!("peer {name:?}"))?;
            if peers.iter().any(|other| other.key == peer.key || other.name == peer.name) {
                bail!("peer {name:?} is there twice, by name or by key");
            }
            peers.push(peer);
        }
        let Written { listen, key, index, linstor, trust_dir, .. } = written;
        Ok(Self { listen, key, limits, index, linstor, trust_dir, peers, volumes })
    }

    /// The keys that may connect at all.
    pub(crate) fn keys(&self) -> Vec<PublicKey> {
        self.peers.iter().map(|peer| peer.key).collect()
    }

    /// The peer with this key.
    pub(crate) fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.key == *key)
    }

    /// The volume that `peer` asks for, if it may do this with it: one of those in the file, or
    /// one below a tree there. Whoever may not is not told whether it exists.
    pub(crate) fn authorise(&self, peer: &Peer, verb: Verb, volume: &str) -> Option<Volume> {
        let allowed = match verb {
            Verb::Push | Verb::Status => &peer.push,
            Verb::Pull => &peer.pull,
        };
        let granted = |name: &str| self.volumes.get(allowed.get(name)?);
        if let Some(volume) = granted(volume) {
            return Some(volume.clone());
        }
        // The innermost tree that is above it.
        let above = volume.rmatch_indices('/').map(|(end, _)| (&volume[..end], &volume[end + 1..]));
        above.filter_map(|(root, path)| granted(root)?.below(path)).next()
    }

    /// Whether LINSTOR keeps any of the volumes.
    pub(crate) fn has_linstor(&self) -> bool {
        let is_linstor =
            |volume| matches!(volume, &Volume::Source { place: Place::Linstor { .. }, .. });
        self.volumes.values().any(is_linstor)
    }

    /// Every target.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (&TargetPlace, &TargetTerms)> {
        self.volumes.values().filter_map(|volume| match volume {
            Volume::Target { place, terms } => Some((place, terms)),
            Volume::Source { .. } => None,
        })
    }

    /// Every volume, by name.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&str, &Volume)> {
        self.volumes.iter().map(|(name, volume)| (name.as_str(), volume))
    }
}

fn check_volume(volume: WrittenVolume) -> anyhow::Result<Volume> {
    match (&volume.source, &volume.target) {
        (Some(_), None)
            if volume.state_dir.is_some()
                || volume.overwrite
                || volume.tree
                || volume.receive.is_some()
                || volume.loss_max.is_some() =>
        {
            bail!(
                "state_dir, overwrite, tree, receive and loss_max are said of targets, and it is a \
                 source"
            )
        }
        (Some(source), None) => match source.parse()? {
            Place::Remote { .. } | Place::StandardInput | Place::Zvol(_) => bail!(
                "a source here is zfs:POOL/NAME, zstream:FILE, file:PATH, linstor:RESOURCE/VOLUME \
                 or drbdmeta:PATH, not {source}"
            ),
            Place::DrbdVolume { .. } => {
                bail!("{source} is pushed from where it is, and not pulled: `driftline push`")
            }
            place
                if volume.zfs.is_some()
                    && !matches!(place, Place::Zfs(_) | Place::Linstor { .. }) =>
            {
                bail!("zfs is said of zfs: and linstor: sources, and it is {source}")
            }
            place if volume.rotated && !matches!(place, Place::Drbd { .. }) => {
                bail!("rotated is said of drbdmeta: sources, and it is {source}")
            }
            place => {
                let audit = volume.audit();
                Trust { dir: Path::new(""), audit: &audit, target: "" }.check()?;
                let (zfs, rotated) = (volume.zfs.unwrap_or_default(), volume.rotated);
                Ok(Volume::Source { place, zfs, rotated, audit })
            }
        },
        (None, Some(_)) if volume.audit() != args::Audit::default() => bail!(
            "audit_age, audit_sample and compare_every are said of sources, and it is a target"
        ),
        (None, Some(_)) if volume.zfs.is_some() || volume.rotated => {
            bail!("zfs and rotated are said of sources, and it is a target")
        }
        (None, Some(target)) => {
            let place = TargetPlace::of(&target.parse()?)?;
            let is_zfs = place.takes_streams();
            if is_zfs && (volume.state_dir.is_some() || volume.overwrite) {
                bail!("state_dir and overwrite are said of replicas, and {target} is kept by ZFS");
            }
            if is_zfs && volume.loss_max.is_some() {
                bail!("loss_max is said of replicas, and {target} is kept by ZFS, with snapshots");
            }
            let loss_max = loss_max(volume.loss_max.as_deref(), "loss_max")?;
            if !is_zfs && volume.receive.is_some() {
                bail!("receive is said of zfs: targets, and it is {target}");
            }
            let WrittenVolume { state_dir, overwrite, tree, receive, .. } = volume;
            if tree && state_dir.is_some() {
                bail!("state_dir is said of one volume, and it is a tree of them");
            }
            let (forbid_overwrite, receive) = (!overwrite, receive.unwrap_or_default());
            let root = tree.then(|| place.clone());
            let terms = TargetTerms {
                state_dir,
                forbid_overwrite,
                loss_max,
                receive,
                root,
                ..TargetTerms::default()
            };
            Ok(Volume::Target { place, terms })
        }
        _ => bail!("it has either a source, to be pulled, or a target, to be pushed to"),
    }
}

fn check_peer(peer: WrittenPeer, volumes: &BTreeMap<String, Volume>) -> anyhow::Result<Peer> {
    for name in &peer.push {
        if !matches!(volumes.get(name), Some(Volume::Target { .. })) {
            bail!("it may push {name:?}, but there is no volume of that name with a target");
        }
    }
    for name in &peer.pull {
        if !matches!(volumes.get(name), Some(Volume::Source { .. })) {
            bail!("it may pull {name:?}, but there is no volume of that name with a source");
        }
    }
    let key = peer.key.parse()?;
    let (push, pull) = (peer.push.into_iter().collect(), peer.pull.into_iter().collect());
    Ok(Peer { name: peer.name, key, push, pull })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_sample_is_a_configuration() {
        let config = Config::parse(include_str!("../dist/driftline.toml")).unwrap();
        let peer = config.peer(&config.keys()[0]).unwrap();
        assert!(config.authorise(peer, Verb::Push, "vm1").is_some());
        assert!(config.authorise(peer, Verb::Status, "vm1").is_some());
        assert!(config.authorise(peer, Verb::Pull, "vm1").is_none());
        assert!(config.authorise(peer, Verb::Push, "golden").is_none());
        assert!(config.authorise(peer, Verb::Pull, "golden").is_some());
        assert!(config.authorise(peer, Verb::Pull, "nothing").is_none());
    }

    /// Each replacement breaks the sample in one way, and the message says which.
    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let good = include_str!("../dist/driftline.toml");
        for (from, to, says) in [
            ("version = 1", "version = 2", "version"),
            ("version = 1", "", "version"),
            ("listen =", "listem =", "listem"),
            (":7420", ":7420000", "7420000"),
            ("0.0.0.0:7420", "7420", "ADDRESS:PORT"),
            ("sessions_max = 16", "sessions_max = 0", "sessions_max"),
            ("sessions_max = 16", "sessions_max = 9223372036854775807", "sessions_max"),
            ("[[peer]]", "[limits]\nhandshake = 1\n[[peer]]", "handshake"),
            ("push = [\"vm1\"]", "push = [\"vm2\"]", "vm2"),
            ("push = [\"vm1\"]", "push = [\"golden\"]", "golden"),
            ("pull = [\"golden\"]", "pull = [\"vm1\"]", "vm1"),
            ("key = \"dlp1", "key = \"dlp1a", "hypervisor-1"),
            ("target = \"file:", "target = \"zstream:", "vm1"),
            ("target = \"file:", "targets = \"file:", "targets"),
            ("source = \"file:", "source = \"x@h:1 file:", "golden"),
            ("name = \"golden\"", "name = \"vm1\"", "vm1"),
            ("overwrite = false", "overwrite = 0", "overwrite"),
            ("overwrite = false", "loss_max = \"150%\"", "loss_max"),
            ("name = \"golden\"", "name = \"golden\"\nloss_max = \"10%\"", "golden"),
            ("index = \"", "index = 7 # \"", "index"),
            ("name = \"golden\"", "name = \"golden\"\noverwrite = true", "golden"),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            let error = format!("{:#}", Config::parse(&bad).expect_err(to));
            assert!(error.contains(says), "{error}");
        }
    }

    /// Of each of these, whoever may push one volume could overwrite something else.
    #[test]
    fn no_target_is_within_another_or_within_our_own_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        fs::write(dir.path().join("a.img"), "x").unwrap();
        fs::write(dir.path().join("secret.key"), "x").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::hard_link(dir.path().join("a.img"), dir.path().join("b.img")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("here")).unwrap();
        let check = |a: &str, b: &str| {
            let text = format!(
                "version = 1\nlisten = \"[::]:7420\"\nkey = \"{at}/secret.key\"\n\
                 [[volume]]\nname = \"a\"\ntarget = {a}\n\
                 [[volume]]\nname = \"b\"\ntarget = {b}\n"
            )
            .replace("AT", &at);
            fs::write(dir.path().join("serve.toml"), text).unwrap();
            Config::read(&dir.path().join("serve.toml")).map_err(|error| format!("{error:#}"))
        };
        let a = "\"file:AT/a.img\"";
        for fine in ["\"file:AT/c.img\"", "\"zvol:p/a\"", "\"file:AT/t\"\ntree = true"] {
            check(a, fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
        }
        for (a, b, says) in [
            (a, "\"file:AT/a.img\"", "the same target"),
            (a, "\"file:AT/sub/../a.img\"", "the same target"),
            (a, "\"file:AT/here/a.img\"", "the same target"),
            (a, "\"file:AT/b.img\"", "the same target"),
            ("\"zvol:p/a\"", "\"zfs:p/a\"", "the same target"),
            ("\"file:AT/t/x.img\"", "\"file:AT/t\"\ntree = true", "within that of volume \"b\""),
            ("\"zfs:p\"\ntree = true", "\"zvol:p/a/b\"", "within that of volume \"a\""),
            (a, "\"file:AT/a.img.driftline/state\"", "within that of volume \"a\""),
            (
                "\"file:/x\"\nstate_dir = \"AT/s\"",
                "\"file:/y\"\nstate_dir = \"AT/s\"",
                "the same folder for their books",
            ),
            (
                "\"file:/x\"\nstate_dir = \"AT/t/s\"",
                "\"file:AT/t\"\ntree = true",
                "within that of volume \"b\"",
            ),
            (a, "\"file:/var/lib/driftline\"\ntree = true", "the trust folder"),
            (a, "\"file:AT/secret.key\"", "the secret key"),
            (a, "\"file:AT/here/serve.toml\"", "this file"),
        ] {
            let error = check(a, b).expect_err(b);
            assert!(error.contains(says), "{b}: {error}");
        }
        // Nor is one of these files a source, or another of them.
        let with = |index: &str, source: &str| {
            let text = format!(
                "version = 1\nlisten = \"[::]:7420\"\nkey = \"{at}/secret.key\"\n\
                 index = \"{at}/{index}\"\n\
                 [[volume]]\nname = \"a\"\nsource = \"{source}\"\n"
            )
            .replace("AT", &at);
            fs::write(dir.path().join("serve.toml"), text).unwrap();
            Config::read(&dir.path().join("serve.toml")).map_err(|error| format!("{error:#}"))
        };
        with("index", "file:AT/a.img").unwrap();
        for (index, source, says) in [
            ("a.img", "file:AT/a.img", "the index is"),
            ("b.img", "file:AT/a.img", "the index is"),
            ("here/m", "drbdmeta:AT/a.img,meta=AT/m", "the index is"),
            ("a.zs", "zstream:AT/a.zs", "the index is"),
            ("index", "file:AT/secret.key", "the secret key is"),
            ("here/secret.key", "file:AT/a.img", "the secret key and the index are one file"),
            ("serve.toml", "file:AT/a.img", "the index and this file are one file"),
        ] {
            let error = with(index, source).expect_err(source);
            assert!(error.contains(says), "{index} {source}: {error}");
        }
        // A tree over the folder of the key is over the key.
        let error = check("\"file:/nowhere\"", "\"file:AT\"\ntree = true").unwrap_err();
        assert!(error.contains("the secret key"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_told_of_each_volume() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let text = format!(
            "version = 1\nlisten = \"[::]:7420\"\nkey = \"k\"\n\
             [[volume]]\nname = \"fine\"\ntarget = \"file:{at}/fine.img\"\n\
             [[volume]]\nname = \"far\"\ntarget = \"file:{at}/none/far.img\"\n\
             [[volume]]\nname = \"folder\"\ntarget = \"file:{at}\"\n\
             [[volume]]\nname = \"tree\"\ntarget = \"file:{at}/none\"\ntree = true\n\
             [[volume]]\nname = \"source\"\nsource = \"file:{at}/none.img\"\n"
        );
        let missing = Config::parse(&text).unwrap().missing();
        let of: Vec<_> = missing.iter().filter_map(|line| line.split('"').nth(1)).collect();
        assert_eq!(of, ["far", "folder", "source", "tree"], "{missing:?}");
        assert!(missing[0].contains(&format!("{at}/none of its target")), "{missing:?}");
    }
}
