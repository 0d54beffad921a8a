//! The index: where, over all replicas of a target that name chunks under one key, a chunk of
//! some name stands. The only place that knows redb.
//!
//! It is a shortcut and no book. What it says is read again and hashed before it is used, and
//! everything in it can be made anew from the replicas' own lists of ids. So it is written after
//! a commit and not with it, and whatever is wrong with it is said and never fails a session: a
//! file that is damaged is put aside, to be made anew. A file that is no database is left alone:
//! somebody may have named the wrong one, and that one may be all that there is of a volume.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `chunk key` | 32 bytes |
//! | `replicas` | number | replica id (16 bytes), root at which it was listed (32), path of its volume |
//! | `chunks` | first 16 bytes of an id | number of a replica, index of a chunk |
//! | `places` | number of a replica, index of a chunk | first 16 bytes of its id |
//!
//! `places` says what `chunks` has to forget when a chunk changes. Of several places with one
//! content the first stays listed. An increment is one transaction; it is taken in runs of
//! [`RUN_LEN`] chunks, each sorted, which need 16 MiB of memory besides redb's cache of
//! [`CACHE_LEN`] bytes.

mod view;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, OpenOptionsExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use driftline_extent::{ChunkId, ReplicaId, Root, chunk_count};
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    TableError, WriteTransaction, backends::FileBackend,
};

pub(crate) use self::view::IndexView;
use crate::{
    FileDisk, Part, Problem, Update,
    ids::IdList,
    other_replicas::Entry,
    own::check_own,
    proven_file::ProvenFile,
    state::{Slots, State},
};

/// The beginning of an id: enough to find what is then hashed.
type Prefix = [u8; 16];
/// The number of a replica, and the index of a chunk of it.
type Place = (u32, u64);

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const REPLICAS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("replicas");
const CHUNKS: TableDefinition<'_, Prefix, Place> = TableDefinition::new("chunks");
const PLACES: TableDefinition<'_, Place, Prefix> = TableDefinition::new("places");
const CHUNK_KEY: &str = "chunk key";

/// How a database of redb begins.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// Bits of it that may be wrong in a damaged one.
const FLIPPED_MAX: u32 = 8;

/// Damaged files that are kept beside an index.
const ASIDE_MAX: u32 = 16;

/// Chunks of an increment that are sorted and taken in at a time.
const RUN_LEN: usize = 1 << 17;

/// Bytes of the file that are kept in memory.
const CACHE_LEN: usize = 64 << 20;

/// Places of one content that are looked at for a repair.
const PLACES_MAX: usize = 8;

/// Why an index cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process has it.
    #[error("the index {} is used by another process; stop that first", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// What stands there is no index, and never was one as far as can be told.
    #[error(
        "{} is no index of Driftline: it stays as it is; name another file, or remove this one if \
         nobody needs it",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, made or renamed.
    #[error("the index {} cannot be opened: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The database says no.
    #[error("the index {} cannot be used: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: Box<redb::Error>,
    },
    /// The operating system has no random numbers.
    #[error("no random numbers can be had from the operating system: {0}")]
    Entropy(String),
}

/// An open index, shared by all sessions of a process.
pub struct Index {
    path: PathBuf,
    key: [u8; 32],
    database: Database,
    /// Something was wrong with it: it is left alone from then on.
    broken: AtomicBool,
}

/// A replica that can be listed: its volume, and where its books are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The file or device.
    pub volume: PathBuf,
    /// The directory with its state.
    pub state_dir: PathBuf,
}

