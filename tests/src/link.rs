//! A connection in memory that owns the bytes in both directions and can spoil them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Numbers that look random and depend on the seed alone (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `bound`, which is not zero.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next() as u8);
    }
}

/// What happens to one frame on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// It and all that follows is lost: the connection breaks before it.
    Cut,
    /// Half of it arrives, then the connection breaks.
    Truncate,
    /// So many bytes of it (modulo its length) arrive, then the connection breaks.
    Break(usize),
    /// This bit of it (modulo its length) arrives as the other one.
    Flip(usize),
    /// It arrives twice.
    Duplicate,
    /// The frame after it arrives first.
    Swap,
    /// It is lost; what follows is not.
    Drop,
    /// These bytes arrive in its place.
    Replace(Bytes),
    /// These bytes arrive before it.
    Insert(Bytes),
}

/// Which frame of a direction is damaged, and how. The hello is frame 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Counts everything that a link sends.
    pub frame: usize,
    /// What happens to it.
    pub damage: Damage,
}

/// In which portions bytes arrive.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// All that is there at once.
    Whole,
    /// One by one.
    Bytewise,
    /// Some, from one byte to a few frames.
    Pieces(Random),
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Pipe {
    fault: Option<Fault>,
    delivery: Delivery,
    sent: Vec<Bytes>,
    /// A frame that waits for the next one to overtake it.
    held: Option<Bytes>,
    arriving: VecDeque<u8>,
    closed: bool,
}

impl Pipe {
    /// A direction that delivers in this way and has at most one fault.
    pub const fn new(delivery: Delivery, fault: Option<Fault>) -> Self {
        let arriving = VecDeque::new();
        Self { fault, delivery, sent: Vec::new(), held: None, arriving, closed: false }
    }

    /// Sends what a link gave for sending: the hello, or one frame.
    pub fn send(&mut self, frame: Bytes) {
        let index = self.sent.len();
        self.sent.push(frame.clone());
        if self.closed {
            return;
        }
        let damage = self.fault.as_ref().filter(|f| f.frame == index).map(|f| f.damage.clone());
        match damage {
            None => self.arriving.extend(&frame),
            Some(Damage::Cut) => self.closed = true,
            Some(Damage::Truncate) => {
                self.arriving.extend(&frame[..frame.len() / 2]);
                self.closed = true;
            }
            Some(Damage::Break(at)) => {
                self.arriving.extend(&frame[..at % frame.len()]);
                self.closed = true;
            }
            Some(Damage::Flip(bit)) => {
                let mut frame = frame.to_vec();
                let bit = bit % (8 * frame.len());
                frame[bit / 8] ^= 1 << (bit % 8);
                self.arriving.extend(frame);
            }
            Some(Damage::Duplicate) => {
                self.arriving.extend(&frame);
                self.arriving.extend(&frame);
            }
            Some(Damage::Swap) => {
                self.held = Some(frame);
                return;
            }
            Some(Damage::Drop) => {}
            Some(Damage::Replace(other)) => self.arriving.extend(&other),
            Some(Damage::Insert(other)) => {
                self.arriving.extend(&other);
                self.arriving.extend(&frame);
            }
        }
        if let Some(held) = self.held.take() {
            self.arriving.extend(&held);
        }
    }

    /// Nothing more is sent. What is on its way still arrives.
    pub const fn close(&mut self) {
        self.closed = true;
    }

    /// Lets the next portion arrive, and says how long it is.
    pub fn deliver(&mut self, into: &mut BytesMut) -> usize {
        let there = self.arriving.len();
        let count = match &mut self.delivery {
            Delivery::Whole => there,
            Delivery::Bytewise => there.min(1),
            Delivery::Pieces(random) => {
                let scale = [4, 64, 4096, 1 << 18][random.below(4)];
                there.min(1 + random.below(scale))
            }
        };
        into.extend(self.arriving.drain(..count));
        count
    }

    /// Whether everything has arrived that ever will.
    pub fn is_over(&self) -> bool {
        self.closed && self.arriving.is_empty()
    }

    /// Everything that was sent, frame by frame, as it was before any damage.
    pub fn into_sent(self) -> Vec<Bytes> {
        self.sent
    }
}
