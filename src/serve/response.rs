//! Answers in OpenAI's JSON, whole or as server-sent events.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    exchange::{Delta, Exchange, Token, Usage},
    queue::Finish,
    request::{Endpoint, StreamUsage},
    text::Codec,
};

/// The part of an answer that all its chunks repeat.
#[derive(Clone, Debug)]
pub struct Head {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
}

/// A whole choice.
#[derive(Default)]
struct Answer {
    text: String,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl Head {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        };
        self.object(object, choices)
    }

    /// The choice that a part of the answer adds to.
    fn part(&self, codec: &Codec, delta: &Delta) -> Value {
        let logprobs = self.logprobs(codec, &delta.tokens, delta.offset);
        let (index, finish) = (delta.choice, finish(delta.finish));
        match self.endpoint {
            Endpoint::Completions => {
                json!({"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": finish})
            }
            Endpoint::Chat => {
                let content = if delta.text.is_empty() { json!({}) } else { json!({"content": delta.text}) };
                json!({"index": index, "delta": content, "logprobs": logprobs, "finish_reason": finish})
            }
        }
    }

    fn logprobs(&self, codec: &Codec, tokens: &[Token], mut offset: usize) -> Value {
        if tokens.is_empty() {
            return Value::Null;
        }
        // The sampled token has the text that it has in the answer.
        let name = |id: u32, token: &Token| match id == token.id && !token.text.is_empty() {
            true => token.text.clone(),
            false => codec.token_name(id),
        };
        match self.endpoint {
            Endpoint::Completions => {
                let mut offsets = Vec::with_capacity(tokens.len());
                for token in tokens {
                    offsets.push(offset);
                    offset += token.text.chars().count();
                }
                let top = |token: &Token| {
                    let logprobs = token.logprobs.as_ref()?;
                    let mut top = Map::new();
                    for (id, logprob) in &logprobs.top {
                        let name = name(*id, token);
                        // Several tokens may have the same text.
                        let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
                        top.insert(name, json!(logprob));
                    }
                    if !top.is_empty() && logprobs.top.iter().all(|(id, _)| *id != token.id) {
                        top.insert(name(token.id, token), json!(logprobs.chosen));
                    }
                    Some(top)
                };
                let chosen = |token: &Token| token.logprobs.as_ref().map(|logprobs| logprobs.chosen);
                json!({
                    "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(chosen).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
            Endpoint::Chat => {
                let one = |token: &Token| {
                    let own = codec.token_bytes(token.id);
                    // A decoder may leave out a space. The bytes of a part of a character are its own.
                    let bytes = if std::str::from_utf8(&own).is_ok() { token.text.clone().into_bytes() } else { own };
                    let logprobs = token.logprobs.as_ref();
                    let top = logprobs.into_iter().flat_map(|logprobs| &logprobs.top).map(|(id, logprob)| {
                        let bytes = if *id == token.id { bytes.clone() } else { codec.token_bytes(*id) };
                        json!({"token": name(*id, token), "logprob": logprob, "bytes": bytes})
                    });
                    json!({
                        "token": token.text,
                        "logprob": logprobs.map(|logprobs| logprobs.chosen),
                        "bytes": bytes,
                        "top_logprobs": top.collect::<Vec<_>>(),
                    })
                };
                json!({"content": tokens.iter().map(one).collect::<Vec<_>>(), "refusal": null})
            }
        }
    }
}

fn finish(finish: Option<Finish>) -> Value {
    match finish {
        None => Value::Null,
        Some(Finish::Stop) => "stop".into(),
        Some(Finish::Length) => "length".into(),
    }
}

fn usage(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    })
}

/// Waits for the whole answer.
pub async fn whole(head: &Head, mut exchange: Exchange) -> Result<Value, ApiError> {
    let mut answers: Vec<Answer> = Vec::new();
    answers.resize_with(exchange.choices(), Answer::default);
    while let Some(delta) = exchange.next().await {
        let delta = delta?;
        let answer = &mut answers[delta.choice];
        answer.text += &delta.text;
        answer.tokens.extend(delta.tokens);
        answer.finish = delta.finish;
    }
    let codec = exchange.codec();
    let choice = |(index, answer): (usize, Answer)| {
        let (logprobs, finish) = (head.logprobs(codec, &answer.tokens, 0), finish(answer.finish));
        match head.endpoint {
            Endpoint::Completions => {
                json!({"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish})
            }
            Endpoint::Chat => {
                let message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
            }
        }
    };
    let object = match head.endpoint {
        Endpoint::Completions => "text_completion",
        Endpoint::Chat => "chat.completion",
    };
    let mut whole = head.object(object, answers.into_iter().enumerate().map(choice).collect());
    whole["usage"] = usage(exchange.usage());
    Ok(whole)
}

/// The body of a stream. Dropping it, as the connection does when the client leaves, cancels the request.
pub struct Stream {
    exchange: Exchange,
    head: Head,
    usage: StreamUsage,
    ready: VecDeque<Bytes>,
    is_ended: bool,
}

impl Stream {
    /// Waits for the first part of the answer, so that an error before it is an answer with its own status.
    pub async fn start(head: Head, mut exchange: Exchange, usage: StreamUsage) -> Result<Self, ApiError> {
        let first = exchange.next().await.transpose()?;
        let choices = exchange.choices();
        let mut stream = Self { exchange, head, usage, ready: VecDeque::new(), is_ended: false };
        if stream.head.endpoint == Endpoint::Chat {
            for index in 0..choices {
                let role = json!({"role": "assistant", "content": ""});
                let role = json!({"index": index, "delta": role, "logprobs": null, "finish_reason": null});
                stream.chunk(vec![role]);
            }
        }
        stream.add(first.map(Ok));
        Ok(stream)
    }

    fn event(&mut self, data: &Value) {
        self.ready.push_back(format!("data: {data}\n\n").into());
    }

    fn chunk(&mut self, choices: Vec<Value>) {
        let mut chunk = self.head.chunk(choices);
        match self.usage {
            StreamUsage::Never => {}
            StreamUsage::AtTheEnd => chunk["usage"] = Value::Null,
            StreamUsage::Always => chunk["usage"] = usage(self.exchange.usage()),
        }
        self.event(&chunk);
    }

    /// Adds the next part of the answer, or its end.
    fn add(&mut self, next: Option<Result<Delta, ApiError>>) {
        match next {
            Some(Ok(delta)) => {
                let part = self.head.part(self.exchange.codec(), &delta);
                self.chunk(vec![part]);
            }
            // The status has been sent, so the error is an event.
            Some(Err(error)) => {
                self.event(&error.json());
                self.is_ended = true;
            }
            None => {
                if self.usage != StreamUsage::Never {
                    let mut last = self.head.chunk(Vec::new());
                    last["usage"] = usage(self.exchange.usage());
                    self.event(&last);
                }
                self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                self.is_ended = true;
            }
        }
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let stream = self.get_mut();
        loop {
            if let Some(bytes) = stream.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if stream.is_ended {
                return Poll::Ready(None);
            }
            let next = ready!(stream.exchange.poll_next(cx));
            stream.add(next);
        }
    }
}
