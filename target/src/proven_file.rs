//! The file of the index, read back: what was written since the last sync is compared, past the
//! cache, before a sync says that it is done.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    num::NonZeroU64,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, StorageBackend};
use rustix::fs::{Advice, fadvise};

/// Where something was written: its length and its hash, by its offset.
type Written = BTreeMap<u64, (usize, blake3::Hash)>;

/// Storage whose syncs fail if it is not what was written to it.
#[derive(Debug)]
pub(crate) struct ProvenFile<B> {
    inner: B,
    /// The same file, to let what is read come from the storage.
    file: Option<File>,
    written: Mutex<Written>,
}

impl<B> ProvenFile<B> {
    pub(crate) fn new(inner: B, file: Option<File>) -> Self {
        Self { inner, file, written: Mutex::default() }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_cache(&self) {
        if let Some(file) = &self.file
            && let Err(error) = fadvise(file, 0, None::<NonZeroU64>, Advice::DontNeed)
        {
            tracing::debug!(%error, "the index is read back from the cache");
        }
    }
}

impl<B: StorageBackend> StorageBackend for ProvenFile<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.written().retain(|offset, (count, _)| offset + *count as u64 <= len);
        self.inner.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let end = offset + data.len() as u64;
        // What is written over is not there any more. Pages may be joined or split meanwhile.
        let over = |at: u64, count: usize| at < end && offset < at + count as u64;
        written.retain(|at, (count, _)| !over(*at, *count));
        written.insert(offset, (data.len(), blake3::hash(data)));
        drop(written);
        self.inner.write(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        self.drop_cache();
        let mut bytes = Vec::new();
        for (offset, (count, hash)) in std::mem::take(&mut *self.written()) {
            bytes.resize(count, 0);
            self.inner.read(offset, &mut bytes)?;
            if blake3::hash(&bytes) != hash {
                let what = "it does not read back as it was written: the storage is not reliable";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, TableDefinition, backends::InMemoryBackend};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");

    /// Storage that loses or changes a write.
    #[derive(Debug)]
    struct Spoilt {
        inner: InMemoryBackend,
        left: Mutex<u64>,
        lose: bool,
    }

    impl StorageBackend for Spoilt {
        fn len(&self) -> io::Result<u64> {
            self.inner.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.inner.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.inner.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.inner.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let mut left = self.left.lock().unwrap();
            let spoilt = *left == 0;
            *left = left.wrapping_sub(1);
            if !spoilt {
                return self.inner.write(offset, data);
            }
            if self.lose {
                return Ok(());
            }
            let mut data = data.to_vec();
            data[0] ^= 1;
            self.inner.write(offset, &data)
        }
    }

    /// Writes to a database in several transactions; whether all were told as done.
    fn run(at: u64, lose: bool) -> (bool, u64) {
        let spoilt = Spoilt { inner: InMemoryBackend::new(), left: Mutex::new(at), lose };
        let done = (|| {
            let file = ProvenFile::new(spoilt, None);
            let database = Database::builder().create_with_backend(file)?;
            for number in 0..3 {
                let transaction = database.begin_write()?;
                for key in 0..200 {
                    transaction.open_table(TABLE)?.insert(key, key + number)?;
                }
                transaction.commit()?;
            }
            Ok::<_, redb::Error>(())
        })();
        (done.is_ok(), at)
    }

    #[test]
    fn a_write_to_the_index_that_does_not_arrive_fails_its_transaction() {
        let all = u64::MAX / 2;
        assert!(run(all, true).0, "nothing was spoilt");
        let (mut failed, mut done) = (0, 0);
        for at in 0..24 {
            for lose in [false, true] {
                if run(at, lose).0 { done += 1 } else { failed += 1 }
            }
        }
        // A page that holds already what was to be written is no loss.
        assert!(failed > 30 && done < 18, "{failed} failed, {done} done");
    }
}
