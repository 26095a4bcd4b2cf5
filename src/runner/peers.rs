//! The peers of groups whose iterations are steps. A process is started when a benchmark needs it, and the next benchmark that
//! is not measured in turns with it takes the same process.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc};

use anyhow::{Context, Result};

use super::pool::again;
use crate::{
    peer::{Launch, Peer, PeerName},
    record,
    settings::Settings,
};

/// The peers that the settings name.
pub struct Peers {
    launches: BTreeMap<PeerName, Launch>,
    out: PathBuf,
    running: Vec<(PeerName, Rc<RefCell<Peer>>)>,
    /// Makes the error with which a peer did not start. It is not started again.
    unstartable: BTreeMap<PeerName, Box<dyn Fn() -> anyhow::Error>>,
}

impl Peers {
    /// None is started yet.
    pub fn new(settings: &Settings) -> Self {
        let (launches, out) = (settings.peers.clone(), settings.out.clone());
        Self { launches, out, running: Vec::new(), unstartable: BTreeMap::new() }
    }

    /// A running peer that no benchmark holds. One that has failed stays, and tells why it is not asked again.
    ///
    /// # Errors
    /// Returns an error if it does not start.
    pub fn free(&mut self, name: &PeerName) -> Result<Rc<RefCell<Peer>>> {
        if let Some(error) = self.unstartable.get(name) {
            return Err(error());
        }
        let is_free = |(own, peer): &&(PeerName, Rc<RefCell<Peer>>)| own == name && Rc::strong_count(peer) == 1;
        if let Some((_, peer)) = self.running.iter().find(is_free) {
            return Ok(peer.clone());
        }
        let started = self.start(name);
        if let Err(error) = &started {
            self.unstartable.insert(name.clone(), again(error));
        }
        let peer = Rc::new(RefCell::new(started?));
        self.running.push((name.clone(), peer.clone()));
        Ok(peer)
    }

    fn start(&self, name: &PeerName) -> Result<Peer> {
        let launch = self.launches.get(name).with_context(|| format!("peer {name} has no command"))?;
        Peer::start(name, launch, &self.out, candle_core::utils::get_num_threads())
    }

    /// The description that a peer gives of itself once it runs.
    pub fn about(&self, name: &str) -> Option<record::Peer> {
        let found = self.running.iter().find(|(own, _)| own.as_str() == name)?;
        Some(found.1.borrow().about().clone())
    }
}
