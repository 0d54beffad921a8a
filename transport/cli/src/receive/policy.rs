//! With which options a stream is received, and which streams are refused before.
//!
//! A replica must not end in plain text below a data set that was to encrypt it, must not be
//! locked for good by an increment, and must neither be mounted over the host's own files nor
//! stopped by a quota that was meant for the source.

use driftline_extent::{Explained, Reason};
use driftline_zfs::{Dataset, DatasetKind, DatasetName, Head};

use crate::args;

/// What of a stream is left out unless somebody asks for it: it says what the source's machine
/// does with the data set, and not what the data set holds.
const LEFT_OUT: [&str; 10] = [
    "canmount",
    "filesystem_limit",
    "mountpoint",
    "quota",
    "refquota",
    "refreservation",
    "reservation",
    "sharenfs",
    "sharesmb",
    "snapshot_limit",
];

/// Properties that only file systems have.
const OF_FILE_SYSTEMS: [&str; 28] = [
    "aclinherit",
    "aclmode",
    "acltype",
    "atime",
    "canmount",
    "casesensitivity",
    "devices",
    "dnodesize",
    "exec",
    "filesystem_limit",
    "longname",
    "mountpoint",
    "nbmand",
    "normalization",
    "overlay",
    "quota",
    "recordsize",
    "refquota",
    "relatime",
    "setuid",
    "sharenfs",
    "sharesmb",
    "snapdir",
    "utf8only",
    "version",
    "vscan",
    "xattr",
    "zoned",
];

/// Properties that only volumes have.
const OF_VOLUMES: [&str; 3] = ["volblocksize", "volsize", "volthreading"];

/// Why a stream is not received, though ZFS might take it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// ZFS would refuse it, in words that help nobody.
    #[error(
        "the stream has embedded blocks, and {0} is encrypted here, or is to be: ZFS takes no such \
         stream there. A recorded one was made with `zfs send -e`, or with `-w` of what is not \
         encrypted: make it with `zfs send -L -c`. If the source is a Driftline, upgrade it"
    )]
    Embedded(DatasetName),
    /// What was agreed on cannot be done here.
    #[error(
        "the ZFS here cannot set properties as it receives, or leave them out: nothing was written \
         to {0}. Push again without --set-property and --exclude-property (in a configuration \
         set_properties and exclude_properties), and run `zfs set` on {0} afterwards; or upgrade \
         this ZFS"
    )]
    NoProperties(DatasetName),
    /// It would be stored in plain text below what was to encrypt it.
    #[error(
        "{name} is not encrypted, though {above} is, which it is below: nothing was written. To \
         have it encrypted: zfs rename {name} {name}-plain, and push again, which begins with a \
         full copy. If plain text is what you want there: --set-property encryption=off, in a \
         configuration set_properties"
    )]
    PlainText {
        /// The replica.
        name: DatasetName,
        /// What is encrypted.
        above: DatasetName,
    },
    /// The increment would bring keys that no key of this machine opens.
    #[error(
        "{name} is encrypted with the key of {root} (`zfs change-key -i`), and a raw increment \
         brings it the source's own key again: after the next import nothing could open it. \
         Nothing was written. Make it open by a key of its own: zfs change-key -o \
         keyformat=passphrase -o keylocation=prompt {name}; then push again, after which the key \
         of the source opens it"
    )]
    KeyElsewhere {
        /// The replica.
        name: DatasetName,
        /// Whose key it has.
        root: DatasetName,
    },
}

impl Explained for PolicyError {
    fn reason(&self) -> Reason {
        match self {
            Self::Embedded(_) | Self::NoProperties(_) => Reason::Unsupported,
            Self::PlainText { .. } => Reason::NotEncrypted,
            Self::KeyElsewhere { .. } => Reason::KeyMismatch,
        }
    }
}

/// What stands at the target before a stream is received.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Standing {
    /// The data set itself, if it is there.
    pub(super) dataset: Option<Dataset>,
    /// Whether anything ever arrived whole there.
    pub(super) has_snapshot: bool,
    /// Whether a data set of the stream is not there yet.
    pub(super) has_new: bool,
    /// The nearest data set above it that is there, if that is encrypted.
    pub(super) encrypted_above: Option<DatasetName>,
    /// The salt of the passphrase that opens it, if it is a passphrase that does.
    pub(super) salt: Option<u64>,
    /// The root of the tree that is replicated with it.
    pub(super) tree: Option<DatasetName>,
}

