//! What little change in much data costs: `cargo build --release && cargo bench -p
//! driftline-tests --bench narrow`.
//!
//! The bytes are the same in each run, and small tests assert their ratios; the times are not
//! asserted. `DRIFTLINE_BENCH_GIB` says how large the scanned volume is, if not 10 GiB or as much
//! as fits twice into free memory.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use driftline_chunking::{ChunkKey, DataRuns, name_range};
use driftline_extent::{Volume, chunk_count};
use driftline_target::FileDisk;
use driftline_tests::link::Random;
use serde_json::Value;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
const GRAIN: usize = 4096;
const PIECE: usize = 1 << 20;
/// Clock ticks of `/proc/PID/stat` in a second: fixed in the kernel's interface.
const TICKS: f64 = 100.0;

fn main() {
    // `cargo test --all-targets` calls benches to see that they start.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let program = std::env::current_exe().unwrap().with_file_name("../driftline");
    assert!(program.exists(), "run cargo build --release first");
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
    let bench = Bench { program, dir };
    bench.scan();
    bench.clone_of_a_replica();
}

struct Bench {
    program: PathBuf,
    dir: TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A volume without a map, one grain of a hundred of which has changed.
    fn scan(&self) {
        let gib = scanned_gib();
        let size = gib * GIB;
        fill(&self.path("a.img"), size, 1);
        self.local_push();
        let changed = churn(&self.path("a.img"), 2);
        let bound = self.hash_both();
        let (done, wall, cpu) = self.local_push();
        let moved = moved(&done);
        assert_eq!(done["increments"][0]["kind"], "scan");
        println!(
            "scan of {gib} GiB, {:.1} MB changed in grains of 4 KiB: {:.2} GB/s of volume, where \
             reading and hashing both sides alone comes to {:.2}; {:.2} CPU seconds per GB on both \
             sides together, {:.1} MB moved both ways: {:.3} times what changed",
            changed as f64 / 1e6,
            size as f64 / wall / 1e9,
            size as f64 / bound / 1e9,
            cpu / size as f64 * 1e9,
            moved as f64 / 1e6,
            moved as f64 / changed as f64,
        );
        ["a.img", "b.img"].iter().for_each(|name| fs::remove_file(self.path(name)).unwrap());
        fs::remove_dir_all(self.path("b.img.driftline")).unwrap();
    }

    /// How long it takes to name all chunks of both volumes, and to do nothing else: a scan cannot
    /// be faster on this machine at this time.
    fn hash_both(&self) -> f64 {
        let key = ChunkKey::new(&[1; 32]);
        let name = |path: PathBuf| {
            let disk = FileDisk::open_read(&path).unwrap();
            let (size, mut data) = (Volume::size(&disk), DataRuns::default());
            name_range(&key, &disk, size, 0..chunk_count(size), &mut data).unwrap()
        };
        let started = Instant::now();
        std::thread::scope(|scope| {
            for path in ["a.img", "b.img"] {
                scope.spawn(|| name(self.path(path)));
            }
        });
        started.elapsed().as_secs_f64()
    }

    /// Both ends in one process, over the protocol as over a network.
    fn local_push(&self) -> (Value, f64, f64) {
        self.run(&["push", "file:a.img", "file:b.img"])
    }

    /// A clone of a replicated volume goes to the same target as a new one.
    fn clone_of_a_replica(&self) {
        fill(&self.path("base.img"), GIB, 1);
        fs::copy(self.path("base.img"), self.path("clone.img")).unwrap();
        churn(&self.path("clone.img"), 2);
        let (client, server) = (self.keygen("client.key"), self.keygen("server.key"));
        for (how, index, like) in [
            ("by nothing", false, &[][..]),
            ("by chunk ids", true, &[][..]),
            ("by seed", false, &["--like", "base"][..]),
            ("by both", true, &["--like", "base"][..]),
        ] {
            let served = self.serve(&client, index);
            let push = |source: &str, volume: &str, like: &[&str]| {
                let target = format!("{volume}@{}", served.address);
                let key = ["--key", "client.key", "--peer", &server];
                self.run(&[&["push", source, &target], &key[..], like].concat())
            };
            push("file:base.img", "base", &[]);
            let (done, wall, _) = push("file:clone.img", "clone", like);
            let moved = moved(&done);
            println!(
                "clone of 1 GiB, found {how:<13} {:.2} % of its size moved, in {wall:.2} s",
                moved as f64 / GIB as f64 * 100.0,
            );
        }
    }