impl Index {
    /// Opens the index at `path`. Where there is none, or one that is damaged, which is put
    /// aside, one is made from `replicas`: those that share the key that most of them have.
    pub fn open(path: &Path, replicas: &[Listed]) -> Result<Self, IndexError> {
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::rebuild(path, replicas);
            }
            Err(source) => return Err(IndexError::Open { path: path.to_owned(), source }),
        }
        match Self::open_existing(path) {
            Err(IndexError::Database { source, .. }) => {
                tracing::error!(
                    path = %path.display(), error = %source,
                    "the index is damaged: putting it aside and making it again"
                );
                put_aside(path)?;
                Self::rebuild(path, replicas)
            }
            opened => opened,
        }
    }

    /// Makes the index anew from the books of `replicas`, in place of the one at `path`.
    pub fn rebuild(path: &Path, replicas: &[Listed]) -> Result<Self, IndexError> {
        let failed = |source| IndexError::Open { path: path.to_owned(), source };
        // Nobody may have it open, and it may not be anybody else's.
        if let Err(error @ (IndexError::Busy { .. } | IndexError::Foreign { .. })) =
            Self::open_existing(path)
        {
            return Err(error);
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let books: Vec<_> = replicas.iter().filter_map(read_state).collect();
        let mut keys: HashMap<[u8; 32], usize> = HashMap::new();
        books.iter().for_each(|(_, state)| *keys.entry(state.chunk_key).or_default() += 1);
        let most = keys.into_iter().max_by_key(|(key, count)| (*count, *key));
        let key = match most {
            Some((key, _)) => key,
            None => random_key()?,
        };
        // What was begun and not ended: nothing else has such a name.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".driftline-new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let index = Self::create(&fresh, key)?;
        let mut listed = 0;
        for (replica, state) in books.iter().filter(|(_, state)| state.chunk_key == key) {
            listed += usize::from(index.list(replica, state));
        }
        tracing::info!(
            path = %path.display(), replicas = listed, others = books.len() - listed,
            "made the index from the replicas"
        );
        fs::rename(&fresh, path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), ..index })
    }

    fn create(path: &Path, key: [u8; 32]) -> Result<Self, IndexError> {
        // Whoever has the key in it can guess at content by its ids.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path);
        let file = file.map_err(|source| IndexError::Open { path: path.to_owned(), source })?;
        let database = database_in(file).map_err(|error| named(path, error))?;
        let filled = (|| {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.insert(CHUNK_KEY, key.as_slice())?;
            transaction.open_table(REPLICAS)?;
            transaction.open_table(CHUNKS)?;
            transaction.open_table(PLACES)?;
            Ok(transaction.commit()?)
        })();
        filled.map_err(|error| named(path, error))?;
        Ok(Self { path: path.to_owned(), key, database, broken: AtomicBool::new(false) })
    }

    fn open_existing(path: &Path) -> Result<Self, IndexError> {
        let failed = |source| IndexError::Open { path: path.to_owned(), source };
        // Opening a pipe or a device may have effects.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(IndexError::Foreign { path: path.to_owned() });
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        check_own(path, &file).map_err(|problem| failed(io::Error::other(problem.to_string())))?;
        let mut begins = [0; MAGIC.len()];
        match file.read_exact_at(&mut begins, 0) {
            Ok(()) if is_magic(&begins) => {}
            // As good as none.
            Err(_) if file.metadata().map_err(failed)?.len() == 0 => {
                return Err(named(path, redb::Error::Corrupted("it is empty".into())));
            }
            Ok(()) | Err(_) => return Err(IndexError::Foreign { path: path.to_owned() }),
        }
        // What the database finds in a damaged file may be more than it is prepared for.
        let opened = caught(|| {
            let database = database_in(file)?;
            let transaction = database.begin_read()?;
            let key = match transaction.open_table(META) {
                Ok(meta) => meta.get(CHUNK_KEY)?.and_then(|key| key.value().try_into().ok()),
                Err(TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            drop(transaction);
            Ok((database, key))
        });
        match opened.map_err(|error| named(path, error))? {
            (database, Some(key)) => {
                Ok(Self { path: path.to_owned(), key, database, broken: AtomicBool::new(false) })
            }
            // Another program's database.
            (_, None) => Err(IndexError::Foreign { path: path.to_owned() }),
        }
    }

    /// Opens a copy of the index at `path`, which another process has open, to look for chunks in it.
    /// The copy is gone when it is closed. It may be of a moment that never was: what is found by it
    /// is hashed as ever, and what is missing is not found.
    pub fn open_copy(path: &Path) -> Result<Self, IndexError> {
        let mut copy = path.as_os_str().to_owned();
        // Nobody can foresee the name and put a link there.
        copy.push(format!(".copy-{:016x}", RandomState::new().hash_one(path)));
        let copy = PathBuf::from(copy);
        let copied = fs::copy(path, &copy);
        let opened = copied
            .map_err(|source| IndexError::Open { path: copy.clone(), source })
            .and_then(|_| Self::open_existing(&copy));
        // Whoever has it open goes on to read it.
        let _ = fs::remove_file(&copy);
        opened
    }

    /// The key under which the chunks in it are named: replicas that are made take it.
    pub const fn chunk_key(&self) -> &[u8; 32] {
        &self.key
    }

    /// How many replicas and different chunks are in it; `None` if it cannot be read.
    pub fn counts(&self) -> Option<(u64, u64)> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let replicas = transaction.open_table(REPLICAS)?.len()?;
            Ok((replicas, transaction.open_table(CHUNKS)?.len()?))
        })
    }

    /// Does something with the database. If that fails the file is put aside, loudly.
    fn with<T>(&self, what: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Option<T> {
        if self.broken.load(Relaxed) {
            return None;
        }
        match caught(|| what(&self.database)) {
            Ok(done) => Some(done),
            Err(error) => {
                self.broken.store(true, Relaxed);
                tracing::error!(
                    path = %self.path.display(), %error,
                    "the index failed, so it is put aside and no longer used: the next start or \
                     `driftline index rebuild` makes it again"
                );
                if let Err(error) = put_aside(&self.path) {
                    tracing::error!(%error, "cannot put the index aside: remove it");
                }
                None
            }
        }
    }

    fn find(&self, id: &ChunkId) -> Option<(u32, PathBuf, u64)> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let place = transaction.open_table(CHUNKS)?.get(prefix(id))?.map(|at| at.value());
            let Some((number, chunk)) = place else { return Ok(None) };
            let replica = transaction.open_table(REPLICAS)?.get(number)?;
            let path = replica.and_then(|replica| Some(Replica::decode(replica.value())?.path));
            Ok(path.map(|path| (number, path, chunk)))
        })?
    }

    /// All places of these chunks, a few of each: also those that are not the first of their
    /// content.
    fn places_of(&self, ids: &HashSet<ChunkId>) -> HashMap<Prefix, Vec<(u32, PathBuf, u64)>> {
        let wanted: HashSet<Prefix> = ids.iter().map(prefix).collect();
        let found = self.with(|database| {
            let transaction = database.begin_read()?;
            let mut paths = HashMap::new();
            for entry in transaction.open_table(REPLICAS)?.iter()? {
                let (number, replica) = entry?;
                let replica = Replica::decode(replica.value());
                paths.extend(replica.map(|replica| (number.value(), replica.path)));
            }
            let mut found: HashMap<Prefix, Vec<_>> = HashMap::new();
            for entry in transaction.open_table(PLACES)?.iter()? {
                let (place, prefix) = entry?;
                let ((number, chunk), prefix) = (place.value(), prefix.value());
                if !wanted.contains(&prefix) {
                    continue;
                }
                let places = found.entry(prefix).or_default();
                if places.len() < PLACES_MAX
                    && let Some(path) = paths.get(&number)
                {
                    places.push((number, path.clone(), chunk));
                }
            }
            Ok(found)
        });
        found.unwrap_or_default()
    }

    /// Whether a replica is listed at this root, under this path.
    fn has(&self, replica: &ReplicaId, root: Root, path: &Path) -> bool {
        let known = self.with(|database| {
            let transaction = database.begin_read()?;
            find_replica(&transaction.open_table(REPLICAS)?, replica)
        });
        let known = known.flatten();
        known.is_some_and(|(_, known)| known.root == root && known.path == path)
    }

    /// Takes note of what a replica at `path` holds now, and forgets what was wrong.
    fn update(&self, path: &Path, update: Update<'_>, stale: &mut Vec<Prefix>) {
        let stale = std::mem::take(stale);
        let done = self.with(|database| {
            let transaction = database.begin_write()?;
            let updated = self.update_in(&transaction, path, update, &stale)?;
            match updated {
                Ok(()) => transaction.commit()?,
                Err(_) => transaction.abort()?,
            }
            Ok(updated)
        });
        if let Some(Err(problem)) = done {
            tracing::warn!(%problem, "cannot add the commit to the index");
        }
    }

    fn update_in(
        &self,
        transaction: &WriteTransaction,
        path: &Path,
        update: Update<'_>,
        stale: &[Prefix],
    ) -> Result<Result<(), Problem>, redb::Error> {
        let mut replicas = transaction.open_table(REPLICAS)?;
        let mut tables = Tables {
            chunks: transaction.open_table(CHUNKS)?,
            places: transaction.open_table(PLACES)?,
            number: 0,
        };
        for prefix in stale {
            tables.chunks.remove(prefix)?;
        }
        let Update { replica, base, tip, chunks, changes, all } = update;
        let known = find_replica(&replicas, &replica)?;
        let last = replicas.last()?.map_or(0, |(number, _)| number.value());
        tables.number = known.as_ref().map_or(last + 1, |(number, _)| *number);
        let follows =
            known.is_some_and(|(_, known)| Some(known.root) == base && known.path == path);
        let taken = if follows {
            tables.forget_from(chunks)?;
            tables.take(changes)?
        } else {
            tables.forget_from(0)?;
            tables.take(all)?
        };
        let listed = Replica { id: replica, root: tip, path: path.to_owned() };
        replicas.insert(tables.number, listed.encode().as_slice())?;
        Ok(taken)
    }

    /// Lists a replica by its books; `false` if they are not what its state says.
    fn list(&self, replica: &Listed, state: &State) -> bool {
        let Some(tip) = state.root() else { return false };
        let listed = FileDisk::open_read(&replica.state_dir.join("ids"));
        let Ok(ids) = listed.map(|disk| IdList::new(Part::Ids, disk)) else { return false };
        let chunks = chunk_count(state.size);
        let mut all = ids.entries(0..chunks);
        let (replica_id, base) = (state.replica, None);
        let changes = &mut std::iter::empty();
        let update = Update { replica: replica_id, base, tip, chunks, changes, all: &mut all };
        self.update(&replica.volume, update, &mut Vec::new());
        self.has(&state.replica, tip, &replica.volume)
    }
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Index {}

