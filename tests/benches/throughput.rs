//! How fast the hot paths are: `cargo build --release && cargo bench -p driftline-tests`.
//!
//! Numbers of one run are comparable with each other; this is no test and asserts no speed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use driftline_extent::Source;
use driftline_zfs::{
    ByteOrder, Fletcher4, OpaqueStream, RecordReader, ZvolStream,
    testing::{Opening, StreamWriter},
};
use tempfile::TempDir;

const GIB: usize = 1 << 30;
/// Clock ticks of `/proc/PID/stat` in a second: fixed in the kernel's interface.
const TICKS: f64 = 100.0;

fn main() {
    // `cargo test --all-targets` calls benches to see that they start.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    checksum();
    let stream = zvol_like_stream(GIB);
    reader(&stream);
    loopback(&stream);
}

/// The best of some runs, in GB/s.
fn best(bytes: usize, runs: u32, mut run: impl FnMut()) -> f64 {
    let times = (0..runs).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    });
    bytes as f64 / times.fold(f64::INFINITY, f64::min) / 1e9
}

fn checksum() {
    let block: Vec<u8> = (0..128 << 10).map(|i| (i * 7) as u8).collect();
    let rounds = 4096;
    let hot = |name: &str, update: &dyn Fn(&mut Fletcher4, &[u8])| {
        let speed = best(block.len() * rounds, 5, || {
            let mut sum = Fletcher4::new();
            (0..rounds).for_each(|_| update(&mut sum, &block));
            std::hint::black_box(sum.sums());
        });
        println!("fletcher-4, 128 KiB hot, {name:<10} {speed:6.2} GB/s");
    };
    hot("naive", &|sum, block| sum.update_naive(block, ByteOrder::Little));
    hot("dispatched", &|sum, block| sum.update(block, ByteOrder::Little));
}

/// What `zfs send -L` of a zvol of 16 KiB blocks looks like: half of it is noise, half text.
fn zvol_like_stream(len: usize) -> Vec<u8> {
    const BLOCK: usize = 16 << 10;
    let mut noise = vec![0; 64 * BLOCK];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let words: Vec<String> = (0..1000_u32).map(|i| format!("word{:x} ", i * 7919)).collect();
    let text: String = (0..64 * BLOCK / 4).map(|i| words[i * i % words.len()].as_str()).collect();
    let opening = Opening::volume(0, 1);
    let mut writer =
        StreamWriter::new(ByteOrder::Little).begin(&opening).volume(BLOCK as u32, len as u64);
    for i in 0..len / BLOCK {
        let source = if i % 2 == 0 { noise.as_slice() } else { text.as_bytes() };
        let mut block = source[i / 2 % 64 * BLOCK..][..BLOCK].to_vec();
        // No block is like another, so that nothing is saved by deduplication.
        block[..8].copy_from_slice(&(i as u64 + 1).to_le_bytes());
        writer = writer.write(1, (i * BLOCK) as u64, &block);
    }
    writer.size(len as u64).end().into_bytes()
}

fn reader(stream: &[u8]) {
    let records = best(stream.len(), 3, || {
        let mut reader = RecordReader::new(stream);
        while reader.next_record().unwrap().is_some() {}
    });
    println!("reader, records only                {records:6.2} GB/s");
    let changes = best(stream.len(), 3, || {
        let mut stream = ZvolStream::new(stream);
        stream.plan(None).unwrap();
        while stream.next_change(0).unwrap().is_some() {}
    });
    println!("reader, changes of the volume       {changes:6.2} GB/s");
    let parts = best(stream.len(), 3, || {
        let mut stream = OpaqueStream::new(stream);
        stream.open().unwrap();
        while stream.next_part().unwrap().is_some() {}
    });
    println!("reader, parts of the stream         {parts:6.2} GB/s");
}

/// The real program twice, in memory, over loopback.
fn loopback(stream: &[u8]) {
    let program = std::env::current_exe().unwrap().with_file_name("../driftline");
    assert!(program.exists(), "run cargo build --release first");
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
    fs::write(dir.path().join("full.zs"), stream).unwrap();
    let keygen = |name: &str| {
        let made = Command::new(&program)
            .args(["keygen", "--out", name])
            .current_dir(&dir)
            .output()
            .unwrap();
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    };
    let (client, server) = (keygen("client.key"), keygen("server.key"));
    for compression in ["1", "off"] {
        let pushed = push(&program, dir.path(), &client, &server, compression);
        println!(
            "push over loopback, compression {compression:<3} {:6.2} GB/s, CPU seconds per GB: \
             source {:.2}, target {:.2}",
            pushed.bytes / pushed.wall / 1e9,
            pushed.source_cpu / pushed.bytes * 1e9,
            pushed.target_cpu / pushed.bytes * 1e9,
        );
    }
}

struct Pushed {
    bytes: f64,
    wall: f64,
    source_cpu: f64,
    target_cpu: f64,
}

fn push(program: &Path, dir: &Path, client: &str, server: &str, compression: &str) -> Pushed {
    let image = dir.join(format!("{compression}.img"));
    let config = format!(
        "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"server.key\"\n[[peer]]\nname = \"c\"\n\
         key = \"{client}\"\npush = [\"vm\"]\n[[volume]]\nname = \"vm\"\ntarget = \"file:{}\"\n",
        image.display()
    );
    fs::write(dir.join("serve.toml"), config).unwrap();
    let mut serve = Command::new(program)
        .args(["serve", "--config", "serve.toml"])
        .current_dir(dir)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(serve.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = log.find(|line| line.contains("address=")).unwrap();
    let address = line.split_once("address=").unwrap().1.split(' ').next().unwrap().to_owned();
    let started = Instant::now();
    let mut push = Command::new(program)
        .args(["-q", "push", "zstream:full.zs", &format!("vm@{address}")])
        .args(["--key", "client.key", "--peer", server, "--compress", compression])
        .current_dir(dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let source_cpu = cpu_at_end(&push);
    let wall = started.elapsed().as_secs_f64();
    assert!(push.wait().unwrap().success());
    let target_cpu = stat(&serve).1;
    serve.kill().unwrap();
    serve.wait().unwrap();
    let bytes = fs::metadata(&image).unwrap().len() as f64;
    remove(image);
    Pushed { bytes, wall, source_cpu, target_cpu }
}

fn remove(image: PathBuf) {
    fs::remove_file(&image).unwrap();
    let mut books = image.into_os_string();
    books.push(".driftline");
    fs::remove_dir_all(books).unwrap();
}

/// Waits for the end of a child and gives its CPU seconds, before it is reaped.
fn cpu_at_end(child: &Child) -> f64 {
    loop {
        match stat(child) {
            ('Z', cpu) => return cpu,
            _ => sleep(Duration::from_millis(5)),
        }
    }
}

/// State and CPU seconds of a child, of all its threads.
fn stat(child: &Child) -> (char, f64) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // The name in parentheses may hold anything; the fields that matter follow it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    (fields[0].chars().next().unwrap(), ticks / TICKS)
}
