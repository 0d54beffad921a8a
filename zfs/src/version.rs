//! Which ZFS runs here, and what is known to be wrong with it.

use std::fmt;

use thiserror::Error;

/// The output is no such thing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "`zfs version` printed no line such as zfs-2.3.9-1, but {0:?}: check that this `zfs` is \
     OpenZFS"
)]
pub struct VersionError(String);

/// A version of OpenZFS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    numbers: [u32; 3],
    /// What follows them: the packager's revision, a release candidate.
    suffix: String,
}

impl Version {
    /// Reads `2.3.9-1`, `2.1.11-1+deb12u1`, `0.8.0-731_g1f043c8be` or `2.3.0-rc3`.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (dotted, suffix) = text.split_at(end);
        let mut parts = dotted.split('.').map(|part| part.parse().ok());
        let mut number = || parts.next().flatten();
        let (major, minor) = (number()?, number()?);
        // There may be a fourth, as in 0.6.5.7, which no rule looks at.
        let patch = number().unwrap_or(0);
        Some(Self { numbers: [major, minor, patch], suffix: suffix.to_owned() })
    }

    /// Major, minor and patch number.
    pub const fn numbers(&self) -> [u32; 3] {
        self.numbers
    }

    /// Whether this comes before the release with these numbers, as its candidates do.
    fn is_before(&self, release: [u32; 3]) -> bool {
        let candidate = self.suffix.starts_with("-rc");
        self.numbers < release || (self.numbers == release && candidate)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}{}", self.suffix)
    }
}

/// What `zfs version` prints: the version of the tools, and of the module if it is loaded.
pub fn parse_versions(text: &str) -> Result<(Version, Option<Version>), VersionError> {
    let find = |prefix: &str| {
        text.lines().find_map(|line| Version::parse(line.trim_end().strip_prefix(prefix)?))
    };
    match find("zfs-") {
        Some(userland) => Ok((userland, find("zfs-kmod-"))),
        None => Err(VersionError(text.chars().take(200).collect())),
    }
}

/// Something known to go wrong with the ZFS that sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The word for it in logs and `--json` output.
    pub word: &'static str,
    /// The version that it is about.
    pub version: Version,
    /// What may be wrong.
    pub means: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { word, version, means, advice } = self;
        write!(f, "{word}: this is ZFS {version}; {means}: {advice}")
    }
}

/// What is sent, as far as a rule asks.
#[derive(Clone, Copy)]
struct Send {
    encrypted: bool,
    raw: bool,
}

struct Rule {
    word: &'static str,
    concerns: fn(&Version, Send) -> bool,
    means: &'static str,
    advice: &'static str,
}

/// Each with the report of it at <https://github.com/openzfs/zfs/issues>. Packagers carry
/// fixes back to older versions, which their versions do not tell: so these only warn.
const RULES: [Rule; 5] = [
    // 4809, 4050 and others.
    Rule {
        word: "hole-birth",
        concerns: |version, _| version.is_before([0, 7, 0]),
        means: "it may leave holes out of increments, so that the target keeps old data there, \
                and what it wrote stays so after an upgrade",
        advice: "upgrade, and verify the whole volume after each increment",
    },
    // 6224.
    Rule {
        word: "large-block-toggle",
        concerns: |version, _| version.is_before([2, 0, 0]),
        means: "a file is received as zeros if increments are sent now with -L and now without",
        advice: "upgrade, and begin anew with a full copy where another tool sent without -L",
    },
    // 12762.
    Rule {
        word: "sector-size-change",
        concerns: |version, _| version.is_before([2, 1, 2]),
        means: "streams between pools of different sector size (ashift 9 and 12) may damage \
                what is received",
        advice: "upgrade, or verify the whole copy",
    },
    // 15526.
    Rule {
        word: "zeroed-chunks",
        concerns: |version, _| {
            let fixed = if version.numbers < [2, 2, 0] { [2, 1, 14] } else { [2, 2, 2] };
            version.is_before(fixed)
        },
        means: "files copied while they were written may have zeros in place of data, which \
                no checksum finds and which are replicated as they are",
        advice: "upgrade to 2.1.14, 2.2.2 or newer, unless the packager has carried the fix \
                 back, and compare files copied before with their originals",
    },
    // 12014.
    Rule {
        word: "encrypted-send",
        concerns: |version, send| send.encrypted && !send.raw && version.is_before([2, 3, 3]),
        means: "sending an encrypted data set decrypted may damage its snapshots in memory, so \
                that they show errors until the pool is imported anew",
        advice: "upgrade to 2.3.3 or newer, unless the packager has carried the fix back, or \
                 send raw",
    },
];

