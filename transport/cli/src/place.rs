//! Names for sources and targets, from text to meaning.

use std::{fmt, path::PathBuf, str::FromStr};

use anyhow::{Context, anyhow, bail};
use driftline_linstor::ResourceName;
use driftline_wire::limits::NAME_LEN_MAX;
use driftline_zfs::{DatasetName, device_of};

use crate::exit::Usage;

/// Somewhere a volume comes from or goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// `zfs:POOL/NAME`: a volume or file system of the ZFS on this machine.
    Zfs(DatasetName),
    /// `zvol:POOL/NAME`: a volume of the ZFS on this machine that is a replica.
    Zvol(DatasetName),
    /// `zstream:FILE`: a recorded `zfs send` stream.
    Stream(PathBuf),
    /// `zstream:-`: one on standard input.
    StandardInput,
    /// `file:PATH`: a file or block device.
    File(PathBuf),
    /// `drbdmeta:PATH`: the backing device of a DRBD volume, or a snapshot of it.
    Drbd {
        /// The device with the data.
        path: PathBuf,
        /// `,meta=PATH`: the device with the metadata, if that is another.
        meta: Option<PathBuf>,
        /// `,index=N`: which part of that device, if several volumes share it.
        index: Option<u32>,
    },
    /// `drbd:RESOURCE/VOLUME`: a volume of the DRBD on this machine.
    DrbdVolume {
        /// The resource.
        resource: String,
        /// The volume's number in it.
        volume: u32,
    },
    /// `linstor:RESOURCE/VOLUME`: a volume of LINSTOR with data on this node.
    Linstor {
        /// The resource.
        resource: ResourceName,
        /// The volume's number in it.
        volume: u32,
    },
    /// `NAME@HOST:PORT`: a volume of a remote `driftline serve`.
    Remote {
        /// The volume, by the remote side's name for it.
        volume: String,
        /// Host and port.
        address: String,
    },
}

const FORMS: &str = "zfs:POOL/NAME, zvol:POOL/NAME, zstream:FILE, zstream:-, file:PATH, \
                     drbd:RESOURCE/VOLUME, linstor:RESOURCE/VOLUME, drbdmeta:PATH or \
                     NAME@HOST:PORT";

impl FromStr for Place {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        Self::read(text).map_err(|error| Usage(format!("{error:#}")))
    }
}

impl Place {
    fn read(text: &str) -> anyhow::Result<Self> {
        if let Some(file) = text.strip_prefix("zstream:") {
            return match file {
                "" => bail!(
                    "{text:?} names no file: write zstream:FILE, or zstream:- for standard input"
                ),
                "-" => Ok(Self::StandardInput),
                file => Ok(Self::Stream(file.into())),
            };
        }
        if let Some(path) = text.strip_prefix("file:") {
            return match path {
                "" => bail!("{text:?} names no file: write file:PATH"),
                path => Ok(Self::File(path.into())),
            };
        }
        for (prefix, place) in [("zfs:", Self::Zfs as fn(_) -> _), ("zvol:", Self::Zvol)] {
            if let Some(name) = text.strip_prefix(prefix) {
                let form = || format!("{text:?}: write {prefix}POOL/NAME");
                return name.parse().map(place).with_context(form);
            }
        }
        if let Some(rest) = text.strip_prefix("drbdmeta:") {
            return parse_drbd(text, rest);
        }
        if let Some(rest) = text.strip_prefix("drbd:") {
            return parse_drbd_volume(rest)
                .with_context(|| format!("{text:?}: write drbd:RESOURCE/VOLUME, as in drbd:r0/0"));
        }
        if let Some(rest) = text.strip_prefix("linstor:") {
            return parse_linstor(rest).with_context(|| {
                format!("{text:?}: write linstor:RESOURCE/VOLUME, as in linstor:web/0")
            });
        }
        match text.rsplit_once('@') {
            Some((volume, _)) if volume.len() > NAME_LEN_MAX.into() => {
                bail!("{text:?} is too long: a volume's name has at most {NAME_LEN_MAX} bytes")
            }
            Some((volume, address)) if !volume.is_empty() => {
                let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                match port.map(|(_, port)| port.parse::<u16>()) {
                    Some(Ok(port)) if port > 0 => {
                        Ok(Self::Remote { volume: volume.into(), address: address.into() })
                    }
                    _ => bail!("{text:?} has no port: write NAME@HOST:PORT"),
                }
            }
            _ => bail!("{text:?} is no source or target: write {FORMS}"),
        }
    }
}

/// What follows `drbd:`. DRBD's names have none of what a shell or its configuration would take
/// for something else.
fn parse_drbd_volume(rest: &str) -> anyhow::Result<Place> {
    let (resource, volume) = rest.split_once('/').context("it has no volume")?;
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"'\\/{};#[]".contains(c);
    if resource.is_empty() || resource.starts_with('-') || !resource.chars().all(is_plain) {
        bail!("{resource:?} is no resource");
    }
    Ok(Place::DrbdVolume { resource: resource.into(), volume: parse_number(volume)? })
}

/// What follows `linstor:`.
fn parse_linstor(rest: &str) -> anyhow::Result<Place> {
    let (resource, volume) = rest.split_once('/').context("it has no volume")?;
    Ok(Place::Linstor { resource: resource.parse()?, volume: parse_number(volume)? })
}

