//! The fields of requests. The server checks a field by its row, and describes it by the same row, so a field without a row has
//! no effect.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    request::{Endpoint, shown},
};

/// Sequences of one request: prompts times choices.
pub const MAX_CHOICES: usize = 32;
/// Stop strings of a request.
pub const MAX_STOPS: usize = 4;
/// Characters of a stop string.
pub const MAX_STOP_CHARS: usize = 256;
/// Largest number of tokens in a field.
const MAX_COUNT: i64 = u32::MAX as i64;
/// Roles of messages.
pub const ROLES: [&str; 4] = ["assistant", "developer", "system", "user"];
/// Fields of messages that this server does not support.
pub const OF_TOOLS: [&str; 3] = ["audio", "function_call", "tool_calls"];

/// A field, and the values that it may have.
pub struct Field {
    pub name: &'static str,
    /// The endpoint that knows it; both if it is `None`.
    endpoint: Option<Endpoint>,
    pub is_required: bool,
    kind: Kind,
    about: &'static str,
}

enum Kind {
    Flag,
    Text,
    Integer(RangeInclusive<i64>),
    Number(RangeInclusive<f64>),
    /// The function that reads it checks it. This is its schema.
    Other(fn() -> Value),
}

use Endpoint::{Chat, Completions};
use Kind::{Flag, Integer, Number, Other, Text};

const fn both(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, endpoint: None, is_required: false, kind, about }
}

const fn only(endpoint: Endpoint, name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { endpoint: Some(endpoint), ..both(name, kind, about) }
}

const fn required(field: Field) -> Field {
    Field { is_required: true, ..field }
}

/// The fields that have an effect.
pub static FIELDS: &[Field] = &[
    only(Completions, "echo", Flag, "Begins the text with the prompt."),
    both("ignore_eos", Flag, "Goes on after the token that ends a sequence."),
    only(Completions, "logprobs", Integer(0..=5), "Log-probabilities of the tokens, with so many alternatives."),
    only(Chat, "logprobs", Flag, "Log-probabilities of the tokens."),
    only(Chat, "top_logprobs", Integer(0..=20), "Alternatives of each token. It needs `logprobs`."),
    only(
        Chat,
        "max_completion_tokens",
        Integer(1..=MAX_COUNT),
        "New tokens. Model and server have limits of their own.",
    ),
    only(Chat, "max_tokens", Integer(1..=MAX_COUNT), "The older name of `max_completion_tokens`."),
    only(Completions, "max_tokens", Integer(0..=MAX_COUNT), "New tokens, 16 if it is not given."),
    required(only(Chat, "messages", Other(messages), "The conversation.")),
    both("min_p", Number(0.0..=1.0), "Share of the largest probability that a token must have."),
    both("min_tokens", Integer(0..=MAX_COUNT), "New tokens before the answer may end. At most `max_tokens`."),
    required(both("model", Text, "The name of the model.")),
    both("n", Integer(1..=MAX_CHOICES as i64), "Choices of each prompt. Prompts times choices are at most 32."),
    required(only(Completions, "prompt", Other(prompt), "Texts or token ids. `null` is the start of a document.")),
    both("repetition_penalty", Number(0.01..=100.0), "Divides the logits of tokens that occurred."),
    both("seed", Integer(i64::MIN..=i64::MAX), "Repeats an answer. Choice i draws from the seed plus i."),
    both("stop", Other(stop), "Strings that end the answer. They are not in it."),
    both("stream", Flag, "Sends the answer in parts, as server-sent events."),
    both("stream_options", Other(stream_options), "Options of a stream. It needs `stream`."),
    both("temperature", Number(0.0..=2.0), "1 if it is not given. The answer is greedy below 0.00001."),
    both("top_k", Integer(-1..=i32::MAX as i64), "The likeliest tokens that are drawn from; all with -1 and 0."),
    both("top_p", Number(0.0..=1.0), "The share of probability that is drawn from."),
];

/// The fields of `stream_options`.
pub static STREAM_OPTIONS: &[Field] = &[
    both("include_usage", Flag, "A last chunk has the numbers of tokens."),
    both("continuous_usage_stats", Flag, "Each chunk has the numbers of tokens so far. It needs `include_usage`."),
    both("include_obfuscation", Flag, "Padding against observers of an encrypted connection. It has no effect."),
];

