//! A state to start from, and runs that a fault befalls.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use tempfile::TempDir;

use super::{Fault, Place, files::list, random::Random};

/// How a run that a fault befell ended, all told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CameTo {
    Well,
    NextWell,
    Repaired,
    Agreed,
}

/// One call of a run that nothing befell: the how many-th of its thread, and what it returned.
#[derive(Clone, Copy, Debug)]
struct Call {
    at: u64,
    len: u64,
}

/// One folder: what runs start from, and the one at hand in `work`.
pub(crate) struct World {
    dir: TempDir,
    program: PathBuf,
    place: Place,
    /// The source at the tip, and the bytes of the replica of it.
    tip: String,
    bytes: Vec<u8>,
    /// The calls of an undisturbed run, for each fault and each state to start from.
    calls: BTreeMap<(Fault, &'static str), Vec<Call>>,
    pub(crate) came_to: CameTo,
}

/// States to start from: a replica of the base, or none.
const STARTS: [&str; 2] = ["base", "nothing"];

impl World {
    /// A replica of a file, or where the trust folder matters of an image of DRBD.
    pub(crate) fn new(
        program: &Path,
        data: &Path,
        place: Place,
        random: &mut Random,
    ) -> Result<Self, String> {
        let dir = TempDir::with_prefix("driftline-faults-").map_err(|error| error.to_string())?;
        let mut world = Self {
            dir,
            program: program.to_owned(),
            place,
            tip: String::new(),
            bytes: Vec::new(),
            calls: BTreeMap::new(),
            came_to: CameTo::Well,
        };
        for start in ["nothing", "work"] {
            fs::create_dir(world.path(start)).map_err(|error| error.to_string())?;
        }
        for number in 0..2 {
            world.tip = world.go_on(data, number, random)?;
            world.push(&world.tip)?;
            if number == 0 {
                world.copy("work", "base")?;
            }
        }
        world.bytes = world.replica();
        if place != Place::Trust
            && world.bytes != fs::read(world.path("source.img")).unwrap_or_default()
        {
            return Err("an undisturbed replica is not its source".to_owned());
        }
        Ok(world)
    }

    /// The source is at its base, or its tip.
    fn go_on(&self, data: &Path, number: usize, random: &mut Random) -> Result<String, String> {
        if self.place == Place::Trust {
            let image = ["v84-live-s0.raw", "v84-live-s1.raw"][number];
            let name = format!("{number}.img");
            unpack(&data.join(format!("drbd/{image}.zst")), &self.path(&name))?;
            return Ok(format!("drbdmeta:../{name}"));
        }
        let path = self.path("source.img");
        let content = if number == 0 {
            let mut content = random.noise(3 << 20);
            content[1 << 20..(1 << 20) + 200_000].fill(0);
            content
        } else {
            let mut content = fs::read(&path).map_err(|error| error.to_string())?;
            let changed = random.noise(700_000);
            content[300_000..1_000_000].copy_from_slice(&changed);
            content[2 << 20..(2 << 20) + 100_000].fill(0);
            content
        };
        fs::write(&path, content).map_err(|error| error.to_string())?;
        Ok("file:../source.img".to_owned())
    }

    /// Leaves the folder where it is.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    /// Lets a run have this fault, and looks; whether it had it.
    pub(crate) fn befall(&mut self, fault: Fault, random: &mut Random) -> Result<bool, String> {
        // Nothing is journaled of a first copy.
        let wide = !matches!(self.place, Place::Journal);
        let start = STARTS[(wide && random.below(3) == 0) as usize];
        if !self.calls.contains_key(&(fault, start)) {
            let calls = self.trace(fault, start)?;
            if calls.is_empty() {
                return Err(format!("no run has such a call, from {start}"));
            }
            self.calls.insert((fault, start), calls);
        }
        let calls = &self.calls[&(fault, start)];
        let Call { at, len } = calls[random.below(calls.len() as u64) as usize];
        self.copy(start, "work")?;
        let injection = fault.injection(at, len);
        let status = self.traced(fault, start, Some(&injection))?;
        let log = fs::read_to_string(self.path("trace")).map_err(|error| error.to_string())?;
        let mut injected = log.lines().filter(|line| line.contains("(INJECTED)")).peekable();
        // Another thread may have had a call of another length there, which no kernel answers so.
        let possible = |line: &str| match fault {
            Fault::Lost => asked(line).is_some_and(|asked| asked == len),
            Fault::Short => asked(line).is_some_and(|asked| asked > 1),
            _ => true,
        };
        if injected.peek().is_none() || !injected.all(possible) {
            return Ok(false);
        }
        self.look(status).map_err(|what| format!("{injection} from {start}: {what}"))?;
        Ok(true)
    }

