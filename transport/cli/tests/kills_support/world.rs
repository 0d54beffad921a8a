//! A source, its replica, and the runs between them.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Found, Outcome, Random, Victim, Way, files::list};

const CHUNK: u64 = 65_536;
/// What is in a replica's folder beside it.
const BOOKS: [&str; 6] = ["ids", "journal", "lock", "overlay", "repair", "state"];
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// When a run is killed.
#[derive(Clone, Copy, Debug)]
struct Moment {
    after: Duration,
    /// Counted from when there is a journal.
    journal: bool,
}

/// One folder.
pub(crate) struct World {
    dir: TempDir,
    program: PathBuf,
    way: Way,
    server: Option<Child>,
    /// What `replica.img` is pushed as or pulled from, and where.
    source: String,
    target: String,
    peer: String,
    /// What the source holds.
    now: Vec<u8>,
    /// What the replica holds, once something is committed.
    held: Option<Vec<u8>>,
    /// Recorded streams and what they lead to, of which the first so many were pushed.
    streams: Vec<(PathBuf, Vec<u8>)>,
    pushed: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_server();
    }
}

impl World {
    pub(crate) fn new(
        program: &Path,
        streams: &Path,
        way: Way,
        random: &mut Random,
    ) -> Result<Self, String> {
        let dir = TempDir::with_prefix("driftline-kills-").map_err(|error| error.to_string())?;
        let mut world = Self {
            dir,
            program: program.to_owned(),
            way,
            server: None,
            source: "file:source.img".to_owned(),
            target: "file:replica.img".to_owned(),
            peer: String::new(),
            now: Vec::new(),
            held: None,
            streams: Vec::new(),
            pushed: 0,
        };
        match way {
            Way::Streams => world.streams = world.recorded(streams)?,
            _ => {
                let len = (8 << 20) + random.below(16 << 20);
                world.now = random.noise(len as usize);
                world.write_source();
            }
        }
        if matches!(way, Way::Push | Way::Pull) {
            world.peer = world.keys();
            world.start_server();
        }
        Ok(world)
    }

    /// Leaves the folder where it is.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.stop_server();
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    /// What is killed next.
    pub(crate) fn victim(&self, random: &mut Random) -> Victim {
        let net = matches!(self.way, Way::Push | Way::Pull);
        match random.below(8) {
            0 if self.held.is_some() => Victim::Scrub,
            1 if self.held.is_some() => Victim::Restore,
            2..5 if net => Victim::Server(self.way),
            _ => Victim::Run(self.way),
        }
    }

    /// Kills once, and looks. `usual` is how long such a run takes.
    pub(crate) fn kill(
        &mut self,
        victim: Victim,
        usual: &mut Duration,
        random: &mut Random,
    ) -> Result<Outcome, String> {
        let after = usual.mul_f64(random.below(1000) as f64 / 1000.0);
        let moment = Moment { after, journal: random.below(3) == 0 };
        let started = Instant::now();
        let outcome = match victim {
            Victim::Scrub => self.kill_scrub(moment, random)?,
            Victim::Restore => self.kill_restore(moment, random)?,
            Victim::Run(_) | Victim::Server(_) => {
                self.change(random)?;
                self.kill_run(victim, moment)?
            }
        };
        // About as long as such runs take, so that kills are spread over all of one.
        *usual = match outcome.ended {
            true => usual.mul_f64(0.7).max(Duration::from_millis(2)),
            false => usual.mul_f64(1.2).min(started.elapsed()),
        };
        self.check_left()?;
        Ok(outcome)
    }

    /// Waits until it is time to kill; whether the run was done sooner.
    fn await_moment(&self, run: &mut Child, moment: Moment) -> bool {
        let journal = self.path("replica.img.driftline/journal");
        let mut since = Instant::now();
        let mut begun = !moment.journal;
        loop {
            if matches!(run.try_wait(), Ok(Some(_))) {
                return true;
            }
            if !begun {
                begun = journal.metadata().is_ok_and(|metadata| metadata.len() > 0);
                since = Instant::now();
            } else if since.elapsed() >= moment.after {
                return false;
            }
            sleep(Duration::from_micros(200));
        }
    }

