//! Names of data sets, snapshots and bookmarks, as ZFS allows them.
//!
//! Names lead to things; they never say that a thing is the same as before. Guids do that.

use std::{fmt, str::FromStr};

/// Longest name with its data set, in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// Why a text is no name that ZFS would take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no name of a ZFS {what}: {why}")]
pub struct NameError {
    text: String,
    what: &'static str,
    why: String,
}

/// The full name of a file system or volume: `pool/path/to/it`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatasetName(String);

impl DatasetName {
    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool it is in.
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The data set above; `None` for a pool's own.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// What comes after `root` and its slash, empty if this is `root`; `None` if it is not
    /// below it.
    pub fn below<'a>(&'a self, root: &Self) -> Option<&'a str> {
        match self.0.strip_prefix(&root.0)? {
            "" => Some(""),
            rest => rest.strip_prefix('/'),
        }
    }

    /// The data set of this path below this one; this one itself where the path is empty.
    pub fn join(&self, path: &str) -> Result<Self, NameError> {
        if path.is_empty() { Ok(self.clone()) } else { format!("{self}/{path}").parse() }
    }

    /// The snapshot of this data set with this name after the `@`.
    pub fn snapshot(&self, name: &str) -> Result<PointName, NameError> {
        format!("{self}@{name}").parse()
    }

    /// The bookmark of this data set with this name after the `#`.
    pub fn bookmark(&self, name: &str) -> Result<PointName, NameError> {
        format!("{self}#{name}").parse()
    }
}

impl FromStr for DatasetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail = |why| NameError { text: text.to_owned(), what: "data set", why };
        check_length(text).map_err(fail)?;
        text.split('/').try_for_each(check_component).map_err(fail)?;
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(fail("a pool's name starts with a letter".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a data set's past can be kept as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PointKind {
    /// All of it, `@name`.
    Snapshot,
    /// Only when it was, `#name`: enough to start an increment from.
    Bookmark,
}

/// The full name of a snapshot or bookmark: `pool/path@name` or `pool/path#name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PointName {
    dataset: DatasetName,
    kind: PointKind,
    name: String,
}

impl PointName {
    /// The data set it is of.
    pub const fn dataset(&self) -> &DatasetName {
        &self.dataset
    }

    /// Which of the two it is.
    pub const fn kind(&self) -> PointKind {
        self.kind
    }

    /// Its name after the `@` or `#`.
    pub fn short(&self) -> &str {
        &self.name
    }
}

impl FromStr for PointName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail = |why| NameError { text: text.to_owned(), what: "snapshot or bookmark", why };
        check_length(text).map_err(fail)?;
        let Some(at) = text.find(['@', '#']) else {
            return Err(fail("it has neither @ nor #".to_owned()));
        };
        let (dataset, name) = (&text[..at], &text[at + 1..]);
        check_component(name).map_err(fail)?;
        let dataset = dataset.parse().map_err(|error: NameError| fail(error.why))?;
        let snapshot = text.as_bytes()[at] == b'@';
        let kind = if snapshot { PointKind::Snapshot } else { PointKind::Bookmark };
        Ok(Self { dataset, kind, name: name.to_owned() })
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.kind {
            PointKind::Snapshot => '@',
            PointKind::Bookmark => '#',
        };
        write!(f, "{}{mark}{}", self.dataset, self.name)
    }
}

fn check_length(text: &str) -> Result<(), String> {
    match text.len() {
        0..=NAME_LEN_MAX => Ok(()),
        len => Err(format!("it has {len} bytes, and ZFS takes {NAME_LEN_MAX}")),
    }
}

/// What stands between slashes, or after the mark. `%` is ZFS's own, in names that it makes.
fn check_component(component: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.: %".contains(c);
    match component.chars().find(|c| !legal(*c)) {
        _ if component.is_empty() => Err("a part of it is empty".to_owned()),
        _ if component == "." || component == ".." => Err(format!("{component} is no part")),
        Some(bad) => Err(format!("{bad:?} is not allowed in it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_as_they_are() {
        for text in ["tank", "tank/vm 1", "tank/a.b-c_d:e/f", "t/%recv", "tank/ x "] {
            let name: DatasetName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        let text = "tank/vm 1@autosnap_2023-11-10_17:00:01_hourly now";
        let point: PointName = text.parse().unwrap();
        assert_eq!(point.to_string(), text);
        assert_eq!(point.dataset().as_str(), "tank/vm 1");
        assert_eq!(point.short(), "autosnap_2023-11-10_17:00:01_hourly now");
        assert_eq!(point.kind(), PointKind::Snapshot);
        let mark: PointName = "tank#a:b".parse().unwrap();
        assert_eq!((mark.kind(), mark.to_string()), (PointKind::Bookmark, "tank#a:b".to_owned()));
    }

    #[test]
    fn what_zfs_would_refuse_is_refused() {
        for (text, says) in [
            ("", "empty"),
            ("/tank", "empty"),
            ("tank/", "empty"),
            ("tank//a", "empty"),
            ("tank/..", ".. is no part"),
            ("1tank", "starts with a letter"),
            ("-rf/a", "starts with a letter"),
            ("tank/a@b", "'@' is not allowed"),
            ("tank/ä", "'ä' is not allowed"),
            ("tank/a\tb", "'\\t' is not allowed"),
        ] {
            let error = text.parse::<DatasetName>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!("a".repeat(255).parse::<DatasetName>().is_ok());
        assert!("a".repeat(256).parse::<DatasetName>().is_err());
        for text in ["tank", "tank@", "@a", "tank@a@b", "tank@a#b", "tank#a@b", "tank@a/b"] {
            assert!(text.parse::<PointName>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_below_a_root() {
        let name = |text: &str| text.parse::<DatasetName>().unwrap();
        let root = name("tank/vm");
        assert_eq!(name("tank/vm/a/b").below(&root), Some("a/b"));
        assert_eq!(root.below(&root), Some(""));
        assert_eq!(name("tank/vm1").below(&root), None);
        assert_eq!(name("tank").below(&root), None);
        assert_eq!(root.join("a/b").unwrap(), name("tank/vm/a/b"));
        assert_eq!(root.join("").unwrap(), root);
        assert_eq!(root.parent(), Some(name("tank")));
        assert_eq!((name("tank").parent(), root.pool()), (None, "tank"));
        assert_eq!(root.snapshot("x").unwrap().to_string(), "tank/vm@x");
        assert!(root.snapshot("x@y").is_err() && root.bookmark("").is_err());
    }
}
