//! The answers of two servers to the same requests.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    exchange::{Exchange, Outcome},
    objective::Timed,
};
use crate::statistics::{Paired, median, paired_ratio};

/// Times of the answers to each request, from the send in ms, by server and in the order of [`Timed::ALL`].
#[derive(Default)]
pub(super) struct Pairs(BTreeMap<u64, [[Option<f64>; Timed::ALL.len()]; 2]>);

/// A time on the second server over that on the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimeRatio {
    /// The time.
    pub timed: Timed,
    /// Median on each server, over the requests that both answered.
    pub p50_ms: [f64; 2],
    /// Median of the ratios of all requests, with its interval.
    #[serde(flatten)]
    pub paired: Paired,
}

impl Pairs {
    pub fn add(&mut self, server: usize, exchange: &Exchange) {
        let is_ok = exchange.outcome == Outcome::Ok;
        let ms = |(timed, _): (Timed, _)| timed.of(exchange, false).filter(|_| is_ok).map(|ns| ns as f64 / 1e6);
        if let Some(own) = self.0.entry(exchange.index).or_default().get_mut(server) {
            *own = Timed::ALL.map(ms);
        }
    }

    /// The ratios of the times that are known of both servers.
    pub fn ratios(&self) -> Vec<TimeRatio> {
        let ratio = |(place, (timed, _)): (usize, (Timed, _))| {
            let both = self.0.values().filter_map(|[first, second]| first[place].zip(second[place]));
            let (first, second): (Vec<f64>, Vec<f64>) = both.unzip();
            let paired = paired_ratio(&second, &first)?;
            Some(TimeRatio { timed, p50_ms: [median(first), median(second)], paired })
        };
        Timed::ALL.into_iter().enumerate().filter_map(ratio).collect()
    }
}
