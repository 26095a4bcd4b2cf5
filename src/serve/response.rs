//! Answers in OpenAI's JSON, whole or as server-sent events. The types are also their description.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    error::{ApiError, Error},
    exchange::{self, Exchange, Token, Usage},
    queue::Finish,
    request::{Endpoint, StreamUsage},
    text::Codec,
};

/// The type of a stream.
pub const EVENTS: &str = "text/event-stream";

/// The part of an answer that all its chunks repeat.
#[derive(Clone, Debug)]
pub struct Head {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
}

/// An answer, or a part of one.
#[derive(Serialize, JsonSchema)]
pub struct Answer<C> {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    model: String,
    choices: Vec<C>,
    /// Numbers of tokens. Parts of a stream have them if `stream_options` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// The schema of an event of a stream, as OpenAPI 3.2 models events: a part of an answer, an error, or the end.
pub fn event<C: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    let [part, error] = [schemas.subschema_for::<Answer<C>>(), schemas.subschema_for::<Error>()];
    json_schema!({
        "type": "object",
        "required": ["data"],
        "properties": {"data": {
            "type": "string",
            "if": {"const": "[DONE]"},
            "else": {"contentMediaType": "application/json", "contentSchema": {"anyOf": [part, error]}},
        }},
    })
}

/// A choice of a completion, or a part of one.
#[derive(Serialize, JsonSchema)]
pub struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<Finish>,
}

/// A choice of a chat.
#[derive(Serialize, JsonSchema)]
pub struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<Finish>,
}

/// A part of a choice of a chat.
#[derive(Serialize, JsonSchema)]
pub struct ChatPart {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<Finish>,
}

/// The message of an assistant.
#[derive(Serialize, JsonSchema)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// The text that a part adds to a message.
#[derive(Default, Serialize, JsonSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Log-probabilities of tokens, as lists of equal lengths.
#[derive(Serialize, JsonSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    /// The first token of a prompt has none.
    token_logprobs: Vec<Option<f32>>,
    /// By the text of each alternative.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the text before each token.
    text_offset: Vec<usize>,
}

/// Log-probabilities of tokens.
#[derive(Serialize, JsonSchema)]
struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<Vec<ChatToken>>,
}

/// A token with the likeliest ones at its place.
#[derive(Serialize, JsonSchema)]
struct ChatToken {
    #[serde(flatten)]
    token: Alternative,
    top_logprobs: Vec<Alternative>,
}

/// A token that could stand at a place.
#[derive(Serialize, JsonSchema)]
struct Alternative {
    token: String,
    logprob: Option<f32>,
    bytes: Vec<u8>,
}

/// A whole choice.
#[derive(Default)]
struct Whole {
    text: String,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl Head {
    fn answer(&self, object: &'static str, choices: Vec<Value>, usage: Option<Option<Usage>>) -> Value {
        let Self { id, created, model, .. } = self.clone();
        json!(Answer { id, object, created, model, choices, usage })
    }

    fn chunk(&self, choices: Vec<Value>, usage: Option<Option<Usage>>) -> Value {
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        };
        self.answer(object, choices, usage)
    }

    /// The choice that a part of the answer adds to.
    fn part(&self, codec: &Codec, part: exchange::Delta) -> Value {
        let exchange::Delta { choice: index, text, tokens, offset, finish: finish_reason } = part;
        match self.endpoint {
            Endpoint::Completions => {
                let logprobs = completion_logprobs(codec, &tokens, offset);
                json!(CompletionChoice { index, text, logprobs, finish_reason })
            }
            Endpoint::Chat => {
                let delta = Delta { content: Some(text).filter(|text| !text.is_empty()), ..Delta::default() };
                json!(ChatPart { index, delta, logprobs: chat_logprobs(codec, &tokens), finish_reason })
            }
        }
    }
}

/// The name of a token at the place of `token`, which has the text that it has in the answer.
fn name(codec: &Codec, id: u32, token: &Token) -> String {
    match id == token.id && !token.text.is_empty() {
        true => token.text.clone(),
        false => codec.token_name(id),
    }
}