    /// What has to be true once the fault is over.
    fn look(&mut self, status: ExitStatus) -> Result<(), String> {
        let well = matches!(status.code(), Some(0 | 8));
        if well && self.replica() != self.bytes {
            return Err(format!("ends with {status}, and the replica is not its source"));
        }
        if status.code().is_none() || status.code() == Some(101) {
            return Err(format!("ends with {status}: {}", self.said()));
        }
        self.came_to = if well { CameTo::Well } else { CameTo::NextWell };
        let ways: [(CameTo, &[&[&str]]); 3] = [
            (self.came_to, &[&["push", &self.tip, "file:replica.img"]]),
            (
                CameTo::Repaired,
                &[
                    &["scrub", "file:replica.img", "--repair"],
                    &["push", &self.tip, "file:replica.img"],
                ],
            ),
            (CameTo::Agreed, &[&["push", &self.tip, "file:replica.img", "--full"]]),
        ];
        let mut told = String::new();
        for (came_to, way) in ways {
            let mut last = None;
            for arguments in way {
                last = self.run(arguments)?.code();
            }
            if matches!(last, Some(0 | 8)) {
                self.came_to = came_to;
                if came_to == CameTo::Agreed {
                    println!("a person had to agree: {told}");
                }
                return self.look_at_last();
            }
            told.push_str(&self.said());
            // Nothing else is tried that nobody was told of.
            if !["scrub", "--full", "--repair"].iter().any(|word| told.contains(word)) {
                break;
            }
        }
        Err(format!("after {status} no run goes well any more: {told}"))
    }

    /// That all is well again, and nothing is left behind.
    fn look_at_last(&self) -> Result<(), String> {
        if self.replica() != self.bytes {
            return Err("the next run goes well, and the replica is not its source".to_owned());
        }
        let verified = self.run(&["verify", "file:replica.img"])?;
        if verified.code() != Some(0) {
            return Err(format!("is not clean in the end: {}", self.said()));
        }
        let mut files = Vec::new();
        list(&self.path("work"), &mut files);
        for path in files {
            let name = path.strip_prefix(self.path("work")).unwrap_or(&path).to_string_lossy();
            let book = name.strip_prefix("replica.img.driftline/");
            let known = ["ids", "journal", "lock", "overlay", "repair", "state"];
            let known = match book {
                Some(book) => known.contains(&book),
                None => {
                    name == "replica.img" || (name.starts_with("trust/") && !name.contains(".new"))
                }
            };
            let len = path.metadata().map_or(0, |metadata| metadata.len());
            if !known || (matches!(book, Some("journal" | "overlay")) && len > 0) {
                return Err(format!("{name} is left behind, with {len} bytes"));
            }
        }
        Ok(())
    }

    /// The calls of an undisturbed run.
    fn trace(&self, fault: Fault, start: &str) -> Result<Vec<Call>, String> {
        self.copy(start, "work")?;
        let status = self.traced(fault, start, None)?;
        if !matches!(status.code(), Some(0 | 8)) {
            return Err(format!("an undisturbed run ends with {status}: {}", self.said()));
        }
        let log = fs::read_to_string(self.path("trace")).map_err(|error| error.to_string())?;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let mut calls = Vec::new();
        for line in log.lines().filter(|line| line.contains('(')) {
            let Some((thread, _)) = line.split_once(' ') else { continue };
            let at = counts.entry(thread).or_default();
            *at += 1;
            // What has no length, as a change of length, loses nothing.
            let len = returned(line).filter(|len| *len > 0);
            if len.is_some() || !matches!(fault, Fault::Short | Fault::Lost) {
                calls.push(Call { at: *at, len: len.unwrap_or(0) });
            }
        }
        Ok(calls)
    }

