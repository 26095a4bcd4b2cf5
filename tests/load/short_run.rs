//! A load as tests send it. The tests of the server use it too.

use std::time::Duration;

use candlepower::load::{Api, Limits, Plan, Run, Shape, Shard, Target};

/// A whole run against a server, with limits that a test of a second can meet.
pub fn short_run(shape: Shape, url: &str, model: &str, api: Api) -> Run {
    Run {
        plan: Plan::new(shape).expect("a plan"),
        shard: Shard::WHOLE,
        target: Target {
            url: url.into(),
            api,
            model: model.into(),
            api_key: None,
            headers: Vec::new(),
            extra: serde_json::Map::new(),
            timeout: Duration::from_secs(20),
            retries: 0,
        },
        tokens: None,
        objectives: Vec::new(),
        steady_from_s: 0.0,
        limits: Limits { min_duration_s: 0.0, percentile: 0.5, confidence: 0.5, ..Limits::default() },
        start_at: None,
        exchanges_to: None,
    }
}
