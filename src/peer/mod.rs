//! Peers: other systems that run the same models, each in a process of its own, to be measured beside the engines.
//!
//! - `name` is the name of a peer in settings and ids.
//! - `launch` is its command, from `candlepower.toml` or from the adapters of `scripts/peers`, which are part of the program. Cargo
//!   builds those that are packages.
//! - `protocol` holds the messages, which the [guide](crate::guide::peers) specifies.
//! - `process` is a running peer. It checks every answer.

mod launch;
mod name;
mod process;
mod protocol;

pub use launch::{Launch, adapters};
pub use name::PeerName;
pub use process::{Peer, Unsupported};
pub use protocol::{Generated, Loaded, Model, Work};
