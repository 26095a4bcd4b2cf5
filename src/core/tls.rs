//! HTTP clients with TLS. Their cryptography is `ring`'s, which compiles in less time than reqwest's default.

use reqwest::{Client, ClientBuilder};
use rustls::crypto::ring;

/// Starts an HTTP client.
pub fn client() -> ClientBuilder {
    // Only the first call can install the provider, and a program that uses this crate may have installed another.
    drop(ring::default_provider().install_default());
    Client::builder()
}
