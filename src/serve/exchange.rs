//! The answer to one request: events of the engine as text, with stop strings and a deadline.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use hyper::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{sync::mpsc, time::Sleep};

use super::{
    error::ApiError,
    http::Shared,
    queue::{Event, Finish, Logprobs},
    text::{Codec, Decoding, Stops},
};

/// A part of a choice: the text of some tokens.
#[derive(Debug)]
pub struct Delta {
    pub choice: usize,
    pub text: String,
    /// The tokens of the text, if log-probabilities are wanted.
    pub tokens: Vec<Token>,
    /// Number of characters in the tokens of the choice before these.
    pub offset: usize,
    pub finish: Option<Finish>,
}

/// A token with its text. The texts of all tokens join to that of the choice, unless a stop string cuts it. A token that is
/// part of a character has no text, but the last one.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    pub text: String,
    /// `None` for the first token of a prompt.
    pub logprobs: Option<Logprobs>,
}

/// A prompt that begins the text of its choice.
#[derive(Clone, Debug)]
pub struct Echo {
    pub prompt: Arc<[u32]>,
    /// The prompt as it was given, if it was a text.
    pub text: Option<String>,
    /// The engine reports its tokens.
    pub is_scored: bool,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
}

/// Tokens of prompts of a kind.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct PromptDetails {
    /// Tokens that were not computed again.
    pub cached_tokens: usize,
}

/// A request in the engine. Dropping it cancels its sequences.
pub struct Exchange {
    shared: Arc<Shared>,
    events: mpsc::Receiver<(usize, Event)>,
    choices: Vec<Choice>,
    /// Number of choices that have not ended.
    open: usize,
    received: Instant,
    deadline: Pin<Box<Sleep>>,
    usage: Usage,
}

/// One sequence of the answer.
pub struct Choice {
    decoding: Decoding,
    stops: Stops,
    is_finished: bool,
    cancelled: Arc<AtomicBool>,
    /// False for further choices of a prompt, whose tokens count once.
    counts_prompt: bool,
    /// Tokens whose text is held back.
    tokens: Vec<Token>,
    /// Number of characters in the tokens that were given.
    offset: usize,
    echo: Option<Echo>,
    /// Text of the prompt that was not given.
    echoed: String,
    /// New tokens before which stop strings have no effect.
    min_new_tokens: usize,
    new_tokens: usize,
}

impl Choice {
    pub fn new(
        stop: Vec<String>,
        min_new_tokens: usize,
        echo: Option<Echo>,
        cancelled: Arc<AtomicBool>,
        counts_prompt: bool,
    ) -> Self {
        Self {
            echo,
            echoed: String::new(),
            min_new_tokens,
            new_tokens: 0,
            decoding: Decoding::default(),
            stops: Stops::new(stop),
            is_finished: false,
            cancelled,
            counts_prompt,
            tokens: Vec::new(),
            offset: 0,
        }
    }
}

