//! One request and its answer: times, counts, and the class of its end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::prompt::Tokens;

/// How a request ended. Each class is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The answer is complete.
    Ok,
    /// No connection could be made.
    NotConnected,
    /// The connection ended before the head of an answer.
    NoAnswer,
    /// The answer is not HTTP.
    NotHttp,
    /// The head of the answer has no end, or is larger than is read.
    HeadTooLarge,
    /// Status 429.
    RateLimited,
    /// Another status from 400 to 499.
    ClientError,
    /// A status from 500.
    ServerError,
    /// A status that a completion does not have, such as a redirect.
    OtherStatus,
    /// The answer is not a stream of events.
    NotAStream,
    /// An event is not UTF-8, not JSON, or not a completion.
    BadEvent,
    /// An event or the whole answer is longer than is read.
    TooLarge,
    /// The server reported an error within the stream.
    ErrorEvent,
    /// The stream ended without its end mark and without a reason.
    EndedEarly,
    /// The stream is complete and has no token.
    NoTokens,
    /// The time for the request, counted from its schedule, was over.
    TimedOut,
    /// An earlier turn of the session failed, so that this one could not be sent.
    EarlierTurnFailed,
}

impl Outcome {
    /// Returns whether another attempt may succeed.
    pub(super) fn may_be_retried(self) -> bool {
        !matches!(self, Self::Ok | Self::ClientError | Self::OtherStatus | Self::TimedOut | Self::EarlierTurnFailed)
    }
}

/// A peculiarity of a stream that does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// An event with the role and no text came first. It is not a token.
    RoleOnlyDelta,
    /// The stream has comments.
    Comment,
    /// Lines end in CRLF or CR.
    CarriageReturn,
    /// A write ended inside a character.
    SplitCharacter,
    /// An event has several tokens.
    SeveralTokensPerEvent,
    /// The server gave no usage.
    NoUsage,
    /// The end mark `[DONE]` is missing.
    NoEndMark,
}

/// Where the number of tokens of each event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The event lists its tokens.
    Listed,
    /// Each event has the usage so far.
    RunningUsage,
    /// There are as many tokens as events.
    OnePerEvent,
    /// Our own tokenizer.
    Tokenizer,
    /// Tokens are split among the events by the lengths of their texts.
    ByLength,
    /// Nothing states the tokens, so an event counts as one.
    Events,
}

/// An event with text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Time of arrival, from the start of the run.
    pub at_ns: u64,
    /// End of its text within the answer, in bytes.
    pub text_end: usize,
    /// Number of tokens that the event lists.
    pub listed: Option<u64>,
    /// Tokens of the answer so far, by the event's usage.
    pub usage: Option<u64>,
    /// Tokens of the event, once they are counted.
    pub tokens: u64,
}

/// A request and what became of it. Times are nanoseconds from the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Number in the schedule.
    pub index: u64,
    /// Conversation.
    pub session: u64,
    /// Turn of the conversation, from 0.
    pub turn: u32,
    /// When it was due. For a later turn: the end of the one before, and the time to think.
    pub due_ns: u64,
    /// When it was first sent; `None` if it never was.
    pub sent_ns: Option<u64>,
    /// When the answer ended, or the failure was seen.
    pub ended_ns: u64,
    /// Times that it was sent.
    pub attempts: u32,
    /// Class of the end.
    pub outcome: Outcome,
    /// HTTP status of the last answer.
    pub status: Option<u16>,
    /// The failure in words.
    pub detail: Option<String>,
    /// Events with text.
    pub chunks: Vec<Chunk>,
    /// Text of the answer.
    pub text: String,
    /// Why the server ended the answer.
    pub finish_reason: Option<String>,
    /// Planned length of the prompt or message.
    pub planned_prompt_tokens: u32,
    /// Limit of the answer.
    pub max_new_tokens: u32,
    /// Length of the prompt by the server's usage.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that the server took from a cache.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer by the server's usage.
    pub usage_tokens: Option<u64>,
    /// Tokens of the answer by our tokenizer.
    pub own_tokens: Option<u64>,
    /// Where the numbers of tokens of the events come from.
    pub token_source: Option<TokenSource>,
    /// Peculiarities of the stream.
    pub oddities: BTreeSet<Oddity>,
}

