//! Which data sets of a tree take part.

use thiserror::Error;

use crate::name::{DatasetName, NAME_LEN_MAX};

/// Why a text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{pattern:?} is no pattern of data sets: {why}")]
pub struct PatternError {
    pattern: String,
    why: &'static str,
}

/// Patterns of what to include and what to exclude, in no order.
///
/// A pattern is matched against the whole path of a data set below the root of the tree,
/// which is empty for the root itself:
///
/// | pattern | stands for |
/// |---|---|
/// | `vm` | `vm` itself |
/// | `*` | any characters within a component: `vm/*-swap`, `*/tmp` |
/// | `?` | any one character within a component |
/// | `**` | any number of components, also none: `**/swap` is a `swap` at any depth |
///
/// A pattern that matches a data set speaks of everything below it as well, as a folder does
/// with rsync. A data set takes part if an include speaks of it, or there are no includes,
/// and no exclude does: an exclude cannot be overruled.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Patterns {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Patterns {
    /// The patterns as they are written.
    pub fn new<'a>(
        include: impl IntoIterator<Item = &'a str>,
        exclude: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PatternError> {
        Ok(Self {
            include: include.into_iter().map(Pattern::new).collect::<Result<_, _>>()?,
            exclude: exclude.into_iter().map(Pattern::new).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the data set with this path below the root takes part.
    pub fn take(&self, path: &str) -> bool {
        let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let speaks = |pattern: &Pattern| pattern.speaks_of(&components);
        (self.include.is_empty() || self.include.iter().any(speaks))
            && !self.exclude.iter().any(speaks)
    }

    /// Whether this data set takes part in the tree below `root`; none does that is not there.
    pub fn take_of(&self, root: &DatasetName, dataset: &DatasetName) -> bool {
        dataset.below(root).is_some_and(|path| self.take(path))
    }
}

/// One pattern, in components.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pattern(Vec<String>);

/// The component that stands for any number of them.
const ANY: &str = "**";

impl Pattern {
    fn new(text: &str) -> Result<Self, PatternError> {
        let fail = |why| {
            let pattern = text.chars().take(NAME_LEN_MAX).collect();
            Err(PatternError { pattern, why })
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.: %/*?".contains(c);
        if text.len() > NAME_LEN_MAX {
            return fail("it is longer than any name");
        }
        if !text.chars().all(legal) {
            return fail("it has a character that is in no name; only *, ** and ? are special");
        }
        if text.split('/').any(str::is_empty) {
            return fail("a part of it is empty; it is a path below the root, without a / first");
        }
        if text.split('/').any(|part| part != ANY && part.contains(ANY)) {
            return fail("** stands alone between slashes");
        }
        Ok(Self(text.split('/').map(str::to_owned).collect()))
    }

    /// Whether it matches the data set with these components, or one above it.
    fn speaks_of(&self, components: &[&str]) -> bool {
        let one = |pattern: &String, component: &&str| {
            let one = |p: &u8, c: &u8| *p == b'?' || p == c;
            matches(pattern.as_bytes(), component.as_bytes(), |p| *p == b'*', one)
        };
        (0..=components.len())
            .any(|len| matches(&self.0, &components[..len], |part| part == ANY, one))
    }
}

/// Whether a pattern matches the whole of a text: a star matches any run of elements, also
/// none, and anything else the one element that `one` says.
///
/// Only the last star needs to be tried again with a longer run: whatever an earlier one took
/// more, the later could take as well. So this takes no more steps than the product of both
/// lengths.
fn matches<P, T>(
    pattern: &[P],
    text: &[T],
    is_star: impl Fn(&P) -> bool,
    one: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and where the text goes on once that has taken its run.
    let mut retry = None;
    loop {
        match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(star), _) if is_star(star) => {
                p += 1;
                retry = Some((p, t));
                continue;
            }
            (Some(part), Some(element)) if one(part, element) => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((after_star, run_end)) if run_end < text.len() => {
                (p, t) = (after_star, run_end + 1);
                retry = Some((p, t));
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matching(pattern: &str, paths: &[&'static str]) -> Vec<&'static str> {
        let patterns = Patterns::new([pattern], []).expect("it is a pattern");
        paths.iter().copied().filter(|path| patterns.take(path)).collect()
    }

    #[test]
    fn the_table_of_patterns_holds() {
        let paths = ["", "vm", "vm/a", "vm/a/swap", "vm2", "swap", "db/swap", "db/swap-1/x"];
        assert_eq!(matching("vm", &paths), ["vm", "vm/a", "vm/a/swap"]);
        assert_eq!(matching("vm?", &paths), ["vm2"]);
        assert_eq!(matching("*", &paths), paths[1..]);
        assert_eq!(matching("**", &paths), paths);
        assert_eq!(matching("vm*", &paths), ["vm", "vm/a", "vm/a/swap", "vm2"]);
        assert_eq!(matching("*/swap", &paths), ["db/swap"]);
        assert_eq!(matching("**/swap", &paths), ["vm/a/swap", "swap", "db/swap"]);
        assert_eq!(matching("vm/**", &paths), ["vm", "vm/a", "vm/a/swap"]);
        assert_eq!(matching("vm/*/**/swap", &paths), ["vm/a/swap"]);
        assert_eq!(matching("*/swap*", &paths), ["db/swap", "db/swap-1/x"]);
        assert_eq!(matching("nothing", &paths), [""; 0]);
    }

    #[test]
    fn an_exclude_cannot_be_overruled() {
        let patterns = Patterns::new(["vm", "db/*"], ["**/tmp", "vm/x"]).expect("they are");
        let taken = |path| patterns.take(path);
        assert!(taken("vm") && taken("vm/a") && taken("db/a"));
        assert!(!taken("") && !taken("db") && !taken("other"));
        assert!(!taken("vm/x") && !taken("vm/x/y") && !taken("vm/tmp") && !taken("db/tmp/y"));
        let all = Patterns::default();
        assert!(all.take("") && all.take("a/b"));
        let name = |text: &str| text.parse::<DatasetName>().expect("it is a name");
        assert!(patterns.take_of(&name("p/q"), &name("p/q/vm/a b")));
        assert!(!patterns.take_of(&name("p/q"), &name("p/q2")));
        assert!(!all.take_of(&name("p/q"), &name("p/q2")) && all.take_of(&name("p"), &name("p")));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "",
            "/",
            "/vm",
            "vm/",
            "a//b",
            "a**",
            "**a",
            "***",
            "[ab]",
            "a{b}",
            "!a",
            "a\\*",
            "^a$",
            "a@b",
            "\u{e4}",
            &"a".repeat(256),
        ] {
            let error = Patterns::new([], [bad]).expect_err(bad).to_string();
            assert!(error.contains("is no pattern of data sets: "), "{error}");
        }
    }

    /// The definition, which tries everything.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
            ([b'?', p @ ..], [_, t @ ..]) => naive(p, t),
            ([a, p @ ..], [b, t @ ..]) => a == b && naive(p, t),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_equals_its_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let one = |p: &u8, t: &u8| *p == b'?' || p == t;
            let (p, t) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(p, t, |p| *p == b'*', one), naive(p, t));
        }

        #[test]
        fn whatever_is_taken_out_takes_its_subtree_along(
            pattern in "(\\*\\*|[ab*?]{1,3})(/(\\*\\*|[ab?]{1,2})){0,2}",
            path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
            below in "[ab]{1,2}",
        ) {
            let Ok(patterns) = Patterns::new([], [&pattern[..]]) else { return Ok(()) };
            let deeper = format!("{path}/{below}");
            prop_assert!(patterns.take(&path) || !patterns.take(&deeper));
        }
    }
}
