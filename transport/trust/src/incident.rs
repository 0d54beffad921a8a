//! What was found, kept until a person has acknowledged it.
//!
//! Each incident is a file `NAME.incident` in a folder, where the name is a hash in 32 hexadecimal
//! digits: a record of text, see [`crate::record`]. The same finding, of the same volume and
//! from the same generation, is the same incident again, and counts up. A file is written anew
//! and put in its place at once. Whoever changes one holds the file `lock` meanwhile, so that what
//! several processes find, mend and acknowledge is all there afterwards.
//!
//! Earlier versions named a file by the first 8 digits. Such a file is read as any other, and takes
//! the whole name when the same is found again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use driftline_extent::{Extent, Generation, Reason};

use crate::{
    record::{Lines, Record},
    storage::{lock_dir, read_small, replace, tidy},
};

/// Digits of a name, of one that earlier versions gave, and of the shortest beginning of one by which
/// it is found.
const NAME_DIGITS: usize = 32;
const SHORT_DIGITS: usize = 8;

pub(crate) const TITLE: &str = "driftline incident 1";
const END: &str = "incident";

/// Where the damage is, as far as an incident says it.
pub const EXTENTS_MAX: usize = 64;

/// Something was found that a person should look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incident {
    /// What, in a word.
    pub reason: Reason,
    /// What, for a person.
    pub detail: String,
    /// Of which source, as it is written on the command line or in the configuration.
    pub source: String,
    /// On the way to where.
    pub target: String,
    /// What the target held.
    pub base: Option<Generation>,
    /// What it was to be brought to.
    pub tip: Option<Generation>,
    /// Where; the first ones, at most [`EXTENTS_MAX`].
    pub extents: Vec<Extent>,
    /// How many chunks were found so, of those that were read.
    pub chunks: u64,
    /// When it was found first, in milliseconds since 1970.
    pub first_ms: u64,
    /// When it was found last.
    pub last_ms: u64,
    /// How often.
    pub count: u64,
    /// When, and by which generation, the target was made equal to its source again.
    pub mended: Option<(u64, Generation)>,
    /// When a person has acknowledged it.
    pub acknowledged_ms: Option<u64>,
}

/// Why incidents cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum IncidentError {
    /// The storage failed.
    #[error("incidents cannot be kept or read: {path}: {source}")]
    Io {
        /// Which file or folder.
        path: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file is no incident.
    #[error("{path} is not what was written as an incident; look at it and remove it")]
    Damaged {
        /// Which.
        path: String,
    },
    /// There is none of this name.
    #[error("there is no incident {0}: see `driftline incidents --all`")]
    None(String),
    /// Several names begin so.
    #[error("{0} is the beginning of several incidents: write more of the name")]
    Ambiguous(String),
}

impl Incident {
    /// What is found now, on the way from a source to a target, and no more known of it.
    pub fn found(reason: Reason, detail: String, [source, target]: [&str; 2], now_ms: u64) -> Self {
        Self {
            reason,
            detail,
            source: source.to_owned(),
            target: target.to_owned(),
            base: None,
            tip: None,
            extents: Vec::new(),
            chunks: 0,
            first_ms: now_ms,
            last_ms: now_ms,
            count: 1,
            mended: None,
            acknowledged_ms: None,
        }
    }

