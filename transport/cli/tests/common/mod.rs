//! A fresh folder, the real program, and a proxy that sees every byte between two of them.
#![expect(dead_code, reason = "each test file uses its part of this")]

pub(crate) mod fake_zfs;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

/// The recorded streams.
pub(crate) fn stream(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/zfs").join(name)
}

/// `zstream:` and the path of a recorded stream.
pub(crate) fn zstream(name: &str) -> String {
    format!("zstream:{}", stream(name).display())
}

/// The recorded sha256 of a snapshot such as `lz4-16k@s2`.
pub(crate) fn recorded_sha256(snapshot: &str) -> String {
    let table = fs::read_to_string(stream("SHA256")).unwrap();
    let row = table.lines().find_map(|line| line.strip_suffix(&format!("  {snapshot}")));
    row.unwrap_or_else(|| panic!("no hash is recorded for {snapshot}")).to_owned()
}

/// The sha256 of a whole file, by coreutils: not by our own hand.
pub(crate) fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success(), "sha256sum {}", path.display());
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Runs `driftline` in `dir`.
pub(crate) fn driftline(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// `driftline` in `dir`, not yet started.
pub(crate) fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftline"));
    command.current_dir(dir).args(arguments).stdin(Stdio::null());
    for variable in ["DRIFTLINE_KEY", "DRIFTLINE_PEER", "DRIFTLINE_LOG", "LS_CONTROLLERS"] {
        command.env_remove(variable);
    }
    command.env("DRIFTLINE_TRUST_DIR", dir.join("trust"));
    command
}

/// Runs `driftline --json` and expects this exit code; gives the object it printed.
pub(crate) fn json(dir: &Path, code: i32, arguments: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let output = driftline(dir, &all);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {arguments:?} printed {out:?}"))
}

/// Makes a key pair and gives the public half.
pub(crate) fn keygen(dir: &Path, file: &str) -> String {
    let output = driftline(dir, &["keygen", "--out", file]);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Two machines' worth of folders and keys: `client.key`, `server.key`, and their peers.
pub(crate) struct Pair {
    pub(crate) dir: TempDir,
    pub(crate) client: String,
    pub(crate) server: String,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let client = keygen(dir.path(), "client.key");
        let server = keygen(dir.path(), "server.key");
        Self { dir, client, server }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a server on which the client may push `push` to `push.img` and pull `pull`.
    pub(crate) fn serve(&self, volumes: &str) -> Server {
        let dir = self.path().display();
        let client = &self.client;
        let config = format!(
            "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"{dir}/server.key\"\n\
             [[peer]]\nname = \"client\"\nkey = \"{client}\"\n{volumes}"
        );
        fs::write(self.path().join("serve.toml"), config).unwrap();
        Server::start(self.path())
    }

    /// The same, with an index of this name.
    pub(crate) fn serve_indexed(&self, index: &str, volumes: &str) -> Server {
        let dir = self.path().display();
        let client = &self.client;
        let config = format!(
            "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"{dir}/server.key\"\nindex = \"{dir}/{index}\"\n\
             [[peer]]\nname = \"client\"\nkey = \"{client}\"\n{volumes}"
        );
        fs::write(self.path().join("serve.toml"), config).unwrap();
        Server::start(self.path())
    }

    /// A server that takes `vm` into `vm.img`.
    pub(crate) fn serve_vm(&self) -> Server {
        self.serve_vm_with("")
    }

    /// The same, with more lines about the volume in the configuration.
    pub(crate) fn serve_vm_with(&self, more: &str) -> Server {
        let dir = self.path().display();
        self.serve(&format!(
            "push = [\"vm\"]\n[[volume]]\nname = \"vm\"\ntarget = \"file:{dir}/vm.img\"\n{more}"
        ))
    }

    /// Arguments of a push of `source` to `vm` at `address`.
    pub(crate) fn push<'a>(&'a self, source: &'a str, target: &'a str) -> Vec<&'a str> {
        vec!["push", source, target, "--key", "client.key", "--peer", &self.server]
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path().join("vm.img")
    }
}

/// A running `driftline serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a server by `serve.toml`.
    pub(crate) fn start(dir: &Path) -> Self {
        let mut child = command(dir, &["-v", "serve", "--config", "serve.toml"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let line = lines.next().expect("the server says where it listens").unwrap();
            let address = line.split_once("address=").map(|(_, rest)| rest.split(' ').next());
            log.lock().unwrap().push_str(&(line.clone() + "\n"));
            if let Some(Some(address)) = address {
                break address.parse().unwrap();
            }
        };
        let rest = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                rest.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, address, log }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, as systemd does, and waits.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stands between client and server, keeps every byte, and can act after so many.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    capture: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    /// Forwards connections to `server`. Once `after` bytes went by, `then` is called, once.
    pub(crate) fn start(
        server: SocketAddr,
        after: u64,
        then: impl FnOnce() + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let capture = Arc::new(Mutex::new(Vec::new()));
        let count = Arc::new(AtomicU64::new(0));
        let then = Arc::new(Mutex::new(Some(then)));
        let kept = capture.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (kept, count, then) = (kept.clone(), count.clone(), then.clone());
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(len @ 1..) = from.read(&mut buffer) {
                            kept.lock().unwrap().extend_from_slice(&buffer[..len]);
                            let before = count.fetch_add(len as u64, Ordering::SeqCst);
                            if before + len as u64 >= after
                                && let Some(then) = then.lock().unwrap().take()
                            {
                                then();
                            }
                            if to.write_all(&buffer[..len]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self { address, capture }
    }

    /// One that only listens.
    pub(crate) fn capture(server: SocketAddr) -> Self {
        Self::start(server, u64::MAX, || {})
    }

    pub(crate) fn captured(&self) -> Vec<u8> {
        self.capture.lock().unwrap().clone()
    }
}

/// A recorded image of DRBD, such as `v84-live-s0.raw`, as a file with holes.
pub(crate) fn unpack_drbd(name: &str, to: &Path) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/drbd");
    let packed = fs::File::open(data.join(format!("{name}.zst"))).unwrap();
    let image = zstd::decode_all(packed).unwrap();
    let file = fs::File::create(to).unwrap();
    file.set_len(image.len() as u64).unwrap();
    for (block, bytes) in (0..).zip(image.chunks(4096)) {
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(bytes, block * 4096).unwrap();
        }
    }
}

/// Takes such an image of 128 MiB apart, into the data and a device of its own for the metadata.
pub(crate) fn split_drbd(image: &Path, data: &Path, meta: &Path) {
    let image = fs::read(image).unwrap();
    let superblock_at = image.len() - 4096;
    let (log_at, bitmap_at) = (superblock_at - 8 * 4096, superblock_at - 9 * 4096);
    let mut superblock = image[superblock_at..].to_vec();
    // Length, and distances of the log and the bitmap, in sectors.
    for (at, sectors) in [(0x40, 2048_u32), (0x44, 8), (0x4c, 72)] {
        superblock[at..at + 4].copy_from_slice(&sectors.to_be_bytes());
    }
    let mut apart = superblock;
    apart.extend(&image[log_at..superblock_at]);
    apart.extend(&image[bitmap_at..log_at]);
    apart.resize(1 << 20, 0);
    fs::write(meta, apart).unwrap();
    fs::write(data, &image[..bitmap_at]).unwrap();
}

/// A file of `len` bytes that no compressor shrinks, different for each seed.
pub(crate) fn noise(path: &Path, len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    fs::write(path, &bytes).unwrap();
    bytes
}