/// What is known to go wrong with sends by this ZFS; the module counts if it is loaded,
/// because it is what sends.
///
/// `encrypted`: what is sent is stored encrypted. `raw`: it is sent so (`-w`).
pub fn warnings(
    userland: &Version,
    kernel: Option<&Version>,
    encrypted: bool,
    raw: bool,
) -> Vec<Warning> {
    let version = kernel.unwrap_or(userland);
    let concerned = RULES.iter().filter(|rule| (rule.concerns)(version, Send { encrypted, raw }));
    let warning = |rule: &Rule| Warning {
        word: rule.word,
        version: version.clone(),
        means: rule.means,
        advice: rule.advice,
    };
    concerned.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(version: &str, encrypted: bool, raw: bool) -> Vec<&'static str> {
        let version = Version::parse(version).expect("it is a version");
        warnings(&version, None, encrypted, raw).iter().map(|warning| warning.word).collect()
    }

    #[test]
    fn output_of_every_packager_is_read() {
        for (text, userland, kernel) in [
            ("zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n", "2.3.9-1", Some("2.3.9-1")),
            (
                "zfs-2.3.2-2~bpo12+2\nzfs-kmod-2.1.11-1+deb12u1\n",
                "2.3.2-2~bpo12+2",
                Some("2.1.11-1+deb12u1"),
            ),
            (
                "zfs-2.2.2-0ubuntu9.1\nzfs-kmod-2.2.2-0ubuntu9\n",
                "2.2.2-0ubuntu9.1",
                Some("2.2.2-0ubuntu9"),
            ),
            (
                "zfs-2.2.0-FreeBSD_g95785196f\nzfs-kmod-2.2.0-FreeBSD_g95785196f\n",
                "2.2.0-FreeBSD_g95785196f",
                Some("2.2.0-FreeBSD_g95785196f"),
            ),
            ("zfs-0.8.0-731_g1f043c8be\n", "0.8.0-731_g1f043c8be", None),
            ("zfs-2.3.0-rc3\r\nzfs-kmod-2.3.0-rc3", "2.3.0-rc3", Some("2.3.0-rc3")),
            ("zfs-kmod-2.4-1\nzfs-2.4\n", "2.4.0", Some("2.4.0-1")),
        ] {
            let (tools, module) = parse_versions(text).expect(text);
            assert_eq!(tools.to_string(), userland);
            assert_eq!(module.map(|module| module.to_string()).as_deref(), kernel);
        }
        // What zfs-fuse prints begins with the first, and any number may be too large.
        for text in [
            "unrecognized command 'version'\n",
            "",
            "zfs-kmod-2.3.9-1\n",
            "zfs-x.1",
            "zfs-2",
            "zfs-4294967296.1.1",
        ] {
            let error = parse_versions(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn each_version_has_the_warnings_it_deserves() {
        let all = ["hole-birth", "large-block-toggle", "sector-size-change", "zeroed-chunks"];
        assert_eq!(words("0.6.5.7-1", false, false), all);
        assert_eq!(words("0.8.6-1", false, false), all[1..]);
        assert_eq!(words("2.0.0-1", false, false), all[2..]);
        assert_eq!(words("2.1.2-1", false, false), all[3..]);
        assert_eq!(words("2.1.13-1", false, false), all[3..]);
        assert_eq!(words("2.1.14-1", false, false), [""; 0]);
        for affected in ["2.2.0-rc1", "2.2.0", "2.2.1-1", "2.2.2-rc1"] {
            assert_eq!(words(affected, false, false), all[3..], "{affected}");
        }
        assert_eq!(words("2.2.2-0ubuntu9", false, false), [""; 0]);
        for (version, affected) in
            [("2.2.2", true), ("2.3.2-2", true), ("2.3.3-rc1", true), ("2.3.3-1", false)]
        {
            assert_eq!(!words(version, true, false).is_empty(), affected, "{version}");
            assert!(words(version, true, true).is_empty(), "{version} raw");
        }
        assert!(words("2.3.9-1", true, false).is_empty() && words("3.0.0", true, false).is_empty());
    }

    #[test]
    fn the_module_counts_where_it_is_known() {
        let text = "zfs-2.3.9-1\nzfs-kmod-2.1.11-1+deb12u1\n";
        let (userland, kernel) = parse_versions(text).expect("it is output of zfs version");
        assert!(warnings(&userland, None, true, false).is_empty());
        let warnings = warnings(&userland, kernel.as_ref(), true, false);
        let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("zeroed-chunks: this is ZFS 2.1.11-1+deb12u1; files"));
        assert!(said[1].ends_with("or send raw"), "{said:?}");
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn words_are_words() {
        for rule in &RULES {
            assert!(
                rule.word.bytes().all(|b| b == b'-' || b.is_ascii_lowercase()),
                "{}",
                rule.word
            );
        }
    }
}
