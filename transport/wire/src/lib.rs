//! The Driftline protocol, without I/O.
//!
//! Two sides talk: the *source side* has a volume, the *target side* has a replica of it. One
//! of them dialled, the other listens; that decides who speaks first and nothing else, so
//! push and pull are the same machines with the same messages. [`Link`] turns bytes into
//! messages, [`Sender`] and [`Receiver`] are the two sides. None of them owns a socket, a
//! clock or a thread.
//!
//! # Goals
//!
//! * Nothing crosses the network in clear, or to a peer whose key is not pinned.
//! * An increment moves only what the target lacks, and a round trip costs latency once.
//! * Whatever is cut off goes on where it was, also after a restart of either side.
//! * A target commits only what it received whole, and says so only when it is durable.
//! * No input makes a side panic, or take more memory than [`limits`] says.
//!
//! Non-goals: hiding how much is sent and when; protecting against a peer that is allowed to
//! push and pushes rubbish (a target's own snapshots and a vault are for that).
//!
//! # Layers
//!
//! All integers are little-endian. Reserved bytes are zero and checked.
//!
//! **Hello.** Each side first sends 16 bytes that never change: `89 "DRFTL" 0d 0a`, oldest
//! version `u16`, newest version `u16`, features `u32`. The newest version that both speak is
//! used; a build speaks the current one and the one before. There is one version, 1. Of the
//! features the topmost bit is set by a listener that has no room for another handshake and hangs
//! up: the dialler may try again. The other bits are zero.
//!
//! **Handshake.** `Noise_IK_25519_ChaChaPoly_BLAKE2s`, with both hellos (the dialler's first)
//! as prologue: whoever changes a hello breaks the handshake. The dialler knows the listener's
//! static key beforehand; the listener answers only keys on its list, and others not at all.
//! Keys are written as `dlp1` (public) or `dls1` (secret) and 56 characters of base32 with a
//! checksum.
//!
//! **Frames.** Everything after the hello is a frame: a header and a body.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 handshake, 2 control, 3 bulk |
//! | 1 | 3 | zero |
//! | 4 | 4 | length of the body, with its 16-byte tag |
//! | 8 | 8 | sequence number, from 0, of all frames in this direction |
//! | 16 | 8 | pair: 0 until the target told its state, then the name of the volume pair |
//!
//! The pair is the first eight bytes of BLAKE3 over the replica's id, keyed with (a hash of)
//! the handshake hash: a frame cannot land on another replica, and an onlooker cannot link
//! sessions. Both sides use it in all frames after the `state` message.
//!
//! * *Control* bodies are Noise transport messages. Their plaintext starts with the sequence
//!   number and the pair again, as Noise has no associated data there; a message follows.
//! * *Bulk* bodies are ChaCha20-Poly1305 with the header as associated data and four zero
//!   bytes and the sequence number as nonce. Their plaintext is a data part: batch `u32`,
//!   coding `u8` (0 raw, 1 one zstd frame), three zero bytes, raw length `u32`, and the body.
//!
//! The bulk key of a direction is random and comes from its sender inside the Noise session,
//! first in the message `keys` (1) that both sides send right after the handshake, later in
//! `rekey` (2), after 64 GiB or an hour, which also rekeys the Noise cipher. The first `keys`
//! of a peer proves that it is no replay; nothing is believed before.
//!
//! # Messages
//!
//! | number | name | from | content |
//! |---|---|---|---|
//! | 3 | keep-alive | both | nothing; after 10 s without other words |
//! | 16 | request | dialler | verb (1 push, 2 pull, 3 status), the listener's name for the volume, and, of a push, that of one it is like |
//! | 17 | accept | listener | nothing |
//! | 18 | refuse | both | reason code, text; ends the session |
//! | 19 | state | target | replica id, chunk key, volume, generation, root, size, flags (1 incomplete, 2 damaged), resume, what it takes |
//! | 20 | offer | source | plan kind, volume, base, tip, size, standing, expected bytes, overwrite |
//! | 21 | begin | target | first chunk that is needed |
//! | 22 | batch | source | number, up to 512 items |
//! | 23 | want | target | number, for each item what it lacks |
//! | 24 | applied | target | number |
//! | 25 | finish | source | tip, size, root, hash over all items |
//! | 26 | committed | target | generation, root, size, bytes of data that became zero or were cut off, if it counts them |
//! | 27 | done | both | nothing; ends the session |
//! | 28 | narrowed | source | number, for each item that was narrowed the grains that follow |
//! | 29 | again | target | number, places of narrowed items that are wanted whole |
//! | 30 | ask | source | path of a data set below the target's, whether what it keeps of a cut stream is thrown away |
//!
//! A link ends after 60 s in which no byte arrived, and when a peer has sent more than 64
//! keep-alives and rekeys and one more for each second. Between request and accept the dialler
//! sends nothing but keep-alives, so that a listener that makes it wait need not keep anything.
//!
//! An item is one change in units of 64 KiB chunks: a chunk with masks of its data and zero
//! blocks and the keyed BLAKE3 id of the data; a run of zero chunks; or, in a scan, a *span*
//! of up to 4096 chunks with the manifest node over them, the topmost of a tree just high enough:
//! of a single chunk, its id. In a stream every item is a *part*: its number, its length of at most
//! 256 KiB, and its keyed BLAKE3 id. The bytes of every message are pinned by commented hexdumps in
//! `tests/data/wire`.
//!
//! A generation is a kind `u8` and a name: 1, the guid `u64` of a ZFS snapshot; 2, the 32
//! bytes of a content root; 3, the current UUID `u64` of a DRBD device with its bit 0 clear; 4, any
//! other: the letters of its scheme, the length `u8` of its name, and the name of 1 to 32 bytes.
//! A build that does not know a kind ends the session. Reasons, in `refuse` and as the
//! standing of an offer, are the codes of `driftline_extent::Reason`; a code that a build does
//! not know is a reason all the same.
//!
//! # A session
//!
//! ```text
//! dialler                    listener
//!    | hello, handshake, keys   |
//!    |<------------------------>|
//!    | request                  |
//!    |------------------------->|  may this key do this with this volume?
//!    |                   accept |
//!    |<-------------------------|
//!
//! source                      target
//!    |                    state |  what it holds, and what was cut off
//!    |<-------------------------|
//!    | offer                    |  incremental, full, scan or stream
//!    |------------------------->|  is the base what it holds?
//!    |                    begin |  from where
//!    |<-------------------------|
//!    | batch 0, 1, 2 …          |  a window of them, without waiting
//!    |------------------------->|
//!    |             want 0, 1, … |  what it lacks of each
//!    |<-------------------------|
//!    | narrowed, bulk 0, 1, …   |
//!    |------------------------->|
//!    |          applied 0, 1, … |  the window moves on
//!    |<-------------------------|
//!    | finish                   |  that was all, and this is its hash
//!    |------------------------->|  journal sealed, applied, read back, durable
//!    |                committed |
//!    |<-------------------------|
//!    | the next offer, or done  |
//!    |------------------------->|
//!    |                     done |
//!    |<-------------------------|
//! ```
//!
//! A *want* has a byte for each item: 0, nothing is lacking; 1, all of its data; 2 to 16, as many
//! hashes follow. Those are of the target's own old version of the item, 8 bytes for each grain (4
//! KiB, aligned) with blocks of the data mask, over these blocks alone: XXH3, 64 bits, seeded by
//! the chunk key, little-endian. The source then says with *narrowed*, before any data of the
//! batch, which grains differ, as 16 bits for each such item, and sends only their blocks. Only a
//! chunk with two grains of data or more, and on average half of each of them, is narrowed. The
//! target puts what came into its old version and compares the result with the announced id. If
//! that is something else, two grains had one hash: it applies nothing of the batch, or of those
//! behind it, and says *again*, once for a batch, with the places of these items, and their whole
//! data follows. So a hash that lies costs a round trip and never a byte.
//!
//! The old version is what stands at the item's own place. Where that is nothing, as in a first
//! copy, it is what stands at the same place of the volume that the *request* names as like it;
//! content that is equal there is not lacking either. The listener uses it only for a peer that
//! may push or pull that volume as well.
//!
//! For a span, *want* means that the target holds something else; the source then announces
//! shorter spans of it, down to single chunks, or its chunks as items. So the window bounds memory
//! on both sides: at most 32 MiB of data and 64 batches of at most 1 MiB are announced and not
//! applied. Each side may hold less: a source waits with the next batch, and a target with what it
//! wants of one. Batches are numbered, applied in order, and hashed on both sides; `finish` comes when all are applied. A
//! target that is asked to begin where an earlier session was cut off says from which chunk on it
//! needs items.
//!
//! A target says *damaged* where a scrub has found damage that it may replace. The source then
//! offers a scan, or a full copy whose base is what the target holds, also if it has nothing new,
//! and names `target-damaged` as its standing. The target asks for the damaged chunks, if they
//! still are what was found, and refuses what is another thing. A source that can show no more than
//! an increment offers that, and the damage stays. There is no other consent in it: `overwrite`
//! stays clear. A source that is to compare all without such a reason offers the same two, with
//! the standing that its map has.
//!
//! `finish` has the root over the whole volume wherever the source knows it: of whole copies and
//! scans always, and of an increment if the source keeps a manifest of what the target holds. A
//! target that comes to another root refuses as `root-mismatch` and commits nothing. A source whose
//! map turns out to miss changes refuses as `audit-mismatch` before `finish`; the next session
//! then is a scan.
//!
//! # Streams
//!
//! Only ZFS can apply a `zfs send` stream of a file system, or a raw one. Such a stream is
//! carried as it is, in an increment of its own kind, to a target whose state says that it takes
//! streams; every other target refuses the offer as `unsupported`, and that target every other
//! offer. What it takes is in its state: 1, changes of a volume; 2, streams, with
//!
//! * the token, if there is one, that its storage gave out for a stream that was cut off: up to
//!   8192 letters, digits and dashes. The source goes on from there, with a stream that the
//!   storage makes for this token; our own watermark is always zero.
//! * up to 200 points, newest first: the guid and the short name of each snapshot that it had
//!   when the session began. The source looks among them for one that it has, too.
//!
//! A stream may be of a tree of data sets, and a cut may leave some of them behind. So the source
//! of a tree does not go by the target's own generation alone: where an offer would be due, it
//! *asks* for the state of each data set, by its path below the target's own (empty for that
//! itself). The answer is a *state* with the same replica id and chunk key, and what follows, up to
//! the next question, is about that data set. With *discard*, the target first throws away what that
//! data set keeps of a stream that was cut off, if that is what it has told of: a source asks for
//! that whose snapshot is gone, as nobody can go on with such a token.
//!
//! The source cuts the stream into parts where the stream's own blocks begin, so that equal
//! blocks are equal parts. Parts are numbered from zero in each increment without a gap. The
//! target keeps the last ones that it saw, and does not want a part that it still has or that is
//! on its way already; nor one of nothing but zeros, whose id is all zeros. Which ones it keeps
//! is its own affair. The root in `finish` is the BLAKE3 hash of all bytes of the increment's
//! stream under a key that is derived from the chunk key, and the size is how many there are.
//! The target compares both with what it gave to its storage before it lets the storage finish,
//! and says `committed` once the storage has the tip, by its guid.
#![forbid(unsafe_code)]
mod codec;
mod frame;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hello;
mod keys;
pub mod limits;
mod link;
mod message;
mod pack;
mod receiver;
mod sender;
mod session;
pub use codec::DecodeError;
pub use hello::{HELLO_LEN, Hello, HelloError, VERSION_MAX, VERSION_MIN};
pub use keys::{KeyError, PublicKey, SecretKey};
pub use link::{Entropy, Link, LinkError, LinkEvent, Peer};
pub use message::{Batch, Coding, DataPart, Message, Verb};
pub use pack::{Packer, Unpacker, split_data};
pub use receiver::{Arrived, Inbound, Receiver, ReceiverOutput};
pub use sender::{Announced, Compared, Packed, Payload, Piece, Sender, SenderOutput};
pub use session::SessionError;
