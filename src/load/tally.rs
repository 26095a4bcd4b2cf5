//! Counts and histograms of the exchanges of a run. Tallies of shards can be added without a loss.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    exchange::{Exchange, Oddity, Outcome, TokenSource},
    histogram::Histogram,
    objective::{Objective, Timed},
};

/// Counts and histograms of a run, or of shards of one schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Every request.
    pub all: Window,
    /// Requests that were due after the ramp.
    pub steady: Window,
    /// Requests by the class of their end.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// An example of each failure in words.
    pub failures: BTreeMap<Outcome, String>,
    /// Requests that succeeded, by each peculiarity of their stream. A stream that broke off says nothing about its rest.
    pub oddities: BTreeMap<Oddity, u64>,
    /// Attempts after a failed one.
    pub retries: u64,
    /// Numbers of tokens.
    pub tokens: TokenCounts,
    /// Time between the schedule and the first send of each request: the error of the generator.
    pub lateness: Histogram,
    /// Time by which the generator's threads woke late, sampled a hundred times a second. The timer of the runtime itself is
    /// up to a millisecond late.
    pub wake_delay: Histogram,
    /// Times of each request that succeeded.
    pub times: Vec<Times>,
}

/// Times of a request from its schedule in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// When it was due, from the start of the run.
    pub due_ms: f64,
    /// Time to first token; `null` if it is unknown.
    pub ttft_ms: Option<f64>,
    /// Time per output token.
    pub tpot_ms: Option<f64>,
    /// Time to the end.
    pub e2e_ms: f64,
}

/// Requests that were due within a window of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Requests that were due.
    pub requests: u64,
    /// Those that succeeded.
    pub ok: u64,
    /// Those that met every objective, from the schedule.
    pub met: u64,
    /// Those that met every objective, from the send.
    pub met_from_send: u64,
    /// Those that missed no objective, but have a time that is unknown, from the schedule.
    pub unjudged: u64,
    /// The same from the send.
    pub unjudged_from_send: u64,
    /// Tokens of answers that succeeded.
    pub output_tokens: u64,
    /// Earliest schedule of a request, from the start of the run.
    pub first_due_ns: Option<u64>,
    /// Latest end of a request, from the start of the run.
    pub last_end_ns: u64,
    /// Times from the schedule.
    pub scheduled: Latencies,
    /// Times from the send.
    pub sent: Latencies,
    /// Time per output token.
    pub tpot: Histogram,
    /// Inter-token latency: the time between events divided by the tokens of the later one, once for each of them.
    pub itl: Histogram,
    /// Time between events.
    pub chunk_gap: Histogram,
}

/// Times of successful requests from one origin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Time to first token.
    pub ttft: Histogram,
    /// Time to the end of the answer.
    pub e2e: Histogram,
}

/// Numbers of tokens, over the requests that succeeded, and how far they disagree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Planned lengths of prompts and messages.
    pub planned_prompt: u64,
    /// Lengths of prompts by the server.
    pub prompt: u64,
    /// Prompt tokens from the server's cache.
    pub cached: u64,
    /// Requests whose prompt the server counted.
    pub prompt_counted: u64,
    /// Tokens of answers by the server.
    pub usage: u64,
    /// Requests whose answer the server counted.
    pub usage_counted: u64,
    /// Tokens of answers by our tokenizer.
    pub own: u64,
    /// Requests whose answer our tokenizer counted.
    pub own_counted: u64,
    /// Events with text.
    pub chunks: u64,
    /// Requests whose answer is shorter than the plan allowed.
    pub shorter_than_planned: u64,
    /// Requests in which the server's count differs from ours.
    pub usage_differs_from_own: u64,
    /// Largest difference between the server's count and ours in a request.
    pub largest_difference: u64,
    /// Requests in which the server's count differs from the number of events.
    pub usage_differs_from_chunks: u64,
    /// Requests by the source of the numbers of tokens of their events.
    pub sources: BTreeMap<TokenSource, u64>,
    /// Requests by the realised length of their answer.
    pub output_lengths: BTreeMap<u64, u64>,
    /// Requests by the realised length of their prompt, by the server.
    pub prompt_lengths: BTreeMap<u64, u64>,
}

impl Tally {
    /// Adds the lateness of an exchange. It is apart from [`Self::add`], so that it is known while a run goes on.
    pub(super) fn add_lateness(&mut self, exchange: &Exchange) {
        if let Some(sent_ns) = exchange.sent_ns {
            self.lateness.record(sent_ns.saturating_sub(exchange.due_ns));
        }
    }

