//! What a ZFS can do, found from how its command answers and not from its name.

use super::{Zfs, ZfsError};

/// What not every ZFS can do. OpenZFS can do all of it since 0.8; zfs-fuse, which is of before
/// there were numbers, none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// To send blocks as they are stored: large and compressed (`send -L -c`).
    pub stored_blocks: bool,
    /// To keep what arrived of a stream that breaks off, and to make the rest of one
    /// (`receive -s`, `send -t`).
    pub resume: bool,
    /// To set properties of what it receives, or leave them out (`receive -o`, `-x`).
    pub properties: bool,
    /// To keep of a snapshot what an increment needs to start from it.
    pub bookmarks: bool,
}

impl Abilities {
    pub(super) const ALL: Self =
        Self { stored_blocks: true, resume: true, properties: true, bookmarks: true };
}

impl Zfs {
    /// What it can do. It is asked once, for this handle and its clones.
    ///
    /// # Errors
    ///
    /// That the command cannot be run.
    pub fn abilities(&self) -> Result<Abilities, ZfsError> {
        // Whoever brings libzfs_core came later than all of this.
        if self.library.is_ok() {
            return Ok(Abilities::ALL);
        }
        if let Some(known) = self.abilities.get() {
            return Ok(*known);
        }
        let found = Abilities {
            stored_blocks: self.knows(&["send", "-L", "-c"])?,
            resume: self.knows(&["receive", "-s"])?,
            properties: self.knows(&["receive", "-x", "canmount"])?,
            bookmarks: self.knows(&["bookmark"])?,
        };
        Ok(*self.abilities.get_or_init(|| found))
    }

    /// Whether the command knows this verb with these options. It is told of no data set, so all
    /// it can do is to complain, of that or of what it does not know.
    fn knows(&self, words: &[&str]) -> Result<bool, ZfsError> {
        match self.run(words) {
            Ok(_) => Ok(true),
            Err(error @ ZfsError::Failed { .. }) => Ok(!error.is_old()),
            Err(error) => Err(error),
        }
    }
}