impl std::fmt::Debug for Index {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The tables that a transaction writes, for one replica.
struct Tables<'a> {
    chunks: Table<'a, Prefix, Place>,
    places: Table<'a, Place, Prefix>,
    number: u32,
}

impl Tables<'_> {
    /// Forgets the chunks of the replica from this one on.
    fn forget_from(&mut self, first: u64) -> Result<(), redb::Error> {
        let (chunks, number) = (&mut self.chunks, self.number);
        let range = (number, first)..=(number, u64::MAX);
        for entry in self.places.extract_from_if(range, |_, _| true)? {
            let (place, prefix) = entry?;
            remove_at(chunks, prefix.value(), place.value())?;
        }
        Ok(())
    }

    /// Takes chunks in, run by run.
    fn take(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry>,
    ) -> Result<Result<(), Problem>, redb::Error> {
        loop {
            let mut run = Vec::new();
            for entry in (&mut *entries).take(RUN_LEN) {
                match entry {
                    Ok(entry) => run.push(entry),
                    Err(problem) => return Ok(Err(problem)),
                }
            }
            if run.is_empty() {
                return Ok(Ok(()));
            }
            self.take_run(&run)?;
        }
    }

    /// Takes in a run that ascends by place: what it replaces and what it adds go to `chunks`
    /// in the order of names.
    fn take_run(&mut self, run: &[(u64, ChunkId)]) -> Result<(), redb::Error> {
        let (mut gone, mut new) = (Vec::<(Prefix, Place)>::new(), Vec::<(Prefix, Place)>::new());
        for (chunk, id) in run {
            let place = (self.number, *chunk);
            let before = if id.is_zero() {
                self.places.remove(place)?.map(|before| before.value())
            } else {
                new.push((prefix(id), place));
                self.places.insert(place, prefix(id))?.map(|before| before.value())
            };
            gone.extend(before.map(|before| (before, place)));
        }
        gone.sort_unstable();
        new.sort_unstable();
        for (prefix, place) in gone {
            remove_at(&mut self.chunks, prefix, place)?;
        }
        for (prefix, place) in new {
            if self.chunks.get(prefix)?.is_none() {
                self.chunks.insert(prefix, place)?;
            }
        }
        Ok(())
    }
}