impl Exchange {
    pub fn new(
        shared: Arc<Shared>,
        events: mpsc::Receiver<(usize, Event)>,
        choices: Vec<Choice>,
        prompt_tokens: usize,
        received: Instant,
        deadline: Instant,
    ) -> Self {
        let open = choices.len();
        let deadline = Box::pin(tokio::time::sleep_until(deadline.into()));
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        Self { shared, events, choices, open, received, deadline, usage }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Converts the text of the answer.
    pub fn codec(&self) -> &Codec {
        self.shared.codec()
    }

    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next part of the answer; `None` at its end.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next). An error is the end, too.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta, ApiError>>> {
        loop {
            if self.open == 0 {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                let late = self.shared.late();
                return self.fail(late);
            }
            match ready!(self.events.poll_recv(cx)) {
                Some((choice, event)) => match self.take(choice, event) {
                    Ok(Some(delta)) => return Poll::Ready(Some(Ok(delta))),
                    Ok(None) => {}
                    Err(error) => return self.fail(error),
                },
                None => {
                    let problem = "the engine has failed and the server is ending";
                    return self.fail(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, problem));
                }
            }
        }
    }

    fn fail(&mut self, error: ApiError) -> Poll<Option<Result<Delta, ApiError>>> {
        self.open = 0;
        self.events.close();
        Poll::Ready(Some(Err(error)))
    }

    fn take(&mut self, index: usize, event: Event) -> Result<Option<Delta>, ApiError> {
        let codec = self.shared.codec();
        let Some(choice) = self.choices.get_mut(index).filter(|choice| !choice.is_finished) else { return Ok(None) };
        let (id, logprobs, finish) = match event {
            Event::Started { cached_tokens } => {
                self.usage.prompt_tokens_details.cached_tokens += if choice.counts_prompt { cached_tokens } else { 0 };
                if let Some(echo) = choice.echo.as_ref().filter(|echo| !echo.is_scored) {
                    let decoding = &mut choice.decoding;
                    let text: String = echo.prompt.iter().map(|id| decoding.push(codec, *id)).collect();
                    choice.echoed = echo.text.clone().unwrap_or(text);
                }
                return Ok(None);
            }
            Event::Prompt { id, logprobs } => {
                let text = choice.decoding.push(codec, id);
                choice.echoed += &text;
                choice.tokens.push(Token { id, text, logprobs });
                return Ok(None);
            }
            Event::Ended => (None, None, Some(Finish::Length)),
            Event::Failed(reason) => return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason)),
            Event::Token { id, logprobs, finish } => (Some(id), logprobs, finish),
        };
        let metrics = self.shared.metrics();
        if self.usage.completion_tokens == 0 {
            metrics.time_to_first_token.add(self.received.elapsed());
        }
        self.usage.completion_tokens += usize::from(id.is_some());
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
        choice.new_tokens += usize::from(id.is_some());
        // The token that ends a sequence has no text.
        let (mut text, mut stopped) = match (id, finish) {
            (None, _) | (_, Some(Finish::Stop)) => (String::new(), false),
            (Some(id), _) => {
                let text = choice.decoding.push(codec, id);
                choice.tokens.extend(logprobs.map(|logprobs| {
                    let (text, logprobs) = (text.clone(), Some(logprobs));
                    Token { id, text, logprobs }
                }));
                if choice.new_tokens <= choice.min_new_tokens {
                    (choice.stops.finish() + &text, false)
                } else {
                    choice.stops.push(&text)
                }
            }
        };
        if finish.is_some() && !stopped {
            let rest = choice.decoding.finish(codec);
            choice.tokens.last_mut().into_iter().for_each(|token| token.text += &rest);
            let (rest, stopped_at_end) = choice.stops.push(&rest);
            text += &rest;
            stopped = stopped_at_end;
            text += &choice.stops.finish();
        }
        let finish = if stopped { Some(Finish::Stop) } else { finish };
        if finish.is_some() {
            choice.is_finished = true;
            choice.cancelled.store(true, Ordering::Relaxed);
            self.open -= 1;
            if self.open == 0 {
                metrics.request.add(self.received.elapsed());
            }
        } else if text.is_empty() {
            return Ok(None);
        }
        if choice.tokens.iter().any(|token| token.logprobs.is_none()) {
            // The text of a prompt that was given is that of its tokens, with what the decoder leaves out.
            let given = choice.echo.as_ref().and_then(|echo| echo.text.clone());
            choice.echoed = given.unwrap_or_else(|| std::mem::take(&mut choice.echoed));
        }
        let text = std::mem::take(&mut choice.echoed) + &text;
        let (tokens, offset) = (std::mem::take(&mut choice.tokens), choice.offset);
        choice.offset += tokens.iter().map(|token| token.text.chars().count()).sum::<usize>();
        Ok(Some(Delta { choice: index, text, tokens, offset, finish }))
    }
}
