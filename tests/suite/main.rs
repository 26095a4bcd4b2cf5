//! Tests that neither install an allocator nor have a `main` of their own. They are one program, so that the library is linked
//! once. `cargo test --test suite keys::` runs those of one file.

// Functions beside the tests say what is skipped.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod bisect;
mod command;
mod duel;
mod first;
mod generated;
mod golden_sampling;
mod hub;
mod keys;
mod layout;
mod measures;
mod quality;
mod readme;
mod recommend;
mod reports;
mod schemas;
mod sweep;
mod train;
mod wrap;
