//! What a controller says about what it did: a list of messages, each with a masked number.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::model::null_is_default;

/// The two highest bits tell how bad it is.
const LEVEL_SHIFT: u32 = 62;
/// The lowest bits are the code; those between tell of what, and in which operation.
const CODE_BITS: i64 = 0x7fff;
/// Codes for what is not there.
const NOT_FOUND: [i64; 2] = [300, 399];
/// Codes for a snapshot that is not there, of a resource that is.
const NO_SNAPSHOT: [i64; 2] = [313, 315];

/// How bad a message is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// It was done.
    Success,
    /// It is good to know.
    Info,
    /// It was done, but not as one may think.
    Warning,
    /// It was not done, or not all of it.
    Error,
}

/// One message of a controller.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct Message {
    /// Number with masks, see [`Message::level`] and [`Message::code`].
    pub ret_code: i64,
    /// What happened.
    pub message: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<String>,
    /// Where the controller keeps more: `linstor error-reports show ID`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub error_report_ids: Vec<String>,
    /// What it is about, by kind.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub obj_refs: BTreeMap<String, String>,
}

impl Message {
    /// How bad it is.
    pub const fn level(&self) -> Level {
        match self.ret_code.cast_unsigned() >> LEVEL_SHIFT {
            0 => Level::Success,
            1 => Level::Info,
            2 => Level::Warning,
            _ => Level::Error,
        }
    }

    /// The number without masks, by which LINSTOR tells one failure from another.
    pub const fn code(&self) -> u16 {
        // Fifteen bits.
        (self.ret_code & CODE_BITS) as u16
    }

    fn is_among(&self, [first, last]: [i64; 2]) -> bool {
        (first..=last).contains(&(self.ret_code & CODE_BITS))
    }

    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        self.is_among(NOT_FOUND)
    }

    /// Whether it says that a snapshot is not there.
    pub(crate) fn is_no_snapshot(&self) -> bool {
        self.is_among(NO_SNAPSHOT)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let rest =
            [("cause", &self.cause), ("details", &self.details), ("correction", &self.correction)];
        for (what, text) in rest {
            if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
                write!(f, "; {what}: {text}")?;
            }
        }
        match self.error_report_ids.as_slice() {
            [] => Ok(()),
            ids => write!(f, "; see linstor error-reports show {}", ids.join(" ")),
        }
    }
}

/// All messages, one after the other.
pub(crate) fn listed(messages: &[Message]) -> String {
    messages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// The messages of an answer. Some are a list, and some, by LINSTOR's own description, one alone.
pub(crate) fn messages(body: &[u8]) -> Result<Vec<Message>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Answer {
        List(Vec<Message>),
        One(Message),
    }
    serde_json::from_slice(body).map(|answer| match answer {
        Answer::List(messages) => messages,
        Answer::One(message) => vec![message],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with nothing but a number and a text.
    fn message(ret_code: i64) -> Message {
        Message { ret_code, message: "it happened".to_owned(), ..Message::default() }
    }

    #[test]
    fn the_masks_are_linstors() {
        for (ret_code, level, code) in [
            (1, Level::Success, 1),
            (0x0000_0000_010C_0001, Level::Success, 1),
            (0x4000_0000_0000_2710, Level::Info, 10_000),
            (i64::MIN | 3000, Level::Warning, 3000),
            // FAIL_EXISTS_SNAPSHOT_DFN while creating one.
            (-4_611_686_018_409_823_742, Level::Error, 514),
            (-1, Level::Error, 0x7fff),
        ] {
            assert_eq!((message(ret_code).level(), message(ret_code).code()), (level, code));
        }
        assert!(message(399).is_not_found() && !message(400).is_not_found());
        assert!(message(315).is_no_snapshot() && !message(301).is_no_snapshot());
    }

    #[test]
    fn a_message_is_told_whole() {
        let told = Message {
            cause: Some("the satellite is gone".to_owned()),
            details: Some(String::new()),
            correction: Some("start it".to_owned()),
            error_report_ids: vec!["5F-0".to_owned(), "5F-1".to_owned()],
            ..message(0)
        };
        assert_eq!(
            told.to_string(),
            "it happened; cause: the satellite is gone; correction: start it; \
             see linstor error-reports show 5F-0 5F-1"
        );
    }

    #[test]
    fn lists_and_single_messages_are_read() {
        let one = r#"{"ret_code": -1, "message": "it happened", "cause": null,
                      "error_report_ids": null, "new": {"field": [1]}}"#;
        assert_eq!(messages(one.as_bytes()).expect("it is one"), [message(-1)]);
        let list = format!("[{one},{one}]");
        assert_eq!(messages(list.as_bytes()).expect("they are two").len(), 2);
        assert_eq!(messages(b"[]").expect("they are none"), []);
        for bad in ["", "{}", "[{}]", "[1]", r#"[{"ret_code":"1","message":""}]"#, "<html>"] {
            assert!(messages(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