impl Exchange {
    /// Counts the tokens of each event.
    pub(super) fn count_tokens(&mut self, tokens: Option<&Tokens>) {
        self.own_tokens = tokens.map(|tokens| tokens.count(&self.text) as u64);
        let events = self.chunks.len() as u64;
        if events == 0 {
            return;
        }
        let listed: Option<Vec<u64>> = self.chunks.iter().map(|chunk| chunk.listed).collect();
        let running: Option<Vec<u64>> = self.chunks.iter().map(|chunk| chunk.usage).collect();
        let total = self.usage_tokens.or(self.own_tokens);
        let (source, counts) = match (listed, running, total, tokens) {
            (Some(listed), ..) => (TokenSource::Listed, listed),
            (None, Some(running), ..) => (TokenSource::RunningUsage, differences(&running)),
            (None, None, Some(total), _) if total == events => (TokenSource::OnePerEvent, vec![1; events as usize]),
            (None, None, _, Some(tokens)) => {
                let prefix = |chunk: &Chunk| tokens.count(&self.text[..chunk.text_end]) as u64;
                (TokenSource::Tokenizer, differences(&self.chunks.iter().map(prefix).collect::<Vec<_>>()))
            }
            (None, None, Some(total), None) => {
                let length = self.text.len().max(1) as u128;
                let share = |chunk: &Chunk| (u128::from(total) * chunk.text_end as u128).div_ceil(length) as u64;
                (TokenSource::ByLength, differences(&self.chunks.iter().map(share).collect::<Vec<_>>()))
            }
            (None, None, None, None) => (TokenSource::Events, vec![1; events as usize]),
        };
        for (chunk, count) in self.chunks.iter_mut().zip(counts) {
            chunk.tokens = count;
        }
        self.token_source = Some(source);
        if self.chunks.iter().any(|chunk| chunk.tokens > 1) {
            self.oddities.insert(Oddity::SeveralTokensPerEvent);
        }
        if self.outcome == Outcome::Ok && self.usage_tokens.is_none() {
            self.oddities.insert(Oddity::NoUsage);
        }
    }

    /// Tokens of the answer: the server's usage, else our own count, else the sum over the events.
    pub(crate) fn tokens(&self) -> u64 {
        let events = || self.chunks.iter().map(|chunk| chunk.tokens).sum();
        self.usage_tokens.or(self.own_tokens).unwrap_or_else(events)
    }

    /// Time of the first token.
    pub(crate) fn first_ns(&self) -> Option<u64> {
        Some(self.chunks.first()?.at_ns)
    }

    /// Time to first token from the schedule, or from the first send.
    pub(crate) fn ttft_ns(&self, from_schedule: bool) -> Option<u64> {
        Some(self.first_ns()?.saturating_sub(self.origin_ns(from_schedule)?))
    }

    /// Time to the end of the answer from the schedule, or from the first send.
    pub(crate) fn e2e_ns(&self, from_schedule: bool) -> Option<u64> {
        Some(self.ended_ns.saturating_sub(self.origin_ns(from_schedule)?))
    }

    /// Time per output token: the time between the first and the last event over the tokens that came after the first
    /// event. `None` if none did.
    pub(crate) fn tpot_ns(&self) -> Option<u64> {
        let (first, last) = (self.chunks.first()?, self.chunks.last()?);
        let later = self.tokens().checked_sub(first.tokens).filter(|later| *later > 0 && self.chunks.len() > 1)?;
        Some((last.at_ns - first.at_ns) / later)
    }

    /// Time between events, and the number of tokens that the later one brought.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks.windows(2).map(|pair| (pair[1].at_ns - pair[0].at_ns, pair[1].tokens))
    }

    /// Arrival of every token in milliseconds from the start of the run.
    pub(crate) fn token_arrival_ms(&self) -> Vec<f64> {
        let times = |chunk: &Chunk| vec![chunk.at_ns as f64 / 1e6; usize::try_from(chunk.tokens).unwrap_or(0)];
        self.chunks.iter().flat_map(times).collect()
    }

    fn origin_ns(&self, from_schedule: bool) -> Option<u64> {
        if from_schedule { Some(self.due_ns) } else { self.sent_ns }
    }

    /// The exchange as a line of JSON, with the arrival of every token.
    pub(crate) fn line(&self) -> String {
        let ms = |ns: u64| ns as f64 / 1e6;
        serde_json::json!({
            "index": self.index,
            "session": self.session,
            "turn": self.turn,
            "due_ms": ms(self.due_ns),
            "sent_ms": self.sent_ns.map(ms),
            "ended_ms": ms(self.ended_ns),
            "attempts": self.attempts,
            "outcome": self.outcome,
            "status": self.status,
            "detail": self.detail,
            "finish_reason": self.finish_reason,
            "planned_prompt_tokens": self.planned_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "usage_tokens": self.usage_tokens,
            "own_tokens": self.own_tokens,
            "chunks": self.chunks.len(),
            "token_source": self.token_source,
            "token_arrival_ms": self.token_arrival_ms(),
            "oddities": self.oddities,
        })
        .to_string()
    }
}

