//! One request and its answer: times, counts, and the class of its end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{objective::Timed, prompt::Tokens};

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
    /// The stream broke off, or ended without a reason for its end, or with one that says that the server gave up.
    EndedEarly,
    /// The answer has several choices, or a choice that was not asked for.
    SeveralChoices,
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

/// A peculiarity of a stream. The last three make figures unknown.
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
    /// An event has a name of its own and is no part of the answer.
    NamedEvent,
    /// All tokens came at one time, as through a proxy that buffers. TTFT, TPOT and ITL are unknown.
    AllAtOnce,
    /// It is not known which event brought which tokens. TPOT and ITL are unknown.
    UnplacedTokens,
    /// The server states more tokens than it was asked for. The number is not believed.
    ImpossibleUsage,
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

/// Largest time between events that came at once. A step of a model takes longer.
const AT_ONCE_NS: u64 = 300_000;
/// Share of the tokens whose place may be unknown, as a divisor: 2 %.
const UNPLACED: u64 = 50;

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text, or a list of tokens.
    Text,
    /// Nothing: a token without text, or no token.
    Silent,
    /// Only why the answer ends.
    End,
}

/// An event of the answer. Once the tokens are counted, each has text or a token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// What it says.
    pub part: Part,
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
    /// Events with text or tokens.
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
    /// Counts the tokens of each event, and finds out which times are known.
    ///
    /// Tokens that no event carries belong to the end: an end token has no text. So if the answer did not end by its limit,
    /// the usage may be one more than the tokens of the events.
    pub(super) fn count_tokens(&mut self, tokens: Option<&Tokens>) {
        self.own_tokens = tokens.map(|tokens| tokens.count(&self.text) as u64);
        let texts = self.chunks.iter().filter(|chunk| chunk.part == Part::Text).count() as u64;
        if texts == 0 {
            self.chunks.clear();
            return;
        }
        let silent = self.chunks.iter().filter(|chunk| chunk.part == Part::Silent).count() as u64;
        let most = u64::from(self.max_new_tokens);
        let of_texts = |get: fn(&Chunk) -> Option<u64>| -> Option<Vec<u64>> {
            self.chunks.iter().filter(|chunk| chunk.part == Part::Text).map(get).collect()
        };
        let listed = of_texts(|chunk| chunk.listed).map(|_| self.values(|chunk| chunk.listed));
        let running = of_texts(|chunk| chunk.usage).map(|_| differences(&self.values(|chunk| chunk.usage)));
        let sum = |counts: &Option<Vec<u64>>| counts.as_ref().map_or(0, |counts| counts.iter().sum::<u64>());
        if self.usage_tokens.unwrap_or(0).max(sum(&listed)).max(sum(&running)) > most {
            self.oddities.insert(Oddity::ImpossibleUsage);
        }
        let listed = listed.filter(|listed| listed.iter().sum::<u64>() <= most);
        let running = running.filter(|running| running.iter().sum::<u64>() <= most);
        // A limit that ended an answer tells its length, if each event has a token.
        let by_limit = self.finish_reason.as_deref() == Some("length") && texts == most;
        let total = self.believed_usage().or(by_limit.then_some(most)).or(self.own_tokens);
        let end_token = u64::from(self.finish_reason.as_deref() != Some("length"));
        let are = |events: u64| total.is_some_and(|total| (events..=events + end_token).contains(&total));
        let of_part = |silent: u64| {
            self.chunks.iter().map(move |chunk| match chunk.part {
                Part::Text => 1,
                Part::Silent => silent,
                Part::End => 0,
            })
        };
        // The tokens of texts that grow to these ends.
        let grown = |count: &dyn Fn(usize) -> u64| {
            differences(&self.chunks.iter().map(|chunk| count(chunk.text_end)).collect::<Vec<_>>())
        };
        let (source, counts) = if let Some(listed) = listed {
            (TokenSource::Listed, listed)
        } else if let Some(running) = running {
            (TokenSource::RunningUsage, running)
        } else if are(texts) {
            (TokenSource::OnePerEvent, of_part(0).collect())
        } else if silent > 0 && are(texts + silent) {
            (TokenSource::OnePerEvent, of_part(1).collect())
        } else if let Some(tokens) = tokens {
            (TokenSource::Tokenizer, grown(&|end| tokens.count(&self.text[..end]) as u64))
        } else if let Some(total) = total {
            let (length, visible) = (self.text.len().max(1) as u128, total - end_token.min(total));
            (TokenSource::ByLength, grown(&|end| (u128::from(visible) * end as u128).div_ceil(length) as u64))
        } else {
            (TokenSource::Events, of_part(0).collect())
        };
        for (chunk, count) in self.chunks.iter_mut().zip(counts) {
            chunk.tokens = count;
        }
        self.chunks.retain(|chunk| chunk.part == Part::Text || chunk.tokens > 0);
        self.token_source = Some(source);
        if self.outcome == Outcome::Ok && self.usage_tokens.is_none() {
            self.oddities.insert(Oddity::NoUsage);
        }
        let placed: u64 = self.chunks.iter().map(|chunk| chunk.tokens).sum();
        // Without a usage, nobody knows whether silent events are tokens.
        let unseen = if self.believed_usage().is_some() || by_limit { 0 } else { silent };
        let unplaced = match source {
            TokenSource::Listed | TokenSource::RunningUsage => 0,
            // One token more than events with text is either an end token or that of a silent event.
            TokenSource::OnePerEvent => {
                let is_sure = total.is_some_and(|total| total == texts || total == texts + silent + end_token);
                unseen + u64::from(silent > 0 && end_token > 0 && !is_sure)
            }
            TokenSource::Tokenizer => {
                let off = |total: u64| total.abs_diff(placed).min(total.saturating_sub(end_token).abs_diff(placed));
                unseen + total.map_or(0, off)
            }
            TokenSource::ByLength => placed.abs_diff(texts),
            TokenSource::Events => u64::MAX,
        };
        if self.chunks.len() > 1 && unplaced.saturating_mul(UNPLACED) > placed - self.chunks[0].tokens {
            self.oddities.insert(Oddity::UnplacedTokens);
        }
        if self.chunks.iter().any(|chunk| chunk.tokens > 1) {
            self.oddities.insert(Oddity::SeveralTokensPerEvent);
        }
        if self.came_at_once(placed) {
            self.oddities.insert(Oddity::AllAtOnce);
        }
    }

    /// A number of each event; 0 for an event without it.
    fn values(&self, get: fn(&Chunk) -> Option<u64>) -> Vec<u64> {
        self.chunks.iter().map(|chunk| get(chunk).unwrap_or(0)).collect()
    }

    /// Returns whether nine in ten of the events followed another in a fraction of the time that a token took.
    fn came_at_once(&self, placed: u64) -> bool {
        let (Some(first), Some(last), Some(sent_ns)) = (self.chunks.first(), self.chunks.last(), self.sent_ns) else {
            return false;
        };
        let tokens = match self.token_source {
            // An event may be the whole answer.
            Some(TokenSource::Events) if self.chunks.len() == 1 => u64::from(self.max_new_tokens),
            _ => placed,
        };
        if tokens < 2 {
            return false;
        }
        let token_ns = last.at_ns.saturating_sub(sent_ns) / tokens;
        let short_ns = AT_ONCE_NS.min(token_ns / 10);
        let short = self.gaps().filter(|(gap_ns, _)| *gap_ns <= short_ns).count();
        first.tokens == tokens || short * 10 >= (self.chunks.len() - 1) * 9
    }

    /// The server's count, unless it is more than was asked for.
    fn believed_usage(&self) -> Option<u64> {
        self.usage_tokens.filter(|tokens| *tokens <= u64::from(self.max_new_tokens))
    }

    /// Tokens of the answer: the server's usage, else our own count, else the sum over the events.
    pub(crate) fn tokens(&self) -> u64 {
        let events = || self.chunks.iter().map(|chunk| chunk.tokens).sum();
        self.believed_usage().or(self.own_tokens).unwrap_or_else(events)
    }

    fn is(&self, oddity: Oddity) -> bool {
        self.oddities.contains(&oddity)
    }

    /// Returns whether the answer has a time that could not be told.
    pub(crate) fn lacks(&self, timed: Timed) -> bool {
        match timed {
            Timed::Ttft => self.is(Oddity::AllAtOnce),
            Timed::Tpot => self.is(Oddity::AllAtOnce) || self.is(Oddity::UnplacedTokens),
            Timed::E2e => false,
        }
    }

    /// Time to first token from the schedule, or from the first send.
    pub(crate) fn ttft_ns(&self, from_schedule: bool) -> Option<u64> {
        let first = self.chunks.first().filter(|_| !self.lacks(Timed::Ttft))?;
        Some(first.at_ns.saturating_sub(self.origin_ns(from_schedule)?))
    }

    /// Time to the end of the answer from the schedule, or from the first send.
    pub(crate) fn e2e_ns(&self, from_schedule: bool) -> Option<u64> {
        Some(self.ended_ns.saturating_sub(self.origin_ns(from_schedule)?))
    }

    /// Time per output token: the time between the first and the last event over the tokens that came after the first
    /// event. `None` if none did, or if it is unknown.
    pub(crate) fn tpot_ns(&self) -> Option<u64> {
        let (first, last) = (self.chunks.first()?, self.chunks.last()?);
        let later: u64 = self.chunks[1..].iter().map(|chunk| chunk.tokens).sum();
        (later > 0 && !self.lacks(Timed::Tpot)).then(|| (last.at_ns - first.at_ns) / later)
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
            "ttft_ms": self.ttft_ns(true).map(ms),
            "tpot_ms": self.tpot_ns().map(ms),
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
            max_new_tokens: 100,
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
            let (part, text_end) = (Part::Text, exchange.text.len());
            exchange.chunks.push(Chunk { part, at_ns, text_end, listed: None, usage: None, tokens: 0 });
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
                if exchange.token_source == Some(TokenSource::ByLength) {
                    // The lengths of texts are no proof.
                    assert_eq!(exchange.tpot_ns(), None);
                    return TokenSource::ByLength;
                }
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
            let finish_reason = Some("length".to_owned());
            let with_usage = Exchange { usage_tokens: Some(60), finish_reason, ..plain() };
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
    fn an_answer_of_as_many_events_as_its_limit_has_one_token_in_each() {
        for (finish_reason, limit, source, tpot_ns) in [
            ("length", 4, TokenSource::OnePerEvent, Some(1_000_000)),
            ("length", 5, TokenSource::Events, None),
            ("stop", 4, TokenSource::Events, None),
        ] {
            let finish_reason = Some(finish_reason.to_owned());
            let mut exchange = Exchange { finish_reason, max_new_tokens: limit, ..answer(4, 1, 1_000_000) };
            exchange.count_tokens(None);
            assert_eq!((exchange.token_source, exchange.tpot_ns()), (Some(source), tpot_ns), "limit {limit}");
        }
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