    /// Its name: the same finding of the same volume has the same.
    pub fn name(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("driftline incident v1");
        let base = self.base.map(|base| base.to_string()).unwrap_or_default();
        for part in [self.reason.as_str(), &self.source, &self.target, &base] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..NAME_DIGITS].to_owned()
    }

    /// Whether it is the same finding, of the same volume and from the same generation.
    fn is_same(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.reason, one.source.clone(), one.target.clone(), one.base);
        of(self) == of(other)
    }

    /// Whether nobody has acknowledged it since it was found last.
    pub const fn is_open(&self) -> bool {
        self.acknowledged_ms.is_none()
    }

    /// Whether it is of this target, and open.
    pub fn is_open_of(&self, target: &str) -> bool {
        self.is_open() && self.target == target
    }

    pub(crate) fn encode(&self) -> String {
        let record = Record::new(TITLE)
            .line("reason", self.reason)
            .line("detail", &self.detail)
            .line("source", &self.source)
            .line("target", &self.target)
            .option("base", self.base)
            .option("tip", self.tip)
            .line("chunks", self.chunks)
            .line("first", self.first_ms)
            .line("last", self.last_ms)
            .line("count", self.count)
            .option("mended", self.mended.map(|(ms, tip)| format!("{ms} {tip}")))
            .option("acknowledged", self.acknowledged_ms);
        let extents = self.extents.iter().take(EXTENTS_MAX);
        let record = extents.fold(record, |record, extent| {
            record.line("extent", format_args!("{} {}", extent.offset(), extent.len()))
        });
        record.finish()
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        let lines = Lines::parse(text, TITLE)?;
        let word = lines.get("reason")?;
        let generation = |key| match lines.get(key) {
            Some(text) => text.parse().map(Some).ok(),
            None => Some(None),
        };
        let extents = lines.all("extent").take(EXTENTS_MAX).map(|extent| {
            let (offset, len) = extent.split_once(' ')?;
            Extent::new(offset.parse().ok()?, len.parse().ok()?)
        });
        let mended = match lines.get("mended") {
            Some(text) => {
                let (ms, tip) = text.split_once(' ')?;
                Some((ms.parse().ok()?, tip.parse().ok()?))
            }
            None => None,
        };
        Some(Self {
            reason: Reason::all().find(|reason| reason.as_str() == word)?,
            detail: lines.get("detail")?.to_owned(),
            source: lines.get("source")?.to_owned(),
            target: lines.get("target")?.to_owned(),
            base: generation("base")?,
            tip: generation("tip")?,
            extents: extents.collect::<Option<_>>()?,
            chunks: lines.number("chunks")?,
            first_ms: lines.number("first")?,
            last_ms: lines.number("last")?,
            count: lines.number("count")?,
            mended,
            acknowledged_ms: lines.number("acknowledged"),
        })
    }
}

/// The incidents of this machine.
#[derive(Clone, Debug)]
pub struct Incidents {
    dir: PathBuf,
}

impl Incidents {
    /// Those in this folder, which need not exist yet.
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Keeps one, and returns its name. One that was found before is open again.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn keep(&self, incident: &Incident) -> Result<String, IncidentError> {
        let name = incident.name();
        let old = self.path(&name[..SHORT_DIGITS]);
        let _lock = self.lock()?;
        // One that cannot be read is overwritten by what is known.
        let before = |path: &Path| self.read(path).unwrap_or(None);
        let now = before(&self.path(&name));
        // What it was called earlier may be another one.
        let earlier = before(&old).filter(|earlier| earlier.is_same(incident));
        let mut kept = incident.clone();
        for before in now.iter().chain(&earlier) {
            kept.first_ms = kept.first_ms.min(before.first_ms);
            kept.count = kept.count.saturating_add(before.count);
        }
        self.write(&name, &kept)?;
        if earlier.is_some() {
            fs::remove_file(&old).map_err(|error| failed(&old, error))?;
        }
        Ok(name)
    }

    /// Notes on all incidents of this source and target that the target was made equal to its
    /// source again. What a killed process has left unfinished in the folder is removed.
    ///
    /// # Errors
    /// As of [`all`](Self::all), or what the operating system says.
    pub fn mend(
        &self,
        source: &str,
        target: &str,
        now_ms: u64,
        tip: Generation,
    ) -> Result<(), IncidentError> {
        if self.dir.exists() {
            tidy(&self.dir).map_err(|error| failed(&self.dir, error))?;
        }
        if self.all()?.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        for (name, incident) in self.all()? {
            if incident.source == source && incident.target == target && incident.mended.is_none() {
                self.write(&name, &Incident { mended: Some((now_ms, tip)), ..incident })?;
            }
        }
        Ok(())
    }

