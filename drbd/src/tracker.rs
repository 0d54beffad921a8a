//! A DRBD resource without a peer on a device that is there: DRBD records what changes, and
//! mirrors nothing. The metadata is on a device of its own, so that the data stays where it is.
//!
//! What is to be done is decided here, and shown before it is done.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use driftline_extent::{Explained, Reason};

use crate::host::{self, Found, HostError, MetaDisk, Store};

/// Where DRBD's configuration is.
const FOLDER: &str = "/etc/drbd.d";

/// How a file begins that was made here. No other is removed.
const HEAD: &str = "# Made by `driftline drbd init-tracker`; its --undo removes it.\n";

/// Why there is nothing to be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// DRBD or the storage refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Something that was said makes no sense.
    #[error("{0}")]
    Words(String),
    /// There is a resource of this name that was not made here.
    #[error("{path} was not made by init-tracker, or says something else: it is left alone")]
    Foreign {
        /// The file.
        path: String,
    },
    /// A file cannot be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not DRBD 8.4.
    #[error(
        "this is not DRBD 8.4: on DRBD 9 the free bitmap slots of a volume record its changes \
         already, and nothing is to be prepared for --mode cumulative"
    )]
    NotPrepared,
}

impl Explained for TrackerError {
    fn reason(&self) -> Reason {
        match self {
            Self::Host(error) => error.reason(),
            Self::Foreign { .. } | Self::NotPrepared => Reason::Unsupported,
            Self::Words(_) | Self::File { .. } => Reason::Failed,
        }
    }
}

/// What a tracker is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracker {
    /// The resource's name.
    pub resource: String,
    /// The device with the data.
    pub device: PathBuf,
    /// The device for the metadata.
    pub meta: PathBuf,
}

/// One thing that is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A file is written.
    Write(PathBuf, String),
    /// A file is removed.
    Remove(PathBuf),
    /// A command is run.
    Run(Vec<String>),
}

impl fmt::Display for Step {
    /// As it would be typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(path, text) => write!(f, "cat > {} << 'END'\n{text}END", path.display()),
            Self::Remove(path) => write!(f, "rm {}", path.display()),
            Self::Run(args) => f.write_str(&host::command_text(args)),
        }
    }
}

impl Step {
    /// Does it.
    ///
    /// # Errors
    ///
    /// That of the command, or of the file.
    pub fn run(&self) -> Result<(), TrackerError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error| TrackerError::File { path, error }
        };
        match self {
            Self::Write(path, text) => fs::write(path, text).map_err(failed(path)),
            Self::Remove(path) => fs::remove_file(path).map_err(failed(path)),
            Self::Run(args) => Ok(host::execute(args).map(drop)?),
        }
    }
}

/// What there is of a tracker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    /// The minor in its configuration, if that is there.
    configured: Option<u32>,
    /// Whether there is metadata of it.
    has_metadata: bool,
    /// Whether DRBD has its device.
    is_up: bool,
}

impl Tracker {
    /// What is left to be done so that it is there. Nothing, where it is there.
    ///
    /// # Errors
    ///
    /// What makes no sense, or is there and something else.
    pub fn to_make(&self) -> Result<Vec<Step>, TrackerError> {
        self.check()?;
        Store::find(&self.device)?;
        let state = self.state()?;
        let minor = match state.configured {
            Some(minor) => minor,
            None => free_minor(),
        };
        Ok(self.steps(state, minor, &host::this_host()))
    }

    /// What is to be done so that nothing of it is left but the data.
    ///
    /// # Errors
    ///
    /// As [`to_make`](Self::to_make).
    pub fn to_undo(&self) -> Result<Vec<Step>, TrackerError> {
        self.check()?;
        Ok(self.steps_back(self.state()?))
    }

    fn steps(&self, state: State, minor: u32, host: &str) -> Vec<Step> {
        let name = self.resource.as_str();
        let run = |words: &[&str]| Step::Run(words.iter().map(|word| (*word).to_owned()).collect());
        let minor_text = minor.to_string();
        let mut steps = Vec::new();
        if state.configured.is_none() {
            steps.push(Step::Write(self.path(), self.configuration(minor, host)));
        }
        if state.is_up {
            return steps;
        }
        if !state.has_metadata {
            // Without --force: on a device that holds something it asks, and nobody answers.
            steps.push(run(&["drbdadm", "create-md", name]));
        }
        steps.push(run(&["drbdadm", "new-resource", name]));
        steps.push(run(&["drbdadm", "new-minor", name]));
        steps.push(run(&["drbdadm", "attach", name]));
        if state.has_metadata {
            steps.push(run(&["drbdadm", "primary", name]));
        } else {
            steps.push(run(&["drbdadm", "primary", "--force", name]));
            // Of fresh metadata every bit is set, and the activity log rests until they are not.
            steps.push(run(&["drbdsetup", "new-current-uuid", &minor_text, "--clear-bitmap"]));
        }
        steps
    }

    fn steps_back(&self, state: State) -> Vec<Step> {
        let run = |words: &[&str]| Step::Run(words.iter().map(|word| (*word).to_owned()).collect());
        let name = self.resource.as_str();
        let mut steps = Vec::new();
        if state.configured.is_some() {
            if state.is_up {
                steps.push(run(&["drbdadm", "down", name]));
            }
            if state.has_metadata {
                steps.push(run(&["drbdadm", "--", "--force", "wipe-md", name]));
            }
            steps.push(Step::Remove(self.path()));
        }
        steps
    }

