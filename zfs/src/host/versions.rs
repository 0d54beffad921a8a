//! What `zfs version` prints.

use std::str::FromStr;

/// The versions of ZFS on this machine, as texts like `2.3.2-2~bpo12+2`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versions {
    /// The command's.
    pub userland: String,
    /// The kernel module's; `None` where it is not loaded.
    pub kernel: Option<String>,
}

impl FromStr for Versions {
    type Err = ();

    /// Reads the lines `zfs-…` and `zfs-kmod-…`; the first must be there.
    fn from_str(text: &str) -> Result<Self, ()> {
        let lines = || text.lines().filter_map(|line| line.trim().strip_prefix("zfs-"));
        let version =
            |text: &str| text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.to_owned());
        let userland = lines().find_map(version).ok_or(())?;
        let kernel = lines().find_map(|line| version(line.strip_prefix("kmod-")?));
        Ok(Self { userland, kernel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_found() {
        let versions: Versions = "zfs-2.3.2-2~bpo12+2\nzfs-kmod-2.1.11-1\n".parse().unwrap();
        assert_eq!(versions.userland, "2.3.2-2~bpo12+2");
        assert_eq!(versions.kernel.as_deref(), Some("2.1.11-1"));
        let alone: Versions = "zfs-2.3.2-2\n".parse().unwrap();
        assert_eq!((alone.userland.as_str(), alone.kernel), ("2.3.2-2", None));
        for text in ["", "zfs-\n", "zfs-kmod-2.1.11-1\n", "unrecognized command 'version'\n"] {
            assert_eq!(text.parse::<Versions>(), Err(()), "{text:?}");
        }
    }
}
