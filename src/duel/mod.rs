//! Duels: two versions of the program measured in turns, to judge a change on a machine that is never quiet.
//!
//! ```text
//! commits     a duel of two sides, whose programs it builds
//! side        what the user typed: a revision, a checkout of Candle, features, settings
//!   slot      a folder below target/duel, locked while the duel runs
//!   build     a worktree of each side's commit, built by Cargo under a guard
//!   process   a running side, which speaks the protocol through its standard input and output
//!   contest   samples in turns, until the rule of sequential says that the ratio is known
//! bisect      a sequence of duels, to find the commit that changed a benchmark
//! serve       the other end of the protocol, in the process of a side
//! ```

#[cfg(feature = "cli")]
pub(crate) mod bisect;
#[cfg(feature = "cli")]
mod build;
#[cfg(feature = "cli")]
mod commits;
mod contest;
mod filter;
#[cfg(feature = "cli")]
mod guard;
mod process;
mod protocol;
mod sequential;
mod serve;
#[cfg(feature = "cli")]
mod side;
#[cfg(feature = "cli")]
mod slot;

#[cfg(feature = "cli")]
pub(crate) use commits::run;
pub use contest::{Folders, Program, Rules, measure};
pub(crate) use filter::Filter;
#[cfg(feature = "cli")]
pub(crate) use guard::guard;
pub(crate) use process::{Answer, Process};
pub use sequential::Until;
pub(crate) use serve::serve;
#[cfg(feature = "cli")]
pub(crate) use side::Side;

/// The first argument of a program that is a side. The name of a bench target may follow it.
pub(crate) const SIDE: &str = "duel-side";
