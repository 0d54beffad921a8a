//! Sessions of listed keys that take as much of a listener's memory as they can.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::Duration,
};

use driftline_extent::{Begin, Missing, TargetState};
use driftline_wire::{LinkEvent, Message, Receiver, ReceiverOutput, Verb};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    Attack,
    common::{command, noise},
    renew,
};

/// Bytes of the volume that is pulled: more than a window.
const PULLED_LEN: usize = 96 << 20;
/// Bytes of one that is pushed.
const PUSHED_LEN: usize = 48 << 20;
/// Sessions that a key may have.
const OF_A_KEY: usize = 8;
/// Bytes that a slow peer reads at once, and how long it then rests.
pub(crate) const SIP_LEN: usize = 4 << 10;
pub(crate) const SIP_REST: Duration = Duration::from_millis(250);

/// What the sessions of a key are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crowd {
    SlowPulls,
    Pulls,
    Pushes,
    Both,
}

impl Attack {
    /// Pulls a volume and keeps nothing of it. From its first data on, a slow peer reads in sips.
    async fn pull(&self, volume: &str, slow: bool) -> Option<()> {
        let mut intruder = self.open().await?;
        intruder.ask(Verb::Pull, volume).await?;
        while !matches!(intruder.event().await?, LinkEvent::Message(Message::Accept)) {}
        let mut receiver = Receiver::new(TargetState::nothing());
        loop {
            while let Some(output) = receiver.poll() {
                match output {
                    ReceiverOutput::Send(message) => intruder.say(&message)?,
                    ReceiverOutput::Begin(_) => receiver.handle_begun(Begin { from: 0 }),
                    ReceiverOutput::LookUp(batch) => {
                        receiver.handle_looked_up(batch.seq, vec![Missing::All; batch.items.len()]);
                    }
                    ReceiverOutput::Apply(arrived) => receiver.handle_applied(arrived.batch.seq),
                    // That was all of it.
                    ReceiverOutput::Commit(_)
                    | ReceiverOutput::Ended
                    | ReceiverOutput::Answer(_) => return None,
                }
            }
            match intruder.event().await? {
                LinkEvent::Message(message) => receiver.handle_message(message).ok()?,
                LinkEvent::Data(part) => {
                    self.count.pulled.fetch_add(part.body.len() as u64, Relaxed);
                    receiver.handle_data(part).ok()?;
                    intruder.sips = slow;
                }
                LinkEvent::Open { .. } => return None,
            }
        }
    }
}

/// A push that is done again and again, with other content each time.
struct Push {
    dir: PathBuf,
    /// The file that is pushed, of which each push has its own.
    source: String,
    arguments: Vec<String>,
    seed: u64,
    stop: Arc<AtomicBool>,
}

impl Push {
    fn run(mut self) {
        while !self.stop.load(SeqCst) {
            noise(&self.dir.join(&self.source), PUSHED_LEN, self.seed);
            self.seed += 1;
            let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
            let mut push = command(&self.dir, &arguments);
            let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while push.try_wait().unwrap().is_none() {
                if self.stop.load(SeqCst) {
                    let _ = push.kill();
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Makes the volume that is pulled.
pub(crate) fn make_pulled(attack: &Attack) {
    noise(&attack.dir.join("big.img"), PULLED_LEN, 7);
}

/// Each of these keys, by its file, has as many sessions as it may, for so long.
pub(crate) fn press(attacks: &[(&str, Attack)], crowd: Crowd, lasting: Duration) {
    let runtime = Runtime::new().unwrap();
    let (mut tasks, mut pushes) = (JoinSet::new(), Vec::new());
    let stop = Arc::new(AtomicBool::new(false));
    for (key, attack) in attacks {
        for number in 0..OF_A_KEY {
            if crowd == Crowd::Pushes || (crowd == Crowd::Both && number % 2 == 0) {
                let source = format!("{key}{number}.img");
                let (file, to) = (format!("file:{source}"), format!("h/{key}{number}"));
                let (to, peer) = (format!("{to}@{}", attack.listener), attack.server.to_string());
                let arguments = ["push", &file, &to, "--key", key, "--peer", &peer];
                let push = Push {
                    dir: attack.dir.clone(),
                    source,
                    arguments: arguments.map(str::to_owned).to_vec(),
                    seed: (number as u64) << 32,
                    stop: stop.clone(),
                };
                pushes.push(thread::spawn(move || push.run()));
            } else {
                renew(&mut tasks, &runtime, 50, attack, move |attack| async move {
                    attack.pull("big", crowd == Crowd::SlowPulls).await;
                });
            }
        }
    }
    thread::sleep(lasting);
    stop.store(true, SeqCst);
    pushes.into_iter().for_each(|push| push.join().unwrap());
    drop(tasks);
    runtime.shutdown_background();
}