/// Fields that change nothing that this server does.
pub const IGNORED: [&str; 10] = [
    "metadata",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// Fields of OpenAI's interface and of other servers that would change the answer and that this server does not support. A value
/// that asks for nothing is accepted: `null`, `false`, 0, and what is empty, or the values beside the name.
pub const UNSUPPORTED: [(&str, &str); 47] = [
    ("add_generation_prompt", "[true]"),
    ("add_special_tokens", "[true]"),
    ("allowed_token_ids", "[]"),
    ("audio", "[]"),
    ("bad_words", "[]"),
    ("best_of", "[1]"),
    ("chat_template", "[]"),
    ("chat_template_kwargs", "[]"),
    ("continue_final_message", "[]"),
    ("detokenize", "[true]"),
    ("documents", "[]"),
    ("early_stopping", "[]"),
    ("echo", "[]"),
    ("frequency_penalty", "[]"),
    ("function_call", "[\"auto\", \"none\"]"),
    ("functions", "[]"),
    ("grammar", "[]"),
    ("guided_choice", "[]"),
    ("guided_grammar", "[]"),
    ("guided_json", "[]"),
    ("guided_regex", "[]"),
    ("include_stop_str_in_output", "[]"),
    ("length_penalty", "[1]"),
    ("logit_bias", "[]"),
    ("logits_processors", "[]"),
    ("modalities", "[[\"text\"]]"),
    ("moderation", "[]"),
    ("prediction", "[]"),
    ("presence_penalty", "[]"),
    ("prompt_logprobs", "[]"),
    ("reasoning_effort", "[]"),
    ("response_format", "[{\"type\": \"text\"}]"),
    ("return_token_ids", "[]"),
    ("skip_special_tokens", "[true]"),
    ("spaces_between_special_tokens", "[true]"),
    ("stop_token_ids", "[]"),
    ("structural_tag", "[]"),
    ("structured_outputs", "[]"),
    ("suffix", "[]"),
    ("thinking", "[]"),
    ("tool_choice", "[\"auto\", \"none\"]"),
    ("tools", "[]"),
    ("truncate_prompt_tokens", "[-1]"),
    ("typical_p", "[1]"),
    ("use_beam_search", "[]"),
    ("verbosity", "[]"),
    ("web_search_options", "[]"),
];

impl Field {
    /// Returns whether an endpoint knows the field.
    pub fn is_of(&self, endpoint: Endpoint) -> bool {
        self.endpoint.is_none_or(|own| own == endpoint)
    }

    /// Checks a value that is not `null`.
    pub fn check(&self, value: &Value) -> Result<(), ApiError> {
        let (is_good, expected) = match &self.kind {
            Flag => (value.is_boolean(), "true or false".into()),
            Text => (value.is_string(), "a string".into()),
            Integer(range) => (
                value.as_i64().is_some_and(|number| range.contains(&number)),
                format!("a whole number from {} to {}", range.start(), range.end()),
            ),
            Number(range) => (
                value.as_f64().is_some_and(|number| range.contains(&number)),
                format!("a number from {} to {}", range.start(), range.end()),
            ),
            Other(_) => return Ok(()),
        };
        match is_good {
            true => Ok(()),
            false => Err(ApiError::field(self.name, format!("expected {expected}, not {}", shown(value)))),
        }
    }

    fn schema(&self) -> Value {
        let mut schema = match &self.kind {
            Flag => json!({"type": "boolean"}),
            Text => json!({"type": "string"}),
            Integer(range) => json!({"type": "integer", "minimum": range.start(), "maximum": range.end()}),
            Number(range) => json!({"type": "number", "minimum": range.start(), "maximum": range.end()}),
            Other(schema) => schema(),
        };
        if !self.is_required && schema["type"].is_string() {
            schema["type"] = json!([schema["type"], "null"]);
        }
        schema["description"] = self.about.into();
        schema
    }
}

/// The schema of an object with these fields.
fn object<'a>(fields: impl Iterator<Item = &'a Field> + Clone) -> Value {
    let required: Vec<_> = fields.clone().filter(|field| field.is_required).map(|field| field.name).collect();
    let properties: Map<_, _> = fields.map(|field| (field.name.to_owned(), field.schema())).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

/// The schema of a request.
pub fn schema(endpoint: Endpoint) -> Value {
    let mut schema = object(FIELDS.iter().filter(|field| field.is_of(endpoint)));
    let mut add = |name: &str, of_name: Value| {
        if schema["properties"][name].is_null() {
            schema["properties"][name] = of_name;
        }
    };
    for name in IGNORED {
        add(name, json!({"description": "It has no effect."}));
    }
    for (name, neutral) in UNSUPPORTED {
        add(name, json!({"enum": nothing(neutral), "description": "This server does not support it."}));
    }
    for field in FIELDS {
        add(field.name, json!({"type": "null", "description": "It is a field of the other endpoint."}));
    }
    schema
}

/// The values of an unsupported field that are the same as leaving it out.
pub fn nothing(neutral: &str) -> Vec<Value> {
    let stated: Vec<Value> = serde_json::from_str(neutral).unwrap_or_default();
    // Where `true` or 1 is the default, `false` and 0 ask for something.
    let usual = if stated.is_empty() { vec![json!(false), json!(0)] } else { Vec::new() };
    [vec![Value::Null, json!(""), json!([]), json!({})], usual, stated].concat()
}

fn prompt() -> Value {
    let text = json!({"type": "string"});
    let ids = json!({"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX}});
    let several = json!({"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": {"anyOf": [text, ids]}});
    json!({"anyOf": [text, ids, several, {"type": "null"}]})
}

fn messages() -> Value {
    let part = json!({
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    });
    let mut message = json!({
        "type": "object",
        "properties": {
            "role": {"enum": ROLES},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]},
        },
        "required": ["role", "content"],
    });
    for name in OF_TOOLS {
        message["properties"][name] = json!({"type": "null", "description": "This server does not support it."});
    }
    json!({"type": "array", "minItems": 1, "items": message})
}

fn stop() -> Value {
    let one = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS});
    json!({"anyOf": [one, {"type": "array", "maxItems": MAX_STOPS, "items": one}, {"type": "null"}]})
}

fn stream_options() -> Value {
    let mut schema = object(STREAM_OPTIONS.iter());
    schema["additionalProperties"] = false.into();
    schema
}
