//! Reads what `zfs list -Hp` and `zfs get -Hp` print.
//!
//! `zfs list` prints a line for each data set, snapshot or bookmark, with the columns that
//! were asked for; `zfs get` prints a line for each property of each. Both separate by tabs,
//! which no name holds, and print `-` for what a thing does not have. Old versions know fewer
//! properties and only `zfs get -p`: their lists print guids rounded, which is of no use.
//!
//! A line that does not fit is an error, and so is a missing one where that can be seen:
//! what is not seen here could be overwritten or destroyed.

use thiserror::Error;

use crate::name::{DatasetName, NameError, PointKind, PointName};

/// What to ask `zfs list -Hp -t snapshot,bookmark -o` for, for [`parse_points`].
pub const POINT_COLUMNS: &str = "name,guid,createtxg,creation,userrefs";

/// What to ask `zfs get -Hp -o name,property,value` for, for [`parse_points_got`]. All
/// versions since that of zfs-fuse (pool version 23) know these.
pub const POINT_PROPERTIES: &str = POINT_COLUMNS.split_at("name,".len()).1;

/// What to ask `zfs list -Hp -t filesystem,volume -o` for, for [`parse_datasets`].
pub const DATASET_COLUMNS: &str = "name,type,guid,volsize,volblocksize,origin,written,\
                                   encryption,encryptionroot,keystatus,receive_resume_token";

/// The same without the name, to ask `zfs get -Hp -o name,property,value` for.
pub const DATASET_PROPERTIES: &str = DATASET_COLUMNS.split_at("name,".len()).1;

/// What zfs-fuse (pool version 23) knows of these. What is absent is `None`, which is true of
/// encryption and resume tokens there: it has neither.
pub const DATASET_PROPERTIES_V23: &str = "type,guid,volsize,volblocksize,origin";

/// How much of a line is quoted, in characters.
const QUOTED: usize = 300;

/// Why the output of `zfs` cannot be relied on.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ListingError {
    /// It does not end with a whole line.
    #[error("the output of `{command}` ends within the line {line:?}: run it again")]
    Cut {
        /// Which output.
        command: &'static str,
        /// The last line, or its beginning.
        line: String,
    },
    /// A line has another number of columns.
    #[error(
        "a line of `{command}` has {found} columns and not {expected}: {line:?}; check that this \
         `zfs` is OpenZFS or zfs-fuse"
    )]
    Columns {
        /// Which output.
        command: &'static str,
        /// How many were asked for.
        expected: usize,
        /// How many there are.
        found: usize,
        /// The line, or its beginning.
        line: String,
    },
    /// A property is none that could be there.
    #[error(
        "`{command}` printed a line with a bad {property}: {line:?}; check that this `zfs` is \
         OpenZFS or zfs-fuse"
    )]
    Value {
        /// Which output.
        command: &'static str,
        /// Which property.
        property: String,
        /// The line, or its beginning.
        line: String,
    },
    /// A name is none.
    #[error("`{command}` printed a line with a bad name: {line:?}")]
    Name {
        /// Which output.
        command: &'static str,
        /// The line, or its beginning.
        line: String,
        /// Why.
        #[source]
        source: NameError,
    },
    /// A property was asked for and is not there, or is there twice.
    #[error("`{command}` printed the {property} of {name:?} {times} times and not once")]
    Times {
        /// Which output.
        command: &'static str,
        /// Which property.
        property: &'static str,
        /// Whose.
        name: String,
        /// How often it is there.
        times: usize,
    },
}

/// A snapshot or a bookmark.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its name, with the data set it is of.
    pub name: PointName,
    /// Its identity, which a bookmark shares with its snapshot.
    pub guid: u64,
    /// In which transaction group of its pool it was made: this orders the points of a data
    /// set, whatever the clock said. A bookmark has that of its snapshot.
    pub createtxg: u64,
    /// When it was made by the clock, in seconds since 1970.
    pub creation: u64,
    /// How many holds are on it; `None` for a bookmark, which cannot be held.
    pub user_refs: Option<u64>,
}

impl Point {
    /// Whether it is a snapshot, which can be sent.
    pub const fn is_snapshot(&self) -> bool {
        matches!(self.name.kind(), PointKind::Snapshot)
    }

    /// Whether someone asked that it is kept, or may have asked.
    pub const fn is_held(&self) -> bool {
        match self.user_refs {
            Some(holds) => holds > 0,
            None => self.is_snapshot(),
        }
    }
}