/// Differences of successive values from 0. A value below an earlier one counts as equal to it.
fn differences(totals: &[u64]) -> Vec<u64> {
    let mut before = 0;
    totals
        .iter()
        .map(|total| {
            let more = total.saturating_sub(before);
            before = before.max(*total);
            more
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An answer of `tokens` words, `per_event` in each event, with `gap_ns` between events.
    pub(crate) fn answer(tokens: u64, per_event: u64, gap_ns: u64) -> Exchange {
        let mut exchange = Exchange {
            index: 0,
            session: 0,
            turn: 0,
            due_ns: 1000,
            sent_ns: Some(1500),
            ended_ns: 0,
            attempts: 1,
            outcome: Outcome::Ok,
            status: Some(200),
            detail: None,
            chunks: Vec::new(),
            text: String::new(),
            finish_reason: None,
            planned_prompt_tokens: 1,
            max_new_tokens: 1,
            prompt_tokens: None,
            cached_tokens: None,
            usage_tokens: None,
            own_tokens: None,
            token_source: None,
            oddities: BTreeSet::new(),
        };
        for event in 0..tokens.div_ceil(per_event) {
            for _ in event * per_event..tokens.min((event + 1) * per_event) {
                exchange.text.push_str(" word");
            }
            let at_ns = 2000 + event * gap_ns;
            exchange.chunks.push(Chunk { at_ns, text_end: exchange.text.len(), listed: None, usage: None, tokens: 0 });
            exchange.ended_ns = at_ns;
        }
        exchange
    }

    fn words() -> Tokens {
        Tokens::new("words".into(), |text| text.split_whitespace().count())
    }

    #[test]
    fn tokens_are_counted_from_every_source() {
        for per_event in [1, 4, 16] {
            let events = 60u64.div_ceil(per_event);
            let truth = |event: u64| per_event.min(60 - event * per_event);
            let counted = |mut exchange: Exchange, tokens: Option<&Tokens>| {
                exchange.count_tokens(tokens);
                assert_eq!(exchange.tokens(), 60);
                let counts: Vec<u64> = exchange.chunks.iter().map(|chunk| chunk.tokens).collect();
                assert_eq!(counts, (0..events).map(truth).collect::<Vec<_>>(), "{:?}", exchange.token_source);
                let tpot = exchange.tpot_ns().expect("several events") as f64;
                let expected = 1e6 * (events - 1) as f64 / (60 - per_event) as f64;
                assert!((tpot / expected - 1.0).abs() < 1e-3, "{tpot}, not {expected}");
                exchange.token_source.expect("a source")
            };
            let plain = || answer(60, per_event, 1_000_000);
            let mut listed = plain();
            let mut running = plain();
            for event in 0..events {
                listed.chunks[event as usize].listed = Some(truth(event));
                running.chunks[event as usize].usage = Some(60.min((event + 1) * per_event));
            }
            assert_eq!(counted(listed, None), TokenSource::Listed);
            assert_eq!(counted(running, None), TokenSource::RunningUsage);
            let with_usage = Exchange { usage_tokens: Some(60), ..plain() };
            let by_usage = counted(with_usage, None);
            let by_tokenizer = counted(plain(), Some(&words()));
            if per_event == 1 {
                assert_eq!((by_usage, by_tokenizer), (TokenSource::OnePerEvent, TokenSource::OnePerEvent));
            } else {
                assert_eq!((by_usage, by_tokenizer), (TokenSource::ByLength, TokenSource::Tokenizer));
            }
        }
        let mut unknown = answer(4, 1, 10);
        unknown.count_tokens(None);
        assert_eq!((unknown.token_source, unknown.tokens()), (Some(TokenSource::Events), 4));
    }

    #[test]
    fn times_count_from_the_schedule_and_from_the_send() {
        let mut exchange = answer(4, 2, 100);
        exchange.count_tokens(Some(&words()));
        assert_eq!((exchange.ttft_ns(true), exchange.ttft_ns(false)), (Some(1000), Some(500)));
        assert_eq!((exchange.e2e_ns(true), exchange.e2e_ns(false)), (Some(1100), Some(600)));
        assert_eq!(exchange.tpot_ns(), Some(50));
        assert_eq!(exchange.gaps().collect::<Vec<_>>(), [(100, 2)]);
        assert_eq!(exchange.token_arrival_ms(), [0.002, 0.002, 0.0021, 0.0021]);
        // All tokens in one event have no time per token.
        let mut at_once = answer(4, 4, 100);
        at_once.count_tokens(Some(&words()));
        assert_eq!(at_once.tpot_ns(), None);
    }
}
