//! Tests that neither install an allocator nor have a `main` of their own, in one program, which links the library once. Tests of
//! one file: `cargo test --release --test suite keys::`.

mod command;
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
mod wrap;