/// How a stream is received.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Decision {
    /// Properties that are not taken over.
    pub(super) exclude: Vec<String>,
    /// Properties that are set.
    pub(super) overrides: Vec<(String, String)>,
    /// Which of the first nobody asked for.
    pub(super) left_out: Vec<&'static str>,
    /// Whether what arrives has to be encrypted in the end.
    pub(super) encrypted: bool,
    /// Whether the key of the source takes the place of one that was set here.
    pub(super) key_changes: bool,
}

/// Decides how the stream that begins so is received by `name`.
pub(super) fn decide(
    name: &DatasetName,
    head: &Head,
    standing: &Standing,
    policy: &args::Receive,
) -> Result<Decision, PolicyError> {
    let set = policy.overrides();
    let plain_is_wanted = set.iter().any(|(name, value)| name == "encryption" && value == "off");
    let above = standing.encrypted_above.as_ref().filter(|_| !plain_is_wanted);
    let key_changes = check_keys(name, head, standing, above, &set)?;
    let is_first = !standing.has_snapshot;
    let mut decision = Decision { key_changes, encrypted: above.is_some(), ..Decision::default() };
    for (property, value) in set {
        // What it is encrypted with is decided when it is made.
        if property == "encryption" && standing.dataset.is_some() || !applies(head, &property) {
            continue;
        }
        decision.overrides.push((property, value));
    }
    let exclude = policy.exclude.iter().filter(|property| applies(head, property)).cloned();
    decision.exclude.extend(exclude);
    let is_asked = |property: &str| {
        let set = policy.set.iter().map(|set| set.0.as_str());
        let said = policy.exclude.iter().chain(&policy.take).map(String::as_str);
        set.chain(said).any(|said| said == property)
    };
    // A tree may have volumes, and ZFS would fail at the first of them.
    let is_file_system = head.kind == Some(DatasetKind::FileSystem) && !head.is_tree();
    if is_first && is_file_system && !is_asked("canmount") {
        decision.overrides.push(("canmount".to_owned(), "noauto".to_owned()));
    }
    for property in LEFT_OUT {
        let is_set = decision.overrides.iter().any(|(set, _)| set == property);
        if head.brings(property) && !is_asked(property) && !is_set && applies(head, property) {
            decision.exclude.push(property.to_owned());
            decision.left_out.push(property);
        }
    }
    // With properties ZFS takes that they do not name a cipher for the wish to have none.
    let is_new = standing.dataset.is_none() || standing.has_new;
    if above.is_some() && head.packaged && !head.encrypted && is_new && !is_asked("encryption") {
        decision.exclude.push("encryption".to_owned());
        decision.left_out.push("encryption");
    }
    Ok(decision)
}

/// Refuses what would end in plain text, or could not be opened any more. Says whether another key
/// than today's will open the replica.
fn check_keys(
    name: &DatasetName,
    head: &Head,
    standing: &Standing,
    above: Option<&DatasetName>,
    set: &[(String, String)],
) -> Result<bool, PolicyError> {
    let cipher = |(name, value): &(String, String)| name == "encryption" && value != "off";
    let dataset = standing.dataset.as_ref();
    if !head.encrypted {
        let is_encrypted = match dataset {
            Some(dataset) => dataset.encryption.is_some(),
            None => above.is_some() || set.iter().any(cipher),
        };
        return match above {
            Some(above) if !is_encrypted => {
                let (name, above) = (name.clone(), above.clone());
                Err(PolicyError::PlainText { name, above })
            }
            _ if is_encrypted && head.embedded => Err(PolicyError::Embedded(name.clone())),
            _ => Ok(false),
        };
    }
    let Some(root) = dataset.and_then(|dataset| dataset.encryption_root.as_ref()) else {
        return Ok(false);
    };
    let same_salt = standing.salt.is_some() && standing.salt == head.salt;
    if root == name {
        return Ok(standing.salt.is_some() && head.salt.is_some() && !same_salt);
    }
    // A root that was replicated from the same tree has the key of the source's root, and so has
    // one that derives its key by the same salt.
    let is_replica = standing.tree.as_ref().is_some_and(|tree| root.below(tree).is_some());
    if is_replica || same_salt {
        return Ok(false);
    }
    Err(PolicyError::KeyElsewhere { name: name.clone(), root: root.clone() })
}

/// Whether anything in this stream may have the property.
fn applies(head: &Head, property: &str) -> bool {
    let of = of(property);
    of.is_none() || head.kind.is_none() || head.is_tree() || of == head.kind
}