    fn kill_run(&mut self, victim: Victim, moment: Moment) -> Result<Outcome, String> {
        let mut run = self.start(&self.replication(), "killed");
        let ended = self.await_moment(&mut run, moment);
        if matches!(victim, Victim::Server(_)) {
            self.stop_server();
        } else {
            let _ = run.kill();
        }
        let status = wait(&mut run)?;
        self.check_said(status, "killed", "replica.img")?;
        if self.server.is_none() && !self.peer.is_empty() {
            self.start_server();
        }
        let found = self.look()?;
        let again = self.run(&self.replication(), "again")?;
        if !matches!(again.code(), Some(0 | 8)) {
            return Err(format!("the next run ends with {again}: {}", self.said("again")));
        }
        self.check_said(again, "again", "replica.img")?;
        self.held = Some(self.now.clone());
        Ok(Outcome { ended, found })
    }

    /// That a replica whose run said that it went well is the source.
    fn check_said(&self, status: ExitStatus, run: &str, name: &str) -> Result<(), String> {
        if matches!(status.code(), Some(0 | 8)) && self.read(name) != self.now {
            return Err(format!("{run} ends with {status}, and {name} is not the source"));
        }
        match status.signal() {
            Some(9) | None => Ok(()),
            Some(_) => Err(format!("{run} ends with {status}: {}", self.said(run))),
        }
    }

    /// Opens the replica, and says at which generation it is.
    fn look(&self) -> Result<Found, String> {
        let since = Instant::now();
        let status = loop {
            let status = self.run(&["verify", "file:replica.img", "--json"], "verify")?;
            // The session that was cut off may still be at its end.
            let busy = self.said("verify").contains("target-busy");
            if !busy || since.elapsed() > PATIENCE {
                break status;
            }
            sleep(Duration::from_millis(50));
        };
        let replica = self.read("replica.img");
        match (status.code(), &self.held) {
            (Some(0), _) if replica == self.now => Ok(Found::Later),
            (Some(0), Some(held)) if replica == *held => Ok(Found::Earlier),
            (Some(0), _) => Err("is called clean and holds neither generation".to_owned()),
            (Some(_), None) => Ok(Found::Nothing),
            (_, _) => Err(format!("cannot be verified ({status}): {}", self.said("verify"))),
        }
    }

    fn kill_scrub(&mut self, moment: Moment, random: &mut Random) -> Result<Outcome, String> {
        let held = self.held.clone().unwrap_or_default();
        let chunks = (held.len() as u64).div_ceil(CHUNK);
        let damaged: Vec<u64> = (0..random.below(4)).map(|_| random.below(chunks)).collect();
        let replica = File::options().write(true).open(self.path("replica.img"));
        let replica = replica.map_err(|error| error.to_string())?;
        for chunk in &damaged {
            let at = (chunk * CHUNK + random.below(CHUNK)).min(held.len() as u64 - 1);
            let byte = [!held[at as usize]];
            replica.write_all_at(&byte, at).map_err(|error| error.to_string())?;
        }
        let spoilt = self.read("replica.img");
        let scrub = ["scrub", "file:replica.img", "--repair", "--json"];
        let mut run = self.start(&scrub, "killed");
        // Neither has a journal to wait for.
        let ended = self.await_moment(&mut run, Moment { journal: false, ..moment });
        let _ = run.kill();
        let status = wait(&mut run)?;
        self.check_scrubbed(status, &spoilt, &held)?;
        let found = Found::Earlier;
        let again = self.run(&scrub, "again")?;
        self.check_scrubbed(again, &spoilt, &held)?;
        if !matches!(again.code(), Some(0 | 6 | 8)) {
            return Err(format!("the next scrub ends with {again}: {}", self.said("again")));
        }
        // What is left of the damage comes from the source.
        if self.way == Way::Streams {
            return self.take_up_streams(&damaged).map(|()| Outcome { ended, found });
        }
        let push = self.run(&self.replication(), "push")?;
        if !matches!(push.code(), Some(0 | 8)) {
            return Err(format!("the push after it ends with {push}: {}", self.said("push")));
        }
        self.check_said(push, "push", "replica.img")?;
        self.held = Some(self.now.clone());
        Ok(Outcome { ended, found })
    }

    /// A recorded stream cannot be told anew: the damage is put right by hand.
    fn take_up_streams(&self, damaged: &[u64]) -> Result<(), String> {
        let held = self.held.as_ref().ok_or("nothing is held")?;
        if !damaged.is_empty() {
            fs::write(self.path("replica.img"), held).map_err(|error| error.to_string())?;
            let scrub = self.run(&["scrub", "file:replica.img", "--repair"], "scrub")?;
            if scrub.code() != Some(0) {
                return Err(format!("a scrub of what is right ends with {scrub}"));
            }
        }
        Ok(())
    }