/// Forgets a name, if it is this place that it leads to.
fn remove_at(
    chunks: &mut Table<'_, Prefix, Place>,
    prefix: Prefix,
    place: Place,
) -> Result<(), redb::Error> {
    let found = chunks.get(prefix)?.map(|found| found.value());
    if found == Some(place) {
        chunks.remove(prefix)?;
    }
    Ok(())
}

/// What `replicas` says of one.
struct Replica {
    id: ReplicaId,
    root: Root,
    path: PathBuf,
}

impl Replica {
    fn encode(&self) -> Vec<u8> {
        [&self.id.0, &self.root.0[..], self.path.as_os_str().as_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk()?;
        let (root, path) = rest.split_first_chunk()?;
        let path = OsString::from_vec(path.to_vec()).into();
        Some(Self { id: ReplicaId(*id), root: Root(*root), path })
    }
}

fn find_replica(
    replicas: &impl ReadableTable<u32, &'static [u8]>,
    id: &ReplicaId,
) -> Result<Option<(u32, Replica)>, redb::Error> {
    for entry in replicas.iter()? {
        let (number, replica) = entry?;
        if let Some(replica) = Replica::decode(replica.value()).filter(|known| known.id == *id) {
            return Ok(Some((number.value(), replica)));
        }
    }
    Ok(None)
}

fn prefix(id: &ChunkId) -> Prefix {
    *id.0.first_chunk().unwrap_or(&[0; 16])
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_LEN);
    builder
}