    /// Runs a push under strace, from what is in `work`.
    fn traced(
        &self,
        fault: Fault,
        start: &str,
        injection: Option<&str>,
    ) -> Result<ExitStatus, String> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-s", "0", "-e", "signal=none", "-o"]).arg(self.path("trace"));
        strace.arg("-e").arg(format!("trace={}", fault.calls()));
        for path in self.files(start) {
            strace.arg("-P").arg(path);
        }
        if let Some(injection) = injection {
            strace.args(["-e", injection]);
        }
        strace.arg(&self.program).args(["push", &self.tip, "file:replica.img"]);
        self.finish(strace)
    }

    /// The files of the place; those that a run makes as well.
    fn files(&self, start: &str) -> Vec<PathBuf> {
        let work = self.path("work");
        let books = |names: &[&str]| {
            names.iter().map(|name| work.join("replica.img.driftline").join(name)).collect()
        };
        match self.place {
            Place::Data => vec![work.join("replica.img")],
            Place::Books => books(&["state", "ids", "overlay", "repair"]),
            Place::Journal => books(&["journal"]),
            Place::Trust => {
                let mut files = Vec::new();
                let known = if start == "nothing" { "base" } else { start };
                list(&self.path(known).join("trust"), &mut files);
                let within = |path: PathBuf| {
                    path.strip_prefix(self.path(known)).ok().map(|path| work.join(path))
                };
                files.into_iter().filter_map(within).collect()
            }
        }
    }

    fn push(&self, source: &str) -> Result<(), String> {
        let status = self.run(&["push", source, "file:replica.img"])?;
        if status.code() == Some(0) { Ok(()) } else { Err(format!("{status}: {}", self.said())) }
    }

    fn run(&self, arguments: &[&str]) -> Result<ExitStatus, String> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        self.finish(command)
    }

    /// Runs it in `work`; what it says goes to a file.
    fn finish(&self, mut command: Command) -> Result<ExitStatus, String> {
        let said = File::create(self.path("said")).map_err(|error| error.to_string())?;
        let twice = said.try_clone().map_err(|error| error.to_string())?;
        command.current_dir(self.path("work")).stdin(Stdio::null()).stdout(said).stderr(twice);
        command.env("DRIFTLINE_TRUST_DIR", self.path("work").join("trust"));
        command.env_remove("DRIFTLINE_LOG");
        command.status().map_err(|error| format!("{command:?}: {error}"))
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap_or_default()
    }

    fn replica(&self) -> Vec<u8> {
        fs::read(self.path("work/replica.img")).unwrap_or_default()
    }

    /// Makes one folder what another is; holes stay holes.
    fn copy(&self, from: &str, to: &str) -> Result<(), String> {
        let _ = fs::remove_dir_all(self.path(to));
        let mut cp = Command::new("cp");
        cp.args(["-a", "--sparse=always"]).arg(self.path(from)).arg(self.path(to));
        let status = cp.status().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("{from} cannot be copied")) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// How many bytes a write was asked to write: of `pwrite64(3, ""..., 32, 64)` the third.
fn asked(line: &str) -> Option<u64> {
    let (_, arguments) = line.split_once("\"\"")?;
    let (_, rest) = arguments.split_once(", ")?;
    rest.split([',', ')']).next()?.parse().ok()
}

/// What a call returned.
fn returned(line: &str) -> Option<u64> {
    let (_, returned) = line.rsplit_once(" = ")?;
    returned.split(' ').next()?.parse().ok()
}

fn unpack(packed: &Path, to: &Path) -> Result<(), String> {
    let packed = File::open(packed).map_err(|error| format!("{}: {error}", packed.display()))?;
    let image = zstd::decode_all(packed).map_err(|error| error.to_string())?;
    fs::write(to, image).map_err(|error| error.to_string())
}