/// What alone has this property; `None` if both have it, or it is not known here.
fn of(property: &str) -> Option<DatasetKind> {
    if OF_FILE_SYSTEMS.contains(&property) || property.contains("quota@") {
        return Some(DatasetKind::FileSystem);
    }
    OF_VOLUMES.contains(&property).then_some(DatasetKind::Volume)
}

#[cfg(test)]
mod tests {
    use driftline_zfs::Member;

    use super::*;

    fn name(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn policy(set: &[(&str, &str)], exclude: &[&str], take: &[&str]) -> args::Receive {
        let set =
            set.iter().map(|(name, value)| args::Property((*name).to_owned(), (*value).to_owned()));
        let [exclude, take] =
            [exclude, take].map(|all| all.iter().map(|one| (*one).to_owned()).collect());
        args::Receive { exclude, set: set.collect(), take }
    }

    fn head(kind: DatasetKind) -> Head {
        Head { kind: Some(kind), ..Head::default() }
    }

    fn packaged(kind: DatasetKind, properties: &[&str]) -> Head {
        let properties = properties.iter().map(|name| (*name).to_owned()).collect();
        let members = vec![Member { path: String::new(), properties }];
        Head { packaged: true, members, ..head(kind) }
    }

    /// `back/x`, with these columns of its encryption.
    fn there(encryption: &str, root: &str) -> Standing {
        let line = format!("back/x\tfilesystem\t7\t-\t-\t-\t0\t{encryption}\t{root}\t-\t-\n");
        let dataset = Some(driftline_zfs::parse_datasets(&line).unwrap().remove(0));
        Standing { dataset, has_snapshot: true, ..Standing::default() }
    }

    fn below_encrypted() -> Standing {
        Standing { encrypted_above: Some(name("back")), ..Standing::default() }
    }

    fn decided(head: &Head, standing: &Standing, policy: &args::Receive) -> Decision {
        decide(&name("back/x"), head, standing, policy).unwrap()
    }

    fn refused(head: &Head, standing: &Standing, policy: &args::Receive) -> (Reason, String) {
        let error = decide(&name("back/x"), head, standing, policy).unwrap_err();
        (error.reason(), error.to_string())
    }

    use DatasetKind::{FileSystem, Volume};

    #[test]
    fn below_an_encrypted_data_set_nothing_arrives_in_plain_text() {
        let none = args::Receive::default();
        // With properties, ZFS would switch encryption off.
        let decision = decided(&packaged(FileSystem, &[]), &below_encrypted(), &none);
        assert_eq!(
            (&decision.exclude[..], decision.encrypted),
            (&["encryption".to_owned()][..], true)
        );
        assert_eq!(decision.left_out, ["encryption"]);
        // Without, it inherits; and what is raw brings its own.
        for head in [head(FileSystem), Head { encrypted: true, ..packaged(Volume, &[]) }] {
            let decision = decided(&head, &below_encrypted(), &none);
            assert!(decision.exclude.is_empty() && decision.encrypted, "{decision:?}");
        }
        // What somebody wants in plain text may be so, and only that.
        let off = policy(&[("encryption", "off")], &[], &[]);
        let decision = decided(&packaged(Volume, &[]), &below_encrypted(), &off);
        assert_eq!(decision.overrides, [("encryption".to_owned(), "off".to_owned())]);
        assert!(!decision.encrypted && decision.exclude.is_empty());
        // Elsewhere nothing is touched.
        let decision = decided(&packaged(Volume, &[]), &Standing::default(), &none);
        assert_eq!(decision, Decision::default());
    }

    #[test]
    fn a_replica_that_is_plain_text_already_is_no_secret() {
        let standing = Standing { encrypted_above: Some(name("back")), ..there("off", "-") };
        let none = args::Receive::default();
        let (reason, text) = refused(&head(FileSystem), &standing, &none);
        assert_eq!(reason, Reason::NotEncrypted);
        assert!(text.contains("zfs rename back/x back/x-plain"), "{text}");
        let off = policy(&[("encryption", "off")], &[], &[]);
        // It cannot be set any more.
        assert_eq!(decided(&head(FileSystem), &standing, &off), Decision::default());
        let encrypted = there("aes-256-gcm", "back");
        let standing = Standing { encrypted_above: Some(name("back")), ..encrypted };
        assert!(decided(&head(FileSystem), &standing, &none).encrypted);
    }

    #[test]
    fn embedded_blocks_go_to_nothing_that_is_encrypted() {
        let none = args::Receive::default();
        let embedded = Head { embedded: true, ..head(Volume) };
        let encrypted = there("aes-256-gcm", "back");
        let cipher = policy(&[("encryption", "on")], &[], &[]);
        for (standing, policy) in
            [(&below_encrypted(), &none), (&encrypted, &none), (&Standing::default(), &cipher)]
        {
            let (reason, text) = refused(&embedded, standing, policy);
            assert_eq!(reason, Reason::Unsupported);
            assert!(text.contains("zfs send -L -c"), "{text}");
        }
        decided(&embedded, &Standing::default(), &none);
        decided(&embedded, &there("off", "-"), &none);
        decided(&head(Volume), &encrypted, &none);
    }

    #[test]
    fn a_raw_increment_is_refused_where_another_root_has_the_key() {
        let none = args::Receive::default();
        let raw = |salt| Head { encrypted: true, salt, ..head(Volume) };
        let own = there("aes-256-gcm", "back/x");
        assert!(!decided(&raw(None), &own, &none).key_changes);
        let other = there("aes-256-gcm", "back");
        let (reason, text) = refused(&raw(None), &other, &none);
        assert_eq!(reason, Reason::KeyMismatch);
        assert!(text.contains("zfs change-key -o keyformat=passphrase"), "{text}");
        // A root from the same source, by its place or by its salt.
        let in_tree = |tree| Standing { tree: Some(name(tree)), ..other.clone() };
        decided(&raw(None), &in_tree("back"), &none);
        refused(&raw(None), &in_tree("back/x"), &none);
        let salted = |standing: &Standing, salt| Standing { salt: Some(salt), ..standing.clone() };
        decided(&raw(Some(5)), &salted(&other, 5), &none);
        refused(&raw(Some(5)), &salted(&other, 6), &none);
        // A key that was set here goes.
        assert!(!decided(&raw(Some(5)), &salted(&own, 5), &none).key_changes);
        assert!(decided(&raw(Some(5)), &salted(&own, 6), &none).key_changes);
    }

    #[test]
    fn what_the_source_does_with_it_is_left_out_unless_asked_for() {
        let none = args::Receive::default();
        let all = ["canmount", "compression", "mountpoint", "quota", "refquota", "snapshot_limit"];
        let decision = decided(&packaged(FileSystem, &all), &Standing::default(), &none);
        assert_eq!(decision.left_out, ["mountpoint", "quota", "refquota", "snapshot_limit"]);
        assert_eq!(decision.exclude, decision.left_out);
        assert_eq!(decision.overrides, [("canmount".to_owned(), "noauto".to_owned())]);
        // Later it is left as whoever runs this machine wants it.
        let later = decided(&packaged(FileSystem, &all), &there("off", "-"), &none);
        assert_eq!(later.left_out[0], "canmount");
        assert_eq!(later.overrides, []);
        let asked = policy(&[("mountpoint", "/srv")], &["quota"], &["refquota", "canmount"]);
        let decision = decided(&packaged(FileSystem, &all), &Standing::default(), &asked);
        assert_eq!(decision.exclude, ["quota", "snapshot_limit"]);
        assert_eq!(decision.overrides, [("mountpoint".to_owned(), "/srv".to_owned())]);
        // A stream without properties leaves nothing out.
        let plain = decided(&head(FileSystem), &Standing::default(), &none);
        assert_eq!((plain.exclude.len(), plain.overrides.len()), (0, 1));
    }

    #[test]
    fn a_volume_is_told_nothing_that_only_file_systems_have() {
        let set = policy(&[("canmount", "noauto"), ("readonly", "on")], &["mountpoint"], &[]);
        let decision = decided(&head(Volume), &Standing::default(), &set);
        assert_eq!(decision.overrides, [("readonly".to_owned(), "on".to_owned())]);
        assert_eq!(decision.exclude, [""; 0]);
        let decision = decided(&head(FileSystem), &Standing::default(), &set);
        assert_eq!((decision.overrides.len(), decision.exclude.len()), (2, 1));
        // In a tree there may be both, and what was asked for is asked of ZFS.
        let mut tree = packaged(FileSystem, &["mountpoint"]);
        tree.members.push(Member { path: "v".into(), ..Member::default() });
        let decision = decided(&tree, &Standing::default(), &set);
        assert_eq!((decision.overrides.len(), decision.exclude.len()), (2, 1));
        let decision = decided(&tree, &Standing::default(), &args::Receive::default());
        assert_eq!((decision.exclude, decision.overrides), (vec!["mountpoint".to_owned()], vec![]));
    }
}
