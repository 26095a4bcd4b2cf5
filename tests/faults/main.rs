//! Faults and hostile input, each with the one line that a person gets. Everything ends within seconds; nothing outside
//! the folders that a command was given is written or removed.

// Functions beside the tests say what is skipped.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod command;
mod connections;
mod count;
mod files;
mod flags;
mod fuzz;
mod hub;
mod limits;
mod lost;
mod output;
mod scores;
#[cfg(target_os = "linux")]
mod signals;
mod sizes;
mod stage;
mod training;
