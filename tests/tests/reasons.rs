//! REASONS.md says of every reason what it means, what was done, and what to check.

use std::fs;

use driftline_extent::Reason;

#[test]
fn every_reason_is_documented_and_no_other() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../REASONS.md")).unwrap();
    let mut sections = text.split("\n## ").skip(1);
    for reason in Reason::all() {
        let section = sections.next().unwrap_or_default();
        let (word, body) = section.split_once('\n').unwrap_or_default();
        assert_eq!(word, reason.as_str(), "sections come in the order of the codes");
        let parts: Vec<&str> = body.trim().split("\n\n").collect();
        assert_eq!(parts.len(), 3, "{word} has a meaning, what was done, and what to check");
        for (part, begins) in parts.iter().zip(["Exit ", "*What was done:* ", "*What to check:* "])
        {
            assert!(part.starts_with(begins), "{word}: {part:?} does not begin with {begins:?}");
            assert!(part.len() > begins.len() + 5, "{word}: {part:?} says nothing");
        }
    }
    assert_eq!(sections.next(), None, "a section without a reason");
}
