//! Names of LINSTOR. They become parts of paths of its interface and of names of storage, so
//! nothing is taken for one that LINSTOR would not take.

use std::{fmt, str::FromStr};

/// Shortest name of a resource or snapshot.
const NAME_MIN: usize = 2;
/// Longest name of a resource or snapshot.
pub(crate) const NAME_MAX: usize = 48;
/// Longest name of a node.
const NODE_MAX: usize = 255;

/// Why a text is no name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no name of a LINSTOR {of}: {rule}")]
pub struct NameError {
    of: &'static str,
    /// The text, or its beginning.
    text: String,
    rule: &'static str,
}

const RULE: &str =
    "give 2 to 48 letters, digits and any of -_, of which the first is a letter or _";
const NODE_RULE: &str = "give 2 to 255 letters, digits and any of -_., of which the first is a \
                         letter or digit";

fn is_name(text: &str) -> bool {
    (NAME_MIN..=NAME_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

fn is_node(text: &str) -> bool {
    (NAME_MIN..=NODE_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A kind of names: its type, what it is of, and what is one.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $of:literal, $is:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(String);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether this is the same name to LINSTOR, which does not tell upper case from
            /// lower.
            pub fn is(&self, name: &str) -> bool {
                self.0.eq_ignore_ascii_case(name)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.is(&other.0)
            }
        }

        impl Eq for $name {}

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match $is(text) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(NameError {
                        of: $of,
                        text: text.chars().take(NODE_MAX).collect(),
                        rule: $rule,
                    }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a resource definition: of all its resources on all nodes.
    ResourceName,
    "resource",
    is_name,
    RULE
);
name!(
    /// The name of a snapshot, behind that of its resource.
    SnapshotName,
    "snapshot",
    is_name,
    RULE
);
name!(
    /// The name of a node, which is mostly that of the machine.
    NodeName,
    "node",
    is_node,
    NODE_RULE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_linstor_takes() {
        let longest = "n".repeat(NAME_MAX);
        for good in ["ab", "_a", "a-", "web_1", "Web-1", &longest] {
            assert_eq!(good.parse::<ResourceName>().map(|n| n.to_string()), Ok(good.to_owned()));
            assert!(good.parse::<SnapshotName>().is_ok(), "{good}");
        }
        let long = "n".repeat(NAME_MAX + 1);
        for bad in [
            "", "a", "1a", "-a", "a.b", "a/b", "../a", "a b", "a@b", "a%2f", "a?b", "\u{e4}b",
            &long,
        ] {
            let error = bad.parse::<ResourceName>().expect_err(bad).to_string();
            assert!(error.contains("is no name of a LINSTOR resource: give 2 to 48"), "{error}");
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nodes_may_have_the_names_of_machines() {
        for good in ["alpha", "alpha.example.org", "10-0-0-1"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "a", ".alpha", "-alpha", "al/pha", "al pha", "a&nodes=b"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn case_does_not_matter_to_linstor() {
        let name: ResourceName = "Web".parse().expect("it is a name");
        assert!(name.is("wEB"));
        assert!(!name.is("web1"));
        assert_eq!(name, "web".parse().expect("it is a name"));
    }
}
