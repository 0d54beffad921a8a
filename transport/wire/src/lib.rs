//! Protocol.
#![forbid(unsafe_code)]
mod codec;
mod frame;
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
pub use receiver::{Arrived, Receiver, ReceiverOutput};
pub use sender::{Announced, Payload, Piece, Sender, SenderOutput};
pub use session::SessionError;
