//! The tokio shell around the protocol: listen, dial, and pump a session.
//!
//! The protocol itself is [`driftline_wire`], which does no I/O. This crate owns sockets,
//! time and threads, and decides nothing:
//!
//! * [`Connection`] carries a link over any byte stream, [`dial`] and [`Listener`] make them.
//! * [`serve_source`] and [`serve_target`] run one side of a session. Storage blocks, so it
//!   lives on threads of its own ([`deliver`](mod@deliver), [`receive`](mod@receive)); bounded
//!   channels join them to the one async task that owns the link.
//! * [`Auditor`](auditor::Auditor) keeps the source's own manifest, and audits what a map says.
//! * [`Progress`] counts, for whoever draws a bar.
#![forbid(unsafe_code)]

pub mod auditor;
pub mod deliver;
pub mod receive;
pub mod scan;

mod budget;
mod connection;
mod error;
mod opening;
mod pace;
mod progress;
mod pump;
mod session;
mod source_side;
mod summary;
mod target_side;
mod watched;

pub use connection::{Connection, Listener, dial, turn_away};
pub use error::{Failure, TransportError, chain};
pub use opening::{answer, receive_request, receive_state, request, send_state};
pub use pace::SharedLimit;
pub use progress::{Progress, Snapshot};
pub use session::{serve_source, serve_target};
pub use source_side::{SOURCE_PATIENCE, SourceJob};
pub use summary::Summary;