    fn keygen(&self, name: &str) -> String {
        let made = Command::new(&self.program)
            .args(["keygen", "--out", name])
            .current_dir(&self.dir)
            .output()
            .unwrap();
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Runs the program; what it says, how long it took, and its CPU seconds.
    fn run(&self, arguments: &[&str]) -> (Value, f64, f64) {
        let started = Instant::now();
        let mut child = Command::new(&self.program)
            .args(["--json", "-q"])
            .args(arguments)
            .current_dir(&self.dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let cpu = cpu_at_end(&child);
        let wall = started.elapsed().as_secs_f64();
        let done = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
        assert!(child.wait().unwrap().success(), "{done}");
        (done, wall, cpu)
    }

    fn serve(&self, client: &str, index: bool) -> Served {
        let at = self.dir.path().display();
        let index = if index { format!("index = \"{at}/served/index\"\n") } else { String::new() };
        let _ = fs::remove_dir_all(self.path("served"));
        fs::create_dir(self.path("served")).unwrap();
        let config = format!(
            "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"server.key\"\n{index}\
             [[peer]]\nname = \"c\"\nkey = \"{client}\"\npush = [\"base\", \"clone\"]\n\
             [[volume]]\nname = \"base\"\ntarget = \"file:{at}/served/base.img\"\n\
             [[volume]]\nname = \"clone\"\ntarget = \"file:{at}/served/clone.img\"\n"
        );
        fs::write(self.path("serve.toml"), config).unwrap();
        let mut child = Command::new(&self.program)
            .args(["serve", "--config", "serve.toml"])
            .current_dir(&self.dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = log.find(|line| line.contains("address=")).unwrap();
        let address = line.split_once("address=").unwrap().1.split(' ').next().unwrap().to_owned();
        // What it says later must not fill the pipe.
        std::thread::spawn(move || log.for_each(drop));
        Served { child, address }
    }
}

/// A `driftline serve` that ends with this.
struct Served {
    child: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn moved(done: &Value) -> u64 {
    done["bytes"]["sent"].as_u64().unwrap() + done["bytes"]["received"].as_u64().unwrap()
}

/// As many GiB as were asked for, or as fit twice into free memory with two left.
fn scanned_gib() -> u64 {
    if let Ok(asked) = std::env::var("DRIFTLINE_BENCH_GIB") {
        return asked.parse().unwrap();
    }
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kib: u64 = available.trim().trim_end_matches(" kB").parse().unwrap();
    (kib.saturating_sub(2 << 20) / 2 / (1 << 20)).clamp(1, 10)
}

/// Writes noise.
fn fill(path: &Path, size: u64, seed: u64) {
    let mut file = File::create(path).unwrap();
    let mut piece = vec![0; PIECE];
    let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    for _ in 0..size / PIECE as u64 {
        noise.fill(&mut piece);
        file.write_all(&piece).unwrap();
    }
}

/// Writes one grain of a hundred anew, somewhere. Returns how many bytes that are.
fn churn(path: &Path, seed: u64) -> u64 {
    let file = File::options().write(true).open(path).unwrap();
    let grains = file.metadata().unwrap().len() as usize / GRAIN;
    let (mut random, mut left) = (Random(seed), grains / 100);
    let mut hit = vec![false; grains];
    let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = [0; GRAIN];
    while left > 0 {
        let grain = random.below(grains);
        if !std::mem::replace(&mut hit[grain], true) {
            noise.fill(&mut bytes);
            file.write_all_at(&bytes, (grain * GRAIN) as u64).unwrap();
            left -= 1;
        }
    }
    (grains / 100 * GRAIN) as u64
}

/// Waits for the end of a child and gives its CPU seconds, before it is reaped.
fn cpu_at_end(child: &Child) -> f64 {
    loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        // The name in parentheses may hold anything; the fields that matter follow it.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        if fields[0] == "Z" {
            let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
            return (ticks(11) + ticks(12)) / TICKS;
        }
        sleep(Duration::from_millis(5));
    }
}