    /// Notes that a person has seen one, of which the first digits of its name are enough; returns it
    /// with its name.
    ///
    /// # Errors
    /// That there is none of this name, or several, or what the operating system says.
    pub fn acknowledge(
        &self,
        name: &str,
        now_ms: u64,
    ) -> Result<(String, Incident), IncidentError> {
        let none = || IncidentError::None(name.to_owned());
        let is_name = (SHORT_DIGITS..=NAME_DIGITS).contains(&name.len())
            && name.bytes().all(|c| c.is_ascii_hexdigit());
        if !is_name || self.all()?.is_empty() {
            return Err(none());
        }
        let _lock = self.lock()?;
        let mut found = self.all()?;
        found.retain(|(whole, _)| whole.starts_with(name));
        // A short name of an earlier version is whole.
        if found.iter().any(|(whole, _)| whole == name) {
            found.retain(|(whole, _)| whole == name);
        }
        if found.len() > 1 {
            return Err(IncidentError::Ambiguous(name.to_owned()));
        }
        let (name, incident) = found.pop().ok_or_else(none)?;
        let seen =
            Incident { acknowledged_ms: incident.acknowledged_ms.or(Some(now_ms)), ..incident };
        self.write(&name, &seen)?;
        Ok((name, seen))
    }

    /// All of them, with their names, the oldest first.
    ///
    /// # Errors
    /// What the operating system says, or that a file is no incident.
    pub fn all(&self) -> Result<Vec<(String, Incident)>, IncidentError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.dir, error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| failed(&self.dir, error))?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
            let is_one = path.extension().is_some_and(|end| end == END);
            if let (true, Some(name)) = (is_one, name)
                && let Some(incident) = self.read(&path)?
            {
                all.push((name, incident));
            }
        }
        all.sort_by(|a, b| (a.1.first_ms, &a.0).cmp(&(b.1.first_ms, &b.0)));
        Ok(all)
    }

    /// Holds off whoever else changes incidents.
    fn lock(&self) -> Result<fs::File, IncidentError> {
        lock_dir(&self.dir).map_err(|error| failed(&self.dir, error))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{END}"))
    }

    fn read(&self, path: &Path) -> Result<Option<Incident>, IncidentError> {
        let bytes = read_small(path).map_err(|error| failed(path, error))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let incident = str::from_utf8(&bytes).ok().and_then(Incident::decode);
        let damaged = || IncidentError::Damaged { path: path.display().to_string() };
        incident.map(Some).ok_or_else(damaged)
    }

    fn write(&self, name: &str, incident: &Incident) -> Result<(), IncidentError> {
        let path = self.path(name);
        replace(&self.dir, &path, incident.encode().as_bytes()).map_err(|e| failed(&path, e))
    }
}