/// What a data set is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DatasetKind {
    /// A file system.
    FileSystem,
    /// A volume, also called zvol.
    Volume,
}

/// Whether an encrypted data set can be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyStatus {
    /// It is not encrypted.
    None,
    /// The key is loaded.
    Available,
    /// The key is not loaded.
    Unavailable,
}

/// A file system or a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dataset {
    /// Its name.
    pub name: DatasetName,
    /// What it is.
    pub kind: DatasetKind,
    /// Its identity.
    pub guid: u64,
    /// Size of a volume, in bytes.
    pub volsize: Option<u64>,
    /// Block size of a volume, in bytes.
    pub volblocksize: Option<u64>,
    /// The snapshot that it is a clone of.
    pub origin: Option<PointName>,
    /// Bytes written since its newest snapshot; `None` where that is not known.
    pub written: Option<u64>,
    /// The cipher; `None` if it is not encrypted.
    pub encryption: Option<String>,
    /// The data set whose key it is encrypted with.
    pub encryption_root: Option<DatasetName>,
    /// Whether its key is loaded.
    pub key: KeyStatus,
    /// Where `zfs receive -s` was cut off. It may be parsed as a [`ResumeToken`].
    ///
    /// [`ResumeToken`]: crate::ResumeToken
    pub receive_resume_token: Option<String>,
}

/// Reads the output of `zfs list -Hp -o` [`POINT_COLUMNS`].
pub fn parse_points(text: &str) -> Result<Vec<Point>, ListingError> {
    list(text, POINT_COLUMNS)?.iter().map(Row::point).collect()
}

/// Reads the output of `zfs list -Hp -o` [`DATASET_COLUMNS`].
pub fn parse_datasets(text: &str) -> Result<Vec<Dataset>, ListingError> {
    list(text, DATASET_COLUMNS)?.iter().map(Row::dataset).collect()
}

/// Reads the output of `zfs get -Hp -o name,property,value` with [`POINT_PROPERTIES`]. Data
/// sets in it are passed over: old versions cannot leave them out.
pub fn parse_points_got(text: &str) -> Result<Vec<Point>, ListingError> {
    let rows = get(text, POINT_PROPERTIES)?;
    rows.iter().filter(|row| row.is_point()).map(Row::point).collect()
}

/// Reads the output of `zfs get -Hp -o name,property,value` with `properties`, which are
/// [`DATASET_PROPERTIES`] or [`DATASET_PROPERTIES_V23`]. Snapshots and bookmarks in it are
/// passed over: old versions cannot leave them out.
pub fn parse_datasets_got(
    text: &str,
    properties: &'static str,
) -> Result<Vec<Dataset>, ListingError> {
    let rows = get(text, properties)?;
    rows.iter().filter(|row| !row.is_point()).map(Row::dataset).collect()
}

const LIST: &str = "zfs list -Hp";
const GET: &str = "zfs get -Hp";

/// The lines of an output, each of them whole.
fn lines<'a>(text: &'a str, command: &'static str) -> Result<Vec<&'a str>, ListingError> {
    // A last line without its end may be half a number.
    match text.strip_suffix('\n') {
        Some(text) => Ok(text.split('\n').collect()),
        None if text.is_empty() => Ok(Vec::new()),
        None => {
            let line = quote(text.rsplit('\n').next().unwrap_or(text));
            Err(ListingError::Cut { command, line })
        }
    }
}

fn quote(line: &str) -> String {
    line.chars().take(QUOTED).collect()
}

/// The fields of a line, of which there must be so many.
fn fields<'a>(
    line: &'a str,
    expected: usize,
    command: &'static str,
) -> Result<Vec<&'a str>, ListingError> {
    let found = line.split('\t').count();
    if found != expected {
        return Err(ListingError::Columns { command, expected, found, line: quote(line) });
    }
    Ok(line.split('\t').collect())
}

/// What is printed of one thing.
struct Row<'a> {
    command: &'static str,
    /// Where it is printed, or the line that begins with it.
    line: &'a str,
    name: &'a str,
    properties: Vec<(&'static str, &'a str)>,
}

fn list<'a>(text: &'a str, columns: &'static str) -> Result<Vec<Row<'a>>, ListingError> {
    let count = columns.split(',').count();
    let row = |line: &'a str| {
        let fields = fields(line, count, LIST)?;
        let properties: Vec<_> = columns.split(',').zip(fields).collect();
        // The name is the first of all columns.
        let name = properties.first().map_or("", |property| property.1);
        Ok(Row { command: LIST, line, name, properties })
    };
    lines(text, LIST)?.into_iter().map(row).collect()
}