    /// Adds an exchange whose tokens are counted.
    pub(super) fn add(&mut self, exchange: &Exchange, objectives: &[Objective], steady_from_ns: u64) {
        *self.outcomes.entry(exchange.outcome).or_default() += 1;
        if let Some(detail) = &exchange.detail {
            self.failures.entry(exchange.outcome).or_insert_with(|| detail.clone());
        }
        self.retries += u64::from(exchange.attempts.saturating_sub(1));
        self.all.add(exchange, objectives);
        if exchange.due_ns >= steady_from_ns {
            self.steady.add(exchange, objectives);
        }
        if exchange.outcome != Outcome::Ok {
            return;
        }
        exchange.oddities.iter().for_each(|oddity| *self.oddities.entry(*oddity).or_default() += 1);
        self.tokens.add(exchange);
        let ms = |timed: Timed| timed.of(exchange, true).map(|ns| ns as f64 / 1e6);
        if let Some(e2e_ms) = ms(Timed::E2e) {
            let (due_ms, ttft_ms, tpot_ms) = (exchange.due_ns as f64 / 1e6, ms(Timed::Ttft), ms(Timed::Tpot));
            self.times.push(Times { due_ms, ttft_ms, tpot_ms, e2e_ms });
        }
    }

    /// Adds the tally of another shard.
    ///
    /// # Errors
    /// As [`Histogram::add`].
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        self.all.merge(&other.all)?;
        self.steady.merge(&other.steady)?;
        add_counts(&mut self.outcomes, &other.outcomes);
        add_counts(&mut self.oddities, &other.oddities);
        for (outcome, detail) in &other.failures {
            self.failures.entry(*outcome).or_insert_with(|| detail.clone());
        }
        add_to(&mut self.retries, other.retries);
        self.tokens.merge(&other.tokens);
        self.lateness.add(&other.lateness)?;
        self.wake_delay.add(&other.wake_delay)?;
        self.times.extend(&other.times);
        Ok(())
    }

    /// Times of the successful requests in the order of the schedule.
    pub(super) fn times_in_order(&self) -> Vec<Times> {
        let mut times = self.times.clone();
        times.sort_by(|a, b| a.due_ms.total_cmp(&b.due_ms));
        times
    }
}

impl Window {
    fn add(&mut self, exchange: &Exchange, objectives: &[Objective]) {
        self.requests += 1;
        self.first_due_ns = Some(self.first_due_ns.unwrap_or(u64::MAX).min(exchange.due_ns));
        self.last_end_ns = self.last_end_ns.max(exchange.ended_ns);
        if exchange.outcome != Outcome::Ok {
            return;
        }
        self.ok += 1;
        for (met, unjudged, from_schedule) in
            [(&mut self.met, &mut self.unjudged, true), (&mut self.met_from_send, &mut self.unjudged_from_send, false)]
        {
            match Objective::all_met(objectives, exchange, from_schedule) {
                Some(is_met) => *met += u64::from(is_met),
                None => *unjudged += 1,
            }
        }
        self.output_tokens += exchange.tokens();
        for (latencies, from_schedule) in [(&mut self.scheduled, true), (&mut self.sent, false)] {
            exchange.ttft_ns(from_schedule).into_iter().for_each(|ns| latencies.ttft.record(ns));
            exchange.e2e_ns(from_schedule).into_iter().for_each(|ns| latencies.e2e.record(ns));
        }
        exchange.tpot_ns().into_iter().for_each(|ns| self.tpot.record(ns));
        let has_itl = !exchange.lacks(Timed::Tpot);
        // An event without a token of its own adds its gap to the next one.
        let mut carried_ns = 0;
        for (gap_ns, tokens) in exchange.gaps() {
            self.chunk_gap.record(gap_ns);
            carried_ns += gap_ns;
            if !has_itl {
                continue;
            }
            if let Some(itl_ns) = carried_ns.checked_div(tokens) {
                self.itl.record_times(itl_ns, tokens);
                carried_ns = 0;
            }
        }
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        add_to(&mut self.requests, other.requests);
        add_to(&mut self.ok, other.ok);
        add_to(&mut self.met, other.met);
        add_to(&mut self.met_from_send, other.met_from_send);
        add_to(&mut self.unjudged, other.unjudged);
        add_to(&mut self.unjudged_from_send, other.unjudged_from_send);
        add_to(&mut self.output_tokens, other.output_tokens);
        self.first_due_ns = self.first_due_ns.into_iter().chain(other.first_due_ns).min();
        self.last_end_ns = self.last_end_ns.max(other.last_end_ns);
        for (ours, theirs) in [(&mut self.scheduled, &other.scheduled), (&mut self.sent, &other.sent)] {
            ours.ttft.add(&theirs.ttft)?;
            ours.e2e.add(&theirs.e2e)?;
        }
        self.tpot.add(&other.tpot)?;
        self.itl.add(&other.itl)?;
        self.chunk_gap.add(&other.chunk_gap)
    }