fn failed(path: &Path, source: io::Error) -> IncidentError {
    IncidentError::Io { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn incident(source: &str) -> Incident {
        Incident {
            reason: Reason::AuditMismatch,
            detail: "two\nlines".into(),
            source: source.into(),
            target: "vm@host:1".into(),
            base: Some(Generation::zfs(1)),
            tip: None,
            extents: Extent::new(65536, 65536).into_iter().collect(),
            chunks: 7,
            first_ms: 1000,
            last_ms: 1000,
            count: 1,
            mended: None,
            acknowledged_ms: None,
        }
    }

    #[test]
    fn what_is_kept_is_there_until_it_is_acknowledged_and_again_when_it_comes_again() {
        let dir = TempDir::new().unwrap();
        let incidents = Incidents::new(dir.path().join("a/b"));
        assert_eq!(incidents.all().unwrap(), []);
        let name = incidents.keep(&incident("zfs:tank/vm")).unwrap();
        let other = incidents.keep(&incident("zfs:tank/other")).unwrap();
        let all = incidents.all().unwrap();
        let detail = "two\u{fffd}lines".to_owned();
        assert_eq!(all.len(), 2);
        let kept = Incident { detail, ..incident("zfs:tank/vm") };
        assert!(all.contains(&(name.clone(), kept)));
        assert!(incidents.acknowledge(&name, 2000).unwrap().1.acknowledged_ms == Some(2000));
        // Again, it is when it was seen first.
        assert!(incidents.acknowledge(&name, 3000).unwrap().1.acknowledged_ms == Some(2000));
        incidents.mend("zfs:tank/vm", "vm@host:1", 4000, Generation::zfs(2)).unwrap();
        let later = Incident { first_ms: 5000, last_ms: 5000, ..incident("zfs:tank/vm") };
        let find = |wanted: &str| {
            let all = incidents.all().unwrap().into_iter();
            all.filter(|(name, _)| name == wanted).map(|(_, found)| found).next().unwrap()
        };
        assert_eq!(find(&name).mended, Some((4000, Generation::zfs(2))));
        assert_eq!(find(&other).mended, None);
        assert_eq!(incidents.keep(&later).unwrap(), name);
        let again = find(&name);
        assert!(again.is_open() && again.mended.is_none());
        assert_eq!((again.first_ms, again.last_ms, again.count), (1000, 5000, 2));
        for bad in ["", "00000000", "../../x", "0123456g"] {
            assert!(incidents.acknowledge(bad, 1).is_err(), "{bad}");
        }
    }

    /// The name is in the folders of others, and in their scripts.
    #[test]
    fn names_are_pinned_and_have_128_bits() {
        let one = incident("zfs:tank/vm");
        assert_eq!(one.name(), "5562ee96108501239c074c9be8e16db7");
        let later = Incident { last_ms: 7, count: 9, ..one.clone() };
        assert_eq!(later.name(), one.name());
        let other = Incident { base: None, ..one.clone() };
        assert_ne!(other.name(), one.name());
    }

    #[test]
    fn an_incident_of_an_earlier_version_takes_its_whole_name() {
        let dir = TempDir::new().unwrap();
        let incidents = Incidents::new(dir.path().to_owned());
        let one = Incident { detail: "x".into(), count: 4, first_ms: 7, ..incident("a") };
        let name = one.name();
        let short = &name[..SHORT_DIGITS];
        let old = dir.path().join(format!("{short}.incident"));
        fs::write(&old, one.encode()).unwrap();
        assert_eq!(incidents.all().unwrap(), [(short.to_owned(), one.clone())]);
        assert_eq!(incidents.acknowledge(short, 5).unwrap().0, short);
        // Found again, it is open again under its whole name, and found by the short one.
        assert_eq!(incidents.keep(&incident("a")).unwrap(), name);
        let all = incidents.all().unwrap();
        assert_eq!((all.len(), &all[0].0, all[0].1.count, all[0].1.first_ms), (1, &name, 5, 7));
        assert!(all[0].1.is_open() && !old.exists());
        assert_eq!(incidents.acknowledge(short, 6).unwrap().0, name);
        // Another finding whose name begins alike is left as it is.
        fs::write(&old, incident("b").encode()).unwrap();
        incidents.keep(&incident("a")).unwrap();
        assert_eq!(incidents.all().unwrap().len(), 2);
        // Of a beginning that several have none is acknowledged.
        let twin = format!("{}{}", &name[..9], "f".repeat(NAME_DIGITS - 9));
        fs::write(dir.path().join(format!("{twin}.incident")), incident("c").encode()).unwrap();
        let error = incidents.acknowledge(&name[..9], 8).unwrap_err();
        assert!(matches!(error, IncidentError::Ambiguous(_)), "{error}");
    }

    /// Whoever finds, mends and acknowledges at the same time, nothing of it is lost.
    #[test]
    fn what_is_changed_at_the_same_time_is_all_there() {
        const THREADS: u64 = 4;
        const TIMES: u64 = 25;
        let dir = TempDir::new().unwrap();
        let incidents = Incidents::new(dir.path().to_owned());
        let (one, other) = (incident("a"), incident("b"));
        incidents.keep(&other).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (incidents, one, other) = (incidents.clone(), &one, &other);
                scope.spawn(move || {
                    for time in 0..TIMES {
                        incidents.keep(one).unwrap();
                        if thread == 0 && time == TIMES / 2 {
                            incidents.acknowledge(&other.name(), 5).unwrap();
                        }
                        incidents.mend("b", "vm@host:1", 6, Generation::zfs(2)).unwrap();
                    }
                });
            }
        });
        let all = incidents.all().unwrap();
        let find =
            |source: &str| all.iter().find(|(_, one)| one.source == source).unwrap().1.clone();
        assert_eq!(find("a").count, THREADS * TIMES);
        let other = find("b");
        assert_eq!((other.acknowledged_ms, other.mended), (Some(5), Some((6, Generation::zfs(2)))));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = TempDir::new().unwrap();
        let incidents = Incidents::new(dir.path().to_owned());
        let name = incidents.keep(&incident("a")).unwrap();
        let path = dir.path().join(format!("{name}.incident"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[30] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = incidents.all().unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        // What is found again is worth more than what cannot be read.
        incidents.keep(&incident("a")).unwrap();
        assert_eq!(incidents.all().unwrap().len(), 1);
    }
}