    /// That a scrub has written nothing but what should be there, and said the truth.
    fn check_scrubbed(&self, status: ExitStatus, spoilt: &[u8], held: &[u8]) -> Result<(), String> {
        let replica = self.read("replica.img");
        if matches!(status.code(), Some(0 | 8)) && replica != held {
            return Err(format!("a scrub ends with {status}, and the replica is damaged"));
        }
        let mut bytes = replica.iter().zip(spoilt).zip(held);
        if replica.len() != held.len()
            || !bytes.all(|((is, was), should)| is == was || is == should)
        {
            return Err("a scrub has written something else".to_owned());
        }
        Ok(())
    }

    fn kill_restore(&mut self, moment: Moment, random: &mut Random) -> Result<Outcome, String> {
        let held = self.held.clone().unwrap_or_default();
        if random.below(2) == 0 {
            let before = random.noise(held.len() / 2 + 1);
            fs::write(self.path("restored.img"), before).map_err(|error| error.to_string())?;
        }
        let restore = ["restore", "file:replica.img", "file:restored.img", "--overwrite"];
        let mut run = self.start(&restore, "killed");
        // Neither has a journal to wait for.
        let ended = self.await_moment(&mut run, Moment { journal: false, ..moment });
        let _ = run.kill();
        let status = wait(&mut run)?;
        let is_whole = |world: &Self| world.read("restored.img") == held;
        if status.code() == Some(0) && !is_whole(self) {
            return Err("a restore ends with 0, and what it made is not the replica".to_owned());
        }
        let found = if is_whole(self) { Found::Later } else { Found::Nothing };
        let again = self.run(&restore, "again")?;
        if again.code() != Some(0) || !is_whole(self) {
            return Err(format!("the next restore ends with {again}: {}", self.said("again")));
        }
        if self.read("replica.img") != held {
            return Err("a restore has changed what it read".to_owned());
        }
        fs::remove_file(self.path("restored.img")).map_err(|error| error.to_string())?;
        Ok(Outcome { ended, found })
    }

    /// That nothing is left of what was killed.
    fn check_left(&self) -> Result<(), String> {
        let mut files = Vec::new();
        list(self.dir.path(), &mut files);
        for path in files {
            let name = path.strip_prefix(self.dir.path()).unwrap_or(&path).to_string_lossy();
            let book = name.strip_prefix("replica.img.driftline/");
            let known = match book {
                Some(book) => BOOKS.contains(&book),
                None if name.starts_with("trust/") => !name.contains(".new"),
                None => {
                    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
                    ["source.img", "replica.img", "serve.toml"].contains(&&*name)
                        || ["key", "said", "zs"].contains(&end)
                }
            };
            if !known {
                return Err(format!("{name} is left behind"));
            }
            let len = path.metadata().map_or(0, |metadata| metadata.len());
            if matches!(book, Some("journal" | "overlay")) && len > 0 {
                return Err(format!("{name} has {len} bytes left in it"));
            }
        }
        let ours = self.server.as_ref().map(Child::id);
        let left = processes_in(self.dir.path()).into_iter().find(|id| Some(*id) != ours);
        left.map_or(Ok(()), |id| Err(format!("process {id} is left behind")))
    }

    /// The source goes on.
    fn change(&mut self, random: &mut Random) -> Result<(), String> {
        if self.way == Way::Streams {
            if self.pushed == self.streams.len() {
                (self.pushed, self.held) = (0, None);
                fs::remove_file(self.path("replica.img")).map_err(|error| error.to_string())?;
                fs::remove_dir_all(self.path("replica.img.driftline"))
                    .map_err(|error| error.to_string())?;
                let _ = fs::remove_dir_all(self.path("trust"));
            }
            let (path, content) = &self.streams[self.pushed];
            self.source = format!("zstream:{}", path.display());
            self.now = content.clone();
            self.pushed += 1;
            return Ok(());
        }
        if random.below(10) == 0 {
            let now = self.now.len() as u64;
            self.now.resize((now - now / 20 + random.below(now / 10)) as usize, 0);
        }
        for _ in 0..random.below(6) {
            let len = self.now.len() as u64;
            let start = random.below(len);
            let scale = 12 + random.below(10);
            let end = (start + 1 + random.below(1 << scale)).min(len);
            let part = &mut self.now[start as usize..end as usize];
            // Too much that becomes zero would need a person to agree.
            if part.len() < 1 << 18 && random.below(4) == 0 {
                part.fill(0);
            } else {
                part.copy_from_slice(&random.noise(part.len()));
            }
        }
        self.write_source();
        Ok(())
    }