fn completion_logprobs(codec: &Codec, tokens: &[Token], mut offset: usize) -> Option<CompletionLogprobs> {
    let mut text_offset = Vec::with_capacity(tokens.len());
    for token in tokens {
        text_offset.push(offset);
        offset += token.text.chars().count();
    }
    let top = |token: &Token| {
        let logprobs = token.logprobs.as_ref()?;
        let mut top = Map::new();
        for (id, logprob) in &logprobs.top {
            let name = name(codec, *id, token);
            // Several tokens may have the same text.
            let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
            top.insert(name, json!(logprob));
        }
        if !top.is_empty() && logprobs.top.iter().all(|(id, _)| *id != token.id) {
            top.insert(name(codec, token.id, token), json!(logprobs.chosen));
        }
        Some(top)
    };
    let chosen = |token: &Token| token.logprobs.as_ref().map(|logprobs| logprobs.chosen);
    (!tokens.is_empty()).then(|| CompletionLogprobs {
        tokens: tokens.iter().map(|token| token.text.clone()).collect(),
        token_logprobs: tokens.iter().map(chosen).collect(),
        top_logprobs: tokens.iter().map(top).collect(),
        text_offset,
    })
}

fn chat_logprobs(codec: &Codec, tokens: &[Token]) -> Option<ChatLogprobs> {
    let one = |token: &Token| {
        let own = codec.token_bytes(token.id);
        // A decoder may leave out a space. The bytes of a part of a character are its own.
        let bytes = if std::str::from_utf8(&own).is_ok() { token.text.clone().into_bytes() } else { own };
        let logprobs = token.logprobs.as_ref();
        let top = logprobs.into_iter().flat_map(|logprobs| &logprobs.top).map(|(id, logprob)| Alternative {
            token: name(codec, *id, token),
            logprob: Some(*logprob),
            bytes: if *id == token.id { bytes.clone() } else { codec.token_bytes(*id) },
        });
        let top_logprobs = top.collect();
        let logprob = logprobs.map(|logprobs| logprobs.chosen);
        ChatToken { token: Alternative { token: token.text.clone(), logprob, bytes }, top_logprobs }
    };
    let content = tokens.iter().map(one).collect();
    (!tokens.is_empty()).then_some(ChatLogprobs { content, refusal: None })
}

/// Waits for the whole answer.
pub async fn whole(head: &Head, mut exchange: Exchange) -> Result<Value, ApiError> {
    let mut choices: Vec<Whole> = Vec::new();
    choices.resize_with(exchange.choices(), Whole::default);
    while let Some(part) = exchange.next().await {
        let part = part?;
        let choice = &mut choices[part.choice];
        choice.text += &part.text;
        choice.tokens.extend(part.tokens);
        choice.finish = part.finish;
    }
    let codec = exchange.codec();
    let choice = |(index, whole): (usize, Whole)| {
        let Whole { text, tokens, finish: finish_reason } = whole;
        match head.endpoint {
            Endpoint::Completions => {
                let logprobs = completion_logprobs(codec, &tokens, 0);
                json!(CompletionChoice { index, text, logprobs, finish_reason })
            }
            Endpoint::Chat => {
                let message = Message { role: "assistant", content: text, refusal: None };
                json!(ChatChoice { index, message, logprobs: chat_logprobs(codec, &tokens), finish_reason })
            }
        }
    };
    let object = match head.endpoint {
        Endpoint::Completions => "text_completion",
        Endpoint::Chat => "chat.completion",
    };
    let choices = choices.into_iter().enumerate().map(choice).collect();
    Ok(head.answer(object, choices, Some(Some(exchange.usage()))))
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
                let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
                stream.chunk(vec![json!(ChatPart { index, delta, logprobs: None, finish_reason: None })]);
            }
        }
        stream.add(first.map(Ok));
        Ok(stream)
    }

    fn event(&mut self, data: &Value) {
        self.ready.push_back(format!("data: {data}\n\n").into());
    }

    fn chunk(&mut self, choices: Vec<Value>) {
        let usage = match self.usage {
            StreamUsage::Never => None,
            StreamUsage::AtTheEnd => Some(None),
            StreamUsage::Always => Some(Some(self.exchange.usage())),
        };
        let chunk = self.head.chunk(choices, usage);
        self.event(&chunk);
    }

    /// Adds the next part of the answer, or its end.
    fn add(&mut self, next: Option<Result<exchange::Delta, ApiError>>) {
        match next {
            Some(Ok(part)) => {
                let part = self.head.part(self.exchange.codec(), part);
                self.chunk(vec![part]);
            }
            // The status has been sent, so the error is an event.
            Some(Err(error)) => {
                self.event(&error.json());
                self.is_ended = true;
            }
            None => {
                if self.usage != StreamUsage::Never {
                    let last = self.head.chunk(Vec::new(), Some(Some(self.exchange.usage())));
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
