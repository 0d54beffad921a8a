//! Secret keys in files that only their owner reads.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, bail};
use driftline_wire::SecretKey;

/// Longest key file that is read: a key, and some lines of comment.
const FILE_LEN_MAX: u64 = 64 << 10;

/// Makes a key pair and writes its secret half to `path`, which must not exist.
pub(crate) fn generate(path: &Path) -> anyhow::Result<SecretKey> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("no randomness from the operating system")?;
    let key = SecretKey::from_random(random);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // Nobody else has anything to do there; one that is there stays as it is.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make the key file {}", path.display()))?;
    writeln!(file, "# driftline secret key; public key {}", key.public())?;
    writeln!(file, "{}", key.to_text())?;
    file.sync_all()?;
    Ok(key)
}

/// Reads the secret key in `path`.
pub(crate) fn read(path: &Path) -> anyhow::Result<SecretKey> {
    let context = || format!("cannot read the secret key in {}", path.display());
    let metadata = fs::metadata(path).with_context(context)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        bail!(
            "others can read the secret key in {0}: run chmod 600 {0}, and make a new key if \
             they may have",
            path.display()
        );
    }
    if metadata.len() > FILE_LEN_MAX {
        bail!("{} is too long to be a key file", path.display());
    }
    let text = fs::read_to_string(path).with_context(context)?;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.parse().with_context(context),
        _ => bail!("{} should hold one secret key, on a line of its own", path.display()),
    }
}
