//! A volume of the source's side that tells how it is read: that it is, and where it cannot be.

use std::{io, sync::Arc};

use driftline_extent::{Extent, Unreadable, Volume};

use crate::Progress;

/// Each read that succeeds shows that the source has not hung.
pub(crate) struct Watched<V> {
    volume: V,
    progress: Arc<Progress>,
}

impl<V> Watched<V> {
    pub(crate) const fn new(volume: V, progress: Arc<Progress>) -> Self {
        Self { volume, progress }
    }
}

impl<V: std::ops::Deref<Target: Volume> + Sync> Volume for Watched<V> {
    fn size(&self) -> u64 {
        self.volume.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.volume.read_at(offset, buf).map_err(|error| told(offset, error))?;
        self.progress.touch();
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let data = self.volume.next_data(from).map_err(|error| told(from, error))?;
        self.progress.touch();
        Ok(data)
    }
}

/// What the operating system says gets its place; what a volume says itself stays as it is.
fn told(offset: u64, error: io::Error) -> io::Error {
    if error.get_ref().is_some() {
        return error;
    }
    let reason = Unreadable::explain(&error);
    let detail = format!("the source cannot be read at offset {offset}: {error}");
    Unreadable { reason, detail }.into()
}

#[cfg(test)]
mod tests {
    use driftline_extent::Reason;

    use super::*;
    use crate::Failure;

    struct Broken(fn() -> io::Error);

    impl Volume for Broken {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(self.0())
        }

        fn next_data(&self, _: u64) -> io::Result<Option<Extent>> {
            Err(self.0())
        }
    }

    #[test]
    fn a_read_error_says_where_and_has_a_reason_of_its_own() {
        let of = |broken: fn() -> io::Error| {
            let volume: Arc<dyn Volume + Send + Sync> = Arc::new(Broken(broken));
            let watched = Watched::new(volume, Arc::default());
            Failure::from(watched.read_at(65_536, &mut [0; 4]).unwrap_err())
        };
        let failure = of(|| io::Error::from_raw_os_error(5));
        assert_eq!(failure.reason, Reason::SourceUnreadable);
        let says = "the source cannot be read at offset 65536: Input/output error (os error 5)";
        assert_eq!(failure.detail, says);
        // As `read_exact_at` says it of a file that became shorter.
        let failure = of(|| io::ErrorKind::UnexpectedEof.into());
        assert_eq!(failure.reason, Reason::SourceChanged);
        let failure = of(|| io::Error::other("what the volume knows better"));
        assert_eq!(failure.detail, "what the volume knows better");
    }
}
