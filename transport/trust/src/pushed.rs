//! What was pushed where: of each target the source that it is a replica of.
//!
//! Each target has a file `NAME.pushed` in a folder, where the name is made from the target: a
//! record of text, see [`crate::record`]. It is written anew and put in its place at once. Nothing is
//! decided by it but what moves, and whether a target that holds nothing is one that is gone: for
//! that, a file that is no such record is an error, and not none.

use std::{fs, io, path::PathBuf};

use driftline_extent::Generation;
use thiserror::Error;

use crate::{
    record::{Lines, Record},
    storage::{read_small, replace},
};

pub(crate) const TITLE: &str = "driftline pushed 1";
const END: &str = "pushed";

/// A source that has arrived at a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// What was pushed, as it is written on the command line.
    pub source: String,
    /// What that leads to, if it is a link or another spelling.
    pub leads_to: Option<String>,
    /// Where it is, in words that mean the same from any folder.
    pub target: String,
    /// When it arrived last, in milliseconds since 1970.
    pub last_ms: u64,
    /// What the target held then; `None` in records of before this was kept.
    pub generation: Option<Generation>,
    /// Whether it went as a stream, to a target that is ZFS itself.
    pub as_stream: bool,
}

/// Why it is not known what a target is a replica of.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PushedError {
    /// The record cannot be read.
    #[error("{} cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file is no such record, or that of another target.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

/// What this machine has pushed.
#[derive(Clone, Debug)]
pub struct Pushes {
    dir: PathBuf,
}

impl Pushed {
    pub(crate) fn encode(&self) -> String {
        Record::new(TITLE)
            .line("source", &self.source)
            .option("leads-to", self.leads_to.as_ref())
            .line("target", &self.target)
            .line("last", self.last_ms)
            .option("generation", self.generation)
            .option("as", self.as_stream.then_some("stream"))
            .finish()
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        let lines = Lines::parse(text, TITLE)?;
        let [source, target] = ["source", "target"].map(|key| lines.get(key).map(str::to_owned));
        Some(Self {
            source: source?,
            leads_to: lines.get("leads-to").map(str::to_owned),
            target: target?,
            last_ms: lines.number("last")?,
            generation: lines.get("generation").and_then(|text| text.parse().ok()),
            as_stream: lines.get("as") == Some("stream"),
        })
    }
}

impl Pushes {
    /// Those in this folder, which need not exist yet.
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Keeps one, in the place of what its target was before.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn keep(&self, pushed: &Pushed) -> io::Result<()> {
        replace(&self.dir, &self.path(&pushed.target), pushed.encode().as_bytes())
    }

    /// What this target is a replica of; `None` if that is not known.
    ///
    /// # Errors
    /// That there is a record which cannot be read or believed, or may be one.
    pub fn of(&self, target: &str) -> Result<Option<Pushed>, PushedError> {
        let path = self.path(target);
        match read_small(&path) {
            Ok(None) => Ok(None),
            // Below what is no folder there is no record, and none can be kept, which is said.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Ok(Some(bytes)) => match decode(&bytes).filter(|pushed| pushed.target == target) {
                Some(pushed) => Ok(Some(pushed)),
                None => Err(PushedError::Damaged(path)),
            },
            Err(error) => Err(PushedError::Unreadable(path, error)),
        }
    }

    /// All of them that are whole, in no order.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn all(&self) -> io::Result<Vec<Pushed>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == END) {
                all.extend(read_small(&path)?.and_then(|bytes| decode(&bytes)));
            }
        }
        Ok(all)
    }

    fn path(&self, target: &str) -> PathBuf {
        let name = blake3::hash(target.as_bytes()).to_hex();
        self.dir.join(format!("{}.{END}", &name[..16]))
    }
}

fn decode(bytes: &[u8]) -> Option<Pushed> {
    str::from_utf8(bytes).ok().and_then(Pushed::decode)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn pushed(source: &str, target: &str, last_ms: u64) -> Pushed {
        let generation = Some(Generation::zfs(last_ms));
        let (source, target) = (source.into(), target.into());
        let as_stream = last_ms.is_multiple_of(2);
        let leads_to = as_stream.then(|| "file:/b".to_owned());
        Pushed { source, leads_to, target, last_ms, generation, as_stream }
    }

    #[test]
    fn a_record_of_before_generations_were_kept_is_read() {
        let old = Record::new(TITLE).line("source", "zfs:t/a").line("target", "x@h:1");
        let old = Pushed::decode(&old.line("last", 7).finish()).unwrap();
        assert_eq!(
            old,
            Pushed { generation: None, as_stream: false, ..pushed("zfs:t/a", "x@h:1", 7) }
        );
    }

    #[test]
    fn the_last_source_of_each_target_is_kept() {
        let dir = TempDir::new().unwrap();
        let pushes = Pushes::new(dir.path().join("a/b"));
        assert_eq!(pushes.all().unwrap(), []);
        assert_eq!(pushes.of("x@h:1").unwrap(), None);
        let [first, second, other] =
            [("zfs:t/a", "x@h:1", 1), ("zfs:t/b", "x@h:1", 2), ("zfs:t/a", "y@h:1", 3)]
                .map(|(source, target, ms)| pushed(source, target, ms));
        [&first, &second, &other].into_iter().for_each(|one| pushes.keep(one).unwrap());
        assert_eq!(pushes.of("x@h:1").unwrap(), Some(second.clone()));
        let mut all = pushes.all().unwrap();
        all.sort_by_key(|one| one.last_ms);
        assert_eq!(all, [second, other]);
    }

    #[test]
    fn what_is_damaged_is_an_error_and_hides_no_other() {
        let dir = TempDir::new().unwrap();
        let pushes = Pushes::new(dir.path().to_owned());
        let (one, other) = (pushed("zfs:t/a", "x@h:1", 1), pushed("zfs:t/a", "y@h:1", 2));
        [&one, &other].into_iter().for_each(|one| pushes.keep(one).unwrap());
        let path = pushes.path("x@h:1");
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[25] ^= 1;
        for bytes in [&whole[..whole.len() - 1], &changed, &[0xff], &[]] {
            fs::write(&path, bytes).unwrap();
            let error = pushes.of("x@h:1").unwrap_err().to_string();
            assert_eq!(error, format!("{} is damaged", path.display()));
            assert_eq!(pushes.all().unwrap(), std::slice::from_ref(&other));
        }
        // What an interrupted write leaves is none, and another target's record is not believed.
        let unfinished = path.with_extension("new-7");
        fs::write(&unfinished, &whole).unwrap();
        fs::copy(pushes.path("y@h:1"), &path).unwrap();
        assert!(matches!(pushes.of("x@h:1"), Err(PushedError::Damaged(_))));
        assert!(unfinished.exists());
        pushes.keep(&one).unwrap();
        assert_eq!(pushes.of("x@h:1").unwrap(), Some(one));
        assert!(!unfinished.exists(), "the next write has left what an interrupted one left");
    }
}