/// A volume's number in its resource, to DRBD and to LINSTOR.
fn parse_number(text: &str) -> anyhow::Result<u32> {
    let is_number = |text: &&str| text.chars().all(|c| c.is_ascii_digit());
    let number = Some(text).filter(is_number).and_then(|text| text.parse::<u16>().ok());
    Ok(number.with_context(|| format!("{text:?} is no volume's number"))?.into())
}

/// What follows `drbdmeta:`. A path may have commas, but not `,meta=` or `,index=` in it.
fn parse_drbd(text: &str, rest: &str) -> anyhow::Result<Place> {
    let form = "write drbdmeta:PATH or drbdmeta:PATH,meta=PATH or drbdmeta:PATH,meta=PATH,index=N";
    let (path, meta) = rest.split_once(",meta=").map_or((rest, None), |(a, b)| (a, Some(b)));
    let (meta, index) = match meta.and_then(|meta| meta.rsplit_once(",index=")) {
        Some((meta, index)) => (Some(meta), Some(index)),
        None => (meta, None),
    };
    if path.is_empty() || meta == Some("") {
        bail!("{text:?} names no file: {form}");
    }
    if path.contains(",index=") {
        bail!("{text:?} has an index, but no device that it is of: {form}");
    }
    let index = index.map(str::parse).transpose();
    let index = index.map_err(|_| anyhow!("{text:?} has an index that is no number: {form}"))?;
    Ok(Place::Drbd { path: path.into(), meta: meta.map(PathBuf::from), index })
}

impl Place {
    /// The file or device of this machine that its bytes are on, if it names one.
    pub(crate) fn bytes(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) | Self::Drbd { path, .. } => Some(path.clone()),
            Self::Zvol(name) => Some(device_of(name)),
            _ => None,
        }
    }

    /// All files and devices of this machine that it names.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Stream(path) => vec![path.clone()],
            Self::Drbd { path, meta, .. } => [path].into_iter().chain(meta).cloned().collect(),
            _ => self.bytes().into_iter().collect(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(name) => write!(f, "zfs:{name}"),
            Self::Zvol(name) => write!(f, "zvol:{name}"),
            Self::Stream(path) => write!(f, "zstream:{}", path.display()),
            Self::StandardInput => f.write_str("zstream:-"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Remote { volume, address } => write!(f, "{volume}@{address}"),
            Self::DrbdVolume { resource, volume } => write!(f, "drbd:{resource}/{volume}"),
            Self::Linstor { resource, volume } => write!(f, "linstor:{resource}/{volume}"),
            Self::Drbd { path, meta, index } => {
                write!(f, "drbdmeta:{}", path.display())?;
                meta.as_ref().map_or(Ok(()), |meta| write!(f, ",meta={}", meta.display()))?;
                index.map_or(Ok(()), |index| write!(f, ",index={index}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        for text in ["zstream:a b", "zstream:-", "file:/dev/sda@x:1", "vm@1@host:7420", "v@[::1]:9"]
        {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["drbdmeta:/dev/a,b", "drbdmeta:a,meta=b,c", "drbdmeta:a,meta=b,index=7"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        let [path, meta] = ["a", "b"].map(PathBuf::from);
        let drbd = Place::Drbd { path, meta: Some(meta), index: Some(2) };
        assert_eq!("drbdmeta:a,meta=b,index=2".parse::<Place>().unwrap(), drbd);
        for text in [":", ":,meta=b", ":a,meta=", ":a,index=1", ":a,meta=b,index=x"] {
            assert!(format!("drbdmeta{text}").parse::<Place>().is_err(), "{text}");
        }
        for text in ["drbd:r0/0", "drbd:vm-1.a@b/65535"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for rest in
            ["", "r0", "/0", "r0/", "r0/x", "r0/-1", "r0/+1", "r0/65536", "-a/0", "a b/0", "a/b/0"]
        {
            let error = format!("{:#}", format!("drbd:{rest}").parse::<Place>().unwrap_err());
            assert!(error.contains("RESOURCE/VOLUME"), "{error}");
        }
        for text in ["linstor:web_1/0", "linstor:Web-1/65535"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for rest in ["", "web", "web/", "web/x", "web/65536", "1web/0", "we.b/0", "a@b/0", "w/b/0"]
        {
            let error = format!("{:#}", format!("linstor:{rest}").parse::<Place>().unwrap_err());
            assert!(error.contains("RESOURCE/VOLUME"), "{error}");
        }
        let remote = Place::Remote { volume: "vm@1".into(), address: "host:7420".into() };
        assert_eq!("vm@1@host:7420".parse::<Place>().unwrap(), remote);
        for text in ["zfs:tank/vm 1:x", "zvol:tank"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["zfs:", "zfs:tank/a@b", "zvol:/dev/zvol/tank/a", "zfs:1/2"] {
            let error = format!("{:#}", text.parse::<Place>().unwrap_err());
            assert!(error.contains("POOL/NAME"), "{error}");
        }
        for text in ["", "zstream:", "file:", "disk.img", "@h:1", "v@h", "v@h:0", "v@h:x", "v@:1"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
        // On the wire it would be cut, and could then name another volume.
        assert!(format!("{}@h:1", "v".repeat(256)).parse::<Place>().is_err());
    }
}
