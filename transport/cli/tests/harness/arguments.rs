//! What the long forms of the harnesses are told.

use std::{
    env,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

pub(crate) struct Arguments {
    /// The program that is tried.
    pub(crate) program: PathBuf,
    /// How often.
    pub(crate) count: u64,
    /// What everything random follows from.
    pub(crate) seed: u64,
}

impl Arguments {
    /// Those of this process. `count` is the option for how often; `usual` is that if it is absent.
    pub(crate) fn read(count: &str, usual: u64) -> Self {
        let arguments: Vec<String> = env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1).cloned()
        };
        let number = |name| value(name).map(|text| text.parse().expect("a number is wanted"));
        let fresh =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
        let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("driftline"));
        let program = value("--program").map(PathBuf::from).or_else(beside);
        Self {
            program: program.expect("the program is beside the examples"),
            count: number(count).unwrap_or(usual),
            seed: number("--seed").unwrap_or_else(fresh),
        }
    }
}

/// The recorded data of the tests.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}