fn get<'a>(text: &'a str, properties: &'static str) -> Result<Vec<Row<'a>>, ListingError> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    for line in lines(text, GET)? {
        let [name, property, value] = fields(line, 3, GET)?[..] else { continue };
        let Some(property) = properties.split(',').find(|known| *known == property) else {
            let property = quote(property);
            return Err(ListingError::Value { command: GET, property, line: quote(line) });
        };
        match rows.last_mut().filter(|row| row.name == name) {
            Some(row) => row.properties.push((property, value)),
            None => {
                let properties = vec![(property, value)];
                rows.push(Row { command: GET, line, name, properties });
            }
        }
    }
    for row in &rows {
        for property in properties.split(',') {
            let times = row.properties.iter().filter(|known| known.0 == property).count();
            if times != 1 {
                let name = quote(row.name);
                return Err(ListingError::Times { command: GET, property, name, times });
            }
        }
    }
    Ok(rows)
}

impl Row<'_> {
    fn is_point(&self) -> bool {
        self.name.contains(['@', '#'])
    }

    /// A property as printed; `None` if this thing does not have it, or it was not asked for.
    fn get(&self, property: &str) -> Option<&str> {
        let (_, value) = self.properties.iter().find(|known| known.0 == property)?;
        Some(*value).filter(|value| *value != "-")
    }

    fn bad(&self, property: &str) -> ListingError {
        let (command, property) = (self.command, property.to_owned());
        // The line of `zfs get` that has it need not be the first of this thing.
        let line = match self.properties.iter().find(|known| known.0 == property) {
            Some((_, value)) if command == GET => {
                quote(&format!("{}\t{property}\t{value}", self.name))
            }
            _ => quote(self.line),
        };
        ListingError::Value { command, property, line }
    }

    fn optional(&self, property: &str) -> Result<Option<u64>, ListingError> {
        let Some(text) = self.get(property) else { return Ok(None) };
        // The library would take a sign.
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.map(Some).ok_or_else(|| self.bad(property))
    }

    fn number(&self, property: &str) -> Result<u64, ListingError> {
        self.optional(property)?.ok_or_else(|| self.bad(property))
    }

    /// A guid, none of which is zero: that stands for none.
    fn guid(&self) -> Result<u64, ListingError> {
        let guid = self.number("guid")?;
        if guid == 0 { Err(self.bad("guid")) } else { Ok(guid) }
    }

    fn named<T: std::str::FromStr<Err = NameError>>(&self, name: &str) -> Result<T, ListingError> {
        let (command, line) = (self.command, quote(self.line));
        name.parse().map_err(|source| ListingError::Name { command, line, source })
    }

    fn point(&self) -> Result<Point, ListingError> {
        Ok(Point {
            name: self.named(self.name)?,
            guid: self.guid()?,
            createtxg: self.number("createtxg")?,
            creation: self.number("creation")?,
            user_refs: self.optional("userrefs")?,
        })
    }

    fn dataset(&self) -> Result<Dataset, ListingError> {
        let kind = match self.get("type") {
            Some("filesystem") => DatasetKind::FileSystem,
            Some("volume") => DatasetKind::Volume,
            _ => return Err(self.bad("type")),
        };
        let key = match self.get("keystatus") {
            None | Some("none") => KeyStatus::None,
            Some("available") => KeyStatus::Available,
            Some("unavailable") => KeyStatus::Unavailable,
            Some(_) => return Err(self.bad("keystatus")),
        };
        let dataset = Dataset {
            name: self.named(self.name)?,
            kind,
            guid: self.guid()?,
            volsize: self.optional("volsize")?,
            volblocksize: self.optional("volblocksize")?,
            origin: self.get("origin").map(|name| self.named(name)).transpose()?,
            written: self.optional("written")?,
            encryption: self.get("encryption").filter(|name| *name != "off").map(str::to_owned),
            encryption_root: self.get("encryptionroot").map(|name| self.named(name)).transpose()?,
            key,
            receive_resume_token: self.get("receive_resume_token").map(str::to_owned),
        };
        if kind == DatasetKind::Volume {
            // Whoever asks for a volume relies on these.
            self.number("volsize")?;
            self.number("volblocksize")?;
        }
        Ok(dataset)
    }
}

#[cfg(test)]
mod tests;
