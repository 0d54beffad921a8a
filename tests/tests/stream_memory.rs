//! A stream of any length takes no more memory than the windows of both sides, through the real
//! shell with its threads and queues.
//!
//! A binary of its own with a single test, as it asks what the whole process takes.

use std::{fmt, fs, sync::Arc, time::Instant};

use driftline_extent::{
    Change, Explained, Finish, Generation, Offer, Plan, PlanKind, Reason, Source, Standing, Target,
};
use driftline_target::{Sink, SinkState, StreamTarget};
use driftline_transport::{
    Connection, Progress, SourceJob, answer, deliver::LastSeen, receive_request, request,
    serve_source, serve_target,
};
use driftline_wire::{Peer, SecretKey, Verb};

const TIP: Generation = Generation::zfs(1);
const PART: usize = 128 << 10;
const PARTS: u64 = 4096;

/// What the process may take at its peak, in KiB: 64 MiB of parts that were seen, 32 MiB of what
/// is announced on each side, and what is being packed, sealed and unpacked. The stream is twice
/// as long.
const PEAK_MAX_KIB: u64 = 256 << 10;

/// A source of parts of which none is like another, and none compresses.
struct Noise {
    noise: Vec<u8>,
    given: u64,
}

#[derive(Debug)]
struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("never")
    }
}

impl std::error::Error for Never {}

impl Explained for Never {
    fn reason(&self) -> Reason {
        Reason::Failed
    }
}

impl Source for Noise {
    type Error = Never;

    fn plan(&mut self, base: Option<&Generation>) -> Result<Plan, Never> {
        let kind = if base.is_none() { PlanKind::Stream } else { PlanKind::UpToDate };
        let standing = Standing::Proven;
        let (tip, size) = (Some(TIP), None);
        Ok(Plan { kind, volume: None, base: None, tip, size, standing, bytes_expected: 0 })
    }

    fn next_change(&mut self, _: u64) -> Result<Option<Change>, Never> {
        if self.given == PARTS {
            return Ok(None);
        }
        self.given += 1;
        let mut part = self.noise.clone();
        part[..8].copy_from_slice(&self.given.to_le_bytes());
        Ok(Some(Change::Part(part)))
    }

    fn finish(&mut self) -> Result<Finish, Never> {
        Ok(Finish { tip: TIP, size: None, root: None })
    }

    fn bytes_read(&self) -> u64 {
        self.given * PART as u64
    }
}

/// A sink that counts.
#[derive(Default)]
struct Count {
    bytes: u64,
    holds: Option<Generation>,
}

impl Sink for Count {
    type Error = Never;

    fn state(&mut self) -> Result<SinkState, Never> {
        Ok(SinkState { generation: self.holds, ..SinkState::default() })
    }

    fn begin(&mut self, _: &Offer) -> Result<(), Never> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Never> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(&mut self, tip: &Generation) -> Result<SinkState, Never> {
        self.holds = Some(*tip);
        self.state()
    }
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_any_length_fits() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let secret = |who| SecretKey::from_random([who; 32]);
    let progress = Arc::new(Progress::default());
    let counted = progress.clone();
    let started = Instant::now();
    let pushing = async move {
        let peer = Peer::Dial(secret(2).public());
        let (mut link, _) = Connection::open(near, secret(1), peer, counted).await.unwrap();
        request(&mut link, Verb::Push, "fs", None).await.unwrap();
        let mut noise = vec![0; PART];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let source = Noise { noise, given: 0 };
        let (volume, auditor) = (None, None);
        let job = SourceJob {
            source,
            volume,
            overwrite: false,
            compare: false,
            arrived: LastSeen::Nothing,
            compression: Some(1),
            auditor,
            patience: driftline_transport::SOURCE_PATIENCE,
            held: None,
        };
        serve_source(link, job).await
    };
    let receiving = async {
        let peer = Peer::Listen(vec![secret(1).public()]);
        let progress = Arc::new(Progress::default());
        let (mut link, _) = Connection::open(far, secret(2), peer, progress).await.unwrap();
        receive_request(&mut link).await.unwrap();
        let target = StreamTarget::new(Count::default(), "pool/fs", [3; 32]).unwrap();
        let (link, target) = answer(link, async { Ok(target) }).await.unwrap();
        serve_target(link, target).await
    };
    let (pushed, (received, target)) = tokio::join!(pushing, receiving);
    let (pushed, received) = (pushed.unwrap(), received.unwrap());
    assert_eq!(pushed.increments, received.increments);
    let [(plan, committed)] = &pushed.increments[..] else { panic!("{:?}", pushed.increments) };
    let bytes = PARTS * PART as u64;
    assert_eq!((plan.kind, committed.size, committed.generation), (PlanKind::Stream, bytes, TIP));
    let moved = progress.snapshot();
    assert_eq!((moved.read, moved.announced, moved.data), (bytes, bytes, bytes));
    let target = target.unwrap();
    assert_eq!(target.state().generation, Some(TIP));
    assert_eq!(target.into_sink().bytes, bytes);

    let (peak, took) = (peak_kib(), started.elapsed());
    println!("{bytes} bytes in {took:.1?}, peak {peak} KiB");
    assert!(peak < PEAK_MAX_KIB, "{peak} KiB");
}