    fn write_source(&self) {
        fs::write(self.path("source.img"), &self.now).expect("the source can be written");
    }

    fn replication(&self) -> Vec<&str> {
        match self.way {
            Way::Local | Way::Streams => vec!["push", &self.source, &self.target],
            Way::Push => vec!["push", &self.source, &self.target, "--peer", &self.peer],
            Way::Pull => vec!["pull", &self.target, "file:replica.img", "--peer", &self.peer],
        }
    }

    /// Recorded streams that follow one another, with what each leads to.
    fn recorded(&self, streams: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
        let mut all = Vec::new();
        for (part, number) in ["full", "1-2", "2-3", "3-4"].iter().zip(1..) {
            let name = format!("lz4-16k.{part}.zs");
            let source = format!("zstream:{}", streams.join(&name).display());
            let pushed = self.run(&["push", &source, "file:truth.img"], "truth")?;
            let sum = Command::new("sha256sum").arg(self.path("truth.img")).output();
            let sum = sum.map_err(|error| error.to_string())?.stdout;
            let table = fs::read_to_string(streams.join("SHA256")).unwrap_or_default();
            let told = String::from_utf8_lossy(&sum);
            let right = table.lines().any(|line| {
                line.ends_with(&format!("  lz4-16k@s{number}")) && told.starts_with(&line[..64])
            });
            if !pushed.success() || !right {
                return Err(format!("{name} does not lead to what is recorded"));
            }
            all.push((streams.join(name), self.read("truth.img")));
        }
        fs::remove_file(self.path("truth.img")).map_err(|error| error.to_string())?;
        let _ = fs::remove_dir_all(self.path("trust"));
        fs::remove_dir_all(self.path("truth.img.driftline")).map_err(|error| error.to_string())?;
        Ok(all)
    }

    /// Makes the keys of both sides and says the server's public one.
    fn keys(&self) -> String {
        let key = |file: &str| {
            let output = self.command(&["keygen", "--out", file]).output();
            String::from_utf8(output.expect("keygen runs").stdout).expect("a key is text")
        };
        let (client, server) = (key("client.key"), key("server.key"));
        let dir = self.dir.path().display();
        let (right, side, place) = match self.way {
            Way::Pull => ("pull", "source", "source.img"),
            _ => ("push", "target", "replica.img"),
        };
        let config = format!(
            "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"{dir}/server.key\"\n\
             [[peer]]\nname = \"client\"\nkey = \"{}\"\n{right} = [\"vm\"]\n\
             [[volume]]\nname = \"vm\"\n{side} = \"file:{dir}/{place}\"\n",
            client.trim()
        );
        fs::write(self.path("serve.toml"), config).expect("a configuration can be written");
        server.trim().to_owned()
    }

    fn start_server(&mut self) {
        let mut command = self.command(&["serve", "--config", "serve.toml"]);
        let mut server = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(server.stderr.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| {
            let (_, rest) =
                line.ok()?.split_once("address=").map(|(a, b)| (a.len(), b.to_owned()))?;
            rest.split(' ').next().map(str::to_owned)
        });
        // Nobody has to wait for what else it says.
        std::thread::spawn(move || lines.for_each(drop));
        self.target = format!("vm@{}", address.expect("the server says where it listens"));
        self.server = Some(server);
    }

    fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path()).args(arguments).stdin(Stdio::null());
        for variable in ["DRIFTLINE_PEER", "DRIFTLINE_LOG", "LS_CONTROLLERS"] {
            command.env_remove(variable);
        }
        command.env("DRIFTLINE_KEY", "client.key");
        command.env("DRIFTLINE_TRUST_DIR", self.path("trust"));
        command
    }

    /// Starts a run whose words go to a file of this name.
    fn start(&self, arguments: &[&str], name: &str) -> Child {
        let said = File::create(self.path(&format!("{name}.said"))).expect("a file can be made");
        let twice = said.try_clone().expect("a file has two handles");
        let mut command = self.command(arguments);
        command.stdout(said).stderr(twice).spawn().expect("the program starts")
    }

    fn run(&self, arguments: &[&str], name: &str) -> Result<ExitStatus, String> {
        wait(&mut self.start(arguments, name))
    }

    fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.read(&format!("{name}.said"))).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_default()
    }
}

/// Waits for a process, but not for ever.
fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let since = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if since.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("a run does not end".to_owned());
            }
            Ok(None) => sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Processes that work in this folder.
fn processes_in(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let works = |id: &u32| fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd == dir);
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| *id != std::process::id() && works(id)).collect()
}