/// The database in a file, which is made if the file is empty.
fn database_in(file: File) -> Result<Database, redb::Error> {
    let same = file.try_clone()?;
    let file = ProvenFile::new(FileBackend::new(file)?, Some(same));
    Ok(builder().create_with_backend(file)?)
}

fn named(path: &Path, error: redb::Error) -> IndexError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => IndexError::Busy { path },
        // What it cannot read as its own is told as an error of the system.
        redb::Error::Io(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            IndexError::Open { path, source }
        }
        source => IndexError::Database { path, source: Box::new(source) },
    }
}

/// A panic over a damaged file is an error like others: it must not end a session.
fn caught<T>(what: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    let done = catch_unwind(AssertUnwindSafe(what));
    done.unwrap_or_else(|_| Err(redb::Error::Corrupted("it makes no sense".into())))
}

/// Whether a file that begins so is, or was, a database: of any other about half of the bits differ.
fn is_magic(begins: &[u8; MAGIC.len()]) -> bool {
    let wrong: u32 = begins.iter().zip(MAGIC).map(|(is, right)| (is ^ right).count_ones()).sum();
    wrong <= FLIPPED_MAX
}

/// Gives a damaged file another name, which nothing has.
fn put_aside(path: &Path) -> Result<(), IndexError> {
    let failed = |source| IndexError::Open { path: path.to_owned(), source };
    for number in 1..=ASIDE_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        if number > 1 {
            aside.push(format!("-{number}"));
        }
        // Unlike a rename, a second name never takes the place of what stands there.
        match fs::hard_link(path, aside) {
            Ok(()) => return fs::remove_file(path).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let detail = format!("{ASIDE_MAX} damaged ones stand beside it: remove them");
    Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, detail)))
}

fn random_key() -> Result<[u8; 32], IndexError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| IndexError::Entropy(error.to_string()))?;
    Ok(key)
}

/// The state of a replica that holds a generation.
fn read_state(replica: &Listed) -> Option<(&Listed, State)> {
    let disk = FileDisk::open_read(&replica.state_dir.join("state")).ok()?;
    let state = Slots::peek(disk).ok().flatten()?;
    state.root().is_some().then_some((replica, state))
}