    /// Time from the first schedule to the last end.
    pub(crate) fn seconds(&self) -> f64 {
        self.last_end_ns.saturating_sub(self.first_due_ns.unwrap_or(self.last_end_ns)) as f64 / 1e9
    }
}

impl TokenCounts {
    fn add(&mut self, exchange: &Exchange) {
        self.planned_prompt += u64::from(exchange.planned_prompt_tokens);
        if let Some(prompt) = exchange.prompt_tokens {
            self.prompt += prompt;
            self.prompt_counted += 1;
            *self.prompt_lengths.entry(prompt).or_default() += 1;
        }
        self.cached += exchange.cached_tokens.unwrap_or(0);
        let chunks = exchange.chunks.len() as u64;
        self.chunks += chunks;
        self.own += exchange.own_tokens.unwrap_or(0);
        self.own_counted += u64::from(exchange.own_tokens.is_some());
        if let Some(usage) = exchange.usage_tokens {
            self.usage += usage;
            self.usage_counted += 1;
            self.usage_differs_from_chunks += u64::from(usage != chunks);
            let difference = exchange.own_tokens.map_or(0, |own| own.abs_diff(usage));
            self.usage_differs_from_own += u64::from(difference > 0);
            self.largest_difference = self.largest_difference.max(difference);
        }
        self.shorter_than_planned += u64::from(exchange.tokens() < u64::from(exchange.max_new_tokens));
        *self.output_lengths.entry(exchange.tokens()).or_default() += 1;
        exchange.token_source.into_iter().for_each(|source| *self.sources.entry(source).or_default() += 1);
    }

    fn merge(&mut self, other: &Self) {
        add_to(&mut self.planned_prompt, other.planned_prompt);
        add_to(&mut self.prompt, other.prompt);
        add_to(&mut self.cached, other.cached);
        add_to(&mut self.prompt_counted, other.prompt_counted);
        add_to(&mut self.usage, other.usage);
        add_to(&mut self.usage_counted, other.usage_counted);
        add_to(&mut self.own, other.own);
        add_to(&mut self.own_counted, other.own_counted);
        add_to(&mut self.chunks, other.chunks);
        add_to(&mut self.shorter_than_planned, other.shorter_than_planned);
        add_to(&mut self.usage_differs_from_own, other.usage_differs_from_own);
        self.largest_difference = self.largest_difference.max(other.largest_difference);
        add_to(&mut self.usage_differs_from_chunks, other.usage_differs_from_chunks);
        add_counts(&mut self.sources, &other.sources);
        add_counts(&mut self.output_lengths, &other.output_lengths);
        add_counts(&mut self.prompt_lengths, &other.prompt_lengths);
    }
}

/// Adds a count of a file, which may be any number.
fn add_to(ours: &mut u64, theirs: u64) {
    *ours = ours.saturating_add(theirs);
}

fn add_counts<K: Ord + Copy>(ours: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
    theirs.iter().for_each(|(key, count)| add_to(ours.entry(*key).or_default(), *count));
}

#[cfg(test)]
mod tests {
    use super::{super::exchange::Oddity, *};

    #[test]
    fn only_answers_have_peculiarities() {
        let odd =
            Exchange { oddities: [Oddity::AllAtOnce].into(), ..super::super::exchange::tests::answer(4, 1, 1_000_000) };
        for (outcome, count) in [(Outcome::Ok, 1), (Outcome::EndedEarly, 0), (Outcome::ServerError, 0)] {
            let mut tally = Tally::default();
            tally.add(&Exchange { outcome, ..odd.clone() }, &[], 0);
            assert_eq!(tally.oddities.values().sum::<u64>(), count, "{outcome:?}");
            assert_eq!(tally.outcomes, [(outcome, 1)].into());
        }
    }
}