    fn check(&self) -> Result<(), TrackerError> {
        let name = &self.resource;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(is_plain) {
            let why = format!("{name:?} cannot be a resource: use letters, digits, _, - and .");
            return Err(TrackerError::Words(why));
        }
        for path in [&self.device, &self.meta] {
            let text = path.to_str().filter(|text| text.starts_with('/'));
            if text.is_none_or(|text| text.contains(['"', '\\', '\n'])) {
                let why = format!("{} is no absolute path of a device", path.display());
                return Err(TrackerError::Words(why));
            }
        }
        if self.device == self.meta {
            let why =
                "data and metadata need two devices: the data would be overwritten".to_owned();
            return Err(TrackerError::Words(why));
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(format!("{}.res", self.resource))
    }

    fn state(&self) -> Result<State, TrackerError> {
        if !host::is_84()? {
            return Err(TrackerError::NotPrepared);
        }
        let found = match Found::look(&self.resource, 0) {
            Ok(found) => Some(found),
            Err(HostError::NoDrbd) => return Err(HostError::NoDrbd.into()),
            // What it says of one that is not there differs.
            Err(_) => None,
        };
        let configured = self.configured()?;
        if let Some(found) = &found
            && (found.backing != self.device
                || found.meta != MetaDisk::External(self.meta.clone())
                || configured != Some(found.minor))
        {
            let path = found.device();
            return Err(TrackerError::Foreign { path });
        }
        let is_up = found.is_some();
        let dump = ["drbdadm", "--", "--force", "dump-md", &self.resource].map(str::to_owned);
        let has_metadata = is_up || configured.is_some() && host::execute(&dump).is_ok();
        Ok(State { configured, has_metadata, is_up })
    }

    /// The minor in the configuration, which is there and says what it would say if it was made
    /// now.
    fn configured(&self) -> Result<Option<u32>, TrackerError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(TrackerError::File { path: path.display().to_string(), error });
            }
        };
        let minor =
            minor_in(&text).filter(|minor| text == self.configuration(*minor, &host::this_host()));
        minor.map(Some).ok_or_else(|| TrackerError::Foreign { path: path.display().to_string() })
    }

    /// A resource of one host. Nothing can be reached at its address, and nothing asks for it.
    fn configuration(&self, minor: u32, host: &str) -> String {
        let Self { resource, device, meta } = self;
        let (device, meta) = (device.display(), meta.display());
        format!(
            "{HEAD}resource {resource} {{\n    on {host} {{\n        device /dev/drbd{minor} minor \
             {minor};\n        disk \"{device}\";\n        meta-disk \"{meta}\";\n        address \
             127.0.0.1:{port};\n    }}\n}}\n",
            port = 7700 + minor % 1000,
        )
    }
}

/// The number after `minor` in a configuration that was made here.
fn minor_in(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once(" minor ")?;
    rest.split_once(';')?.0.parse().ok()
}

/// The first minor after all that DRBD has, and all that its configuration speaks of.
fn free_minor() -> u32 {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = devices
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("drbd")?.parse::<u32>().ok());
    let files = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let configured = files.filter_map(|entry| minor_in(&fs::read_to_string(entry.path()).ok()?));
    devices.chain(configured).max().map_or(0, |minor| minor.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker() -> Tracker {
        Tracker { resource: "vm1".into(), device: "/dev/vg/vm1".into(), meta: "/dev/vg/md".into() }
    }

    fn typed(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let none = State { configured: None, has_metadata: false, is_up: false };
        let steps = typed(&tracker().steps(none, 3, "host"));
        assert!(steps[0].starts_with("cat > /etc/drbd.d/vm1.res << 'END'\n# Made by"), "{steps:?}");
        assert!(steps[0].contains("disk \"/dev/vg/vm1\";") && steps[0].ends_with("}\nEND"));
        assert_eq!(
            steps[1..],
            [
                "drbdadm create-md vm1",
                "drbdadm new-resource vm1",
                "drbdadm new-minor vm1",
                "drbdadm attach vm1",
                "drbdadm primary --force vm1",
                "drbdsetup new-current-uuid 3 --clear-bitmap"
            ]
        );
        // After a reboot the bitmap is what tells the changes: it stays.
        let down = State { configured: Some(3), has_metadata: true, is_up: false };
        let again = ["new-resource", "new-minor", "attach", "primary"];
        let again = again.map(|verb| format!("drbdadm {verb} vm1"));
        assert_eq!(typed(&tracker().steps(down, 3, "host")), again);
        let up = State { is_up: true, ..down };
        assert_eq!(tracker().steps(up, 3, "host"), []);
    }

    #[test]
    fn only_what_was_made_is_undone() {
        let none = State { configured: None, has_metadata: false, is_up: false };
        assert_eq!(tracker().steps_back(none), []);
        let up = State { configured: Some(3), has_metadata: true, is_up: true };
        let steps =
            ["drbdadm down vm1", "drbdadm -- --force wipe-md vm1", "rm /etc/drbd.d/vm1.res"];
        assert_eq!(typed(&tracker().steps_back(up)), steps);
    }

    #[test]
    fn a_configuration_that_was_made_is_known_again() {
        let text = tracker().configuration(12, "host");
        assert_eq!(minor_in(&text), Some(12));
        assert_eq!(minor_in("resource x { }"), None);
        for (resource, device, meta) in [
            ("", "/a", "/b"),
            ("a/b", "/a", "/b"),
            ("-a", "/a", "/b"),
            ("a", "a", "/b"),
            ("a", "/a", "/a"),
            ("a", "/a", "/b\"; }"),
        ] {
            let (device, meta) = (device.into(), meta.into());
            let tracker = Tracker { resource: resource.into(), device, meta };
            assert!(matches!(tracker.check(), Err(TrackerError::Words(_))), "{tracker:?}");
        }
    }
}
