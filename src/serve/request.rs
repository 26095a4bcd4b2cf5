//! The body of a request: its fields, checked one by one, so that an error names the field and what it may be.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    fields::{
        self, FIELDS, Field, IGNORED, MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS, OF_TOOLS, ROLES, STREAM_OPTIONS,
        UNSUPPORTED,
    },
    template::Message,
};
use crate::{error::nearest, scenario::Sampling, text};

/// Temperatures below this are greedy, as at other servers. Logits divided by less would leave the range of f32.
const GREEDY_BELOW: f64 = 1e-5;
/// The smallest share of `top_p`, which keeps the likeliest token.
const LEAST_TOP_P: f32 = 1e-6;
/// Most names of fields without effect that an answer states.
const MAX_NAMED: usize = 16;

/// When the chunks of a stream have the numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamUsage {
    #[default]
    Never,
    AtTheEnd,
    /// Each chunk has the numbers so far.
    Always,
}

/// The two ways to ask for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// A checked request.
#[derive(Debug)]
pub struct Generation {
    pub input: Input,
    pub max_new_tokens: Option<usize>,
    /// Choices of each prompt.
    pub choices: usize,
    pub sampling: Sampling,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    /// Number of alternatives of each token, if log-probabilities are wanted.
    pub logprobs: Option<usize>,
    pub stream: bool,
    pub usage: StreamUsage,
    pub ignore_eos: bool,
    /// The text begins with the prompt.
    pub echo: bool,
    /// New tokens before the answer may end by a token or a stop string.
    pub min_new_tokens: usize,
    /// Share of the largest probability that a token must have.
    pub min_p: f32,
    /// Fields that have no effect because this server does not know them.
    pub unknown: Vec<String>,
}

#[derive(Debug)]
pub enum Input {
    Prompts(Vec<Prompt>),
    Messages(Vec<Message>),
}

#[derive(Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Generation {
    /// Checks a body for a model of this name.
    pub fn parse(endpoint: Endpoint, body: &[u8], model: &str) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|_| ApiError::bad("the body is not UTF-8"))?;
        let body: Value =
            serde_json::from_str(text).map_err(|error| ApiError::bad(format!("the body is not JSON: {error}")))?;
        let Value::Object(fields) = body else { return Err(ApiError::bad("the body is not a JSON object")) };
        let mut fields = Fields { endpoint, rows: FIELDS, given: fields };
        let named = fields.text("model")?.unwrap_or_default();
        if named != model {
            let error = ApiError::new(
                hyper::StatusCode::NOT_FOUND,
                format!("model: '{named}' is not served here; the model is '{model}'"),
            );
            return Err(error.with_code("model_not_found"));
        }
        let input = match endpoint {
            Endpoint::Completions => Input::Prompts(fields.prompts()?),
            Endpoint::Chat => Input::Messages(fields.messages(text)?),
        };
        let max_new_tokens = match endpoint {
            Endpoint::Completions => fields.count("max_tokens")?,
            Endpoint::Chat => {
                let (new, old) = (fields.count("max_completion_tokens")?, fields.count("max_tokens")?);
                if new.is_some() && old.is_some() && new != old {
                    return Err(ApiError::field("max_tokens", "it differs from max_completion_tokens"));
                }
                new.or(old)
            }
        };
        let stream = fields.flag("stream")?;
        let mut generation = Self {
            input,
            max_new_tokens,
            choices: fields.count("n")?.unwrap_or(1),
            sampling: fields.sampling()?,
            seed: fields.integer("seed")?.map(|seed| seed as u64),
            stop: fields.stops()?,
            logprobs: fields.logprobs()?,
            stream,
            usage: fields.stream_usage(stream)?,
            ignore_eos: fields.flag("ignore_eos")?,
            echo: endpoint == Endpoint::Completions && fields.flag("echo")?,
            min_new_tokens: fields.count("min_tokens")?.unwrap_or(0),
            min_p: fields.number("min_p")?.unwrap_or(0.0),
            unknown: Vec::new(),
        };
        if generation.max_new_tokens.is_some_and(|most| most < generation.min_new_tokens) {
            return Err(ApiError::field("min_tokens", "it is more than max_tokens"));
        }
        generation.unknown = fields.finish()?;
        Ok(generation)
    }
}

/// The fields of an object that have not been read yet.
struct Fields {
    endpoint: Endpoint,
    /// The fields that can be read.
    rows: &'static [Field],
    given: Map<String, Value>,
}

impl Fields {
    /// Takes a field with its row.
    fn given(&mut self, name: &str) -> Result<Option<(&'static Field, Value)>, ApiError> {
        let Some(row) = self.rows.iter().find(|row| row.name == name && row.is_of(self.endpoint)) else {
            return Ok(None);
        };
        match self.given.remove(name) {
            None if row.is_required => Err(ApiError::field(name, "it is missing")),
            value => Ok(value.map(|value| (row, value))),
        }
    }

    /// Takes a field and checks it. `null` is the same as no field.
    fn take(&mut self, name: &str) -> Result<Option<Value>, ApiError> {
        match self.given(name)? {
            None => Ok(None),
            Some((row, Value::Null)) if row.is_required => Err(ApiError::field(name, "it is missing")),
            Some((_, Value::Null)) => Ok(None),
            Some((row, value)) => row.check(&value).map(|()| Some(value)),
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        Ok(self.take(name)?.and_then(|value| value.as_str().map(str::to_owned)))
    }

    /// A field that is `false` if it is missing.
    fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.and_then(|value| value.as_bool()).unwrap_or(false))
    }

    fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        Ok(self.take(name)?.and_then(|value| value.as_i64()))
    }

    /// An integer that is not negative.
    fn count(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        Ok(self.integer(name)?.and_then(|count| count.try_into().ok()))
    }

    fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        Ok(self.take(name)?.and_then(|value| value.as_f64()).map(|number| number as f32))
    }

    fn prompts(&mut self) -> Result<Vec<Prompt>, ApiError> {
        let wrong = || ApiError::field("prompt", "expected a string, an array of token ids, or an array of either");
        let prompts = match self.given("prompt")?.map(|(_, prompt)| prompt).unwrap_or_default() {
            Value::String(text) => vec![Prompt::Text(text)],
            // The start of a document, as an empty text is.
            Value::Null => vec![Prompt::Text(String::new())],
            Value::Array(items) if items.first().is_some_and(Value::is_number) => {
                vec![Prompt::Tokens(tokens(items).ok_or_else(wrong)?)]
            }
            Value::Array(items) => {
                if items.len() > MAX_CHOICES {
                    return Err(ApiError::field("prompt", format!("at most {MAX_CHOICES} prompts are supported")));
                }
                let one = |item| match item {
                    Value::String(text) => Some(Prompt::Text(text)),
                    Value::Array(items) => tokens(items).map(Prompt::Tokens),
                    _ => None,
                };
                items.into_iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
            }
            _ => return Err(wrong()),
        };
        if prompts.is_empty() { Err(ApiError::field("prompt", "it is empty")) } else { Ok(prompts) }
    }

    /// The messages of a body, which is read again for the order of their keys.
    fn messages(&mut self, body: &str) -> Result<Vec<Message>, ApiError> {
        let Some(Value::Array(messages)) = self.take("messages")? else {
            return Err(ApiError::field("messages", "expected an array of messages"));
        };
        if messages.is_empty() {
            return Err(ApiError::field("messages", "it is empty"));
        }
        let ordered: minijinja::Value = serde_json::from_str(body).unwrap_or_default();
        let ordered = ordered.get_attr("messages").unwrap_or_default();
        let whole = |index: usize| ordered.get_item_by_index(index).unwrap_or_default();
        let messages = messages.into_iter().enumerate();
        messages.map(|(index, message)| self::message(index, message, &whole(index))).collect()
    }

    fn sampling(&mut self) -> Result<Sampling, ApiError> {
        let top_k = self.integer("top_k")?;
        let sampling = Sampling {
            repetition_penalty: self.number("repetition_penalty")?.filter(|penalty| *penalty != 1.0),
            temperature: self
                .number("temperature")?
                .map_or(1.0, |temperature| if f64::from(temperature) < GREEDY_BELOW { 0.0 } else { temperature }),
            // Servers write "all" as -1 or 0.
            top_k: top_k.filter(|k| *k > 0).map(|k| k as usize),
            top_p: self.number("top_p")?.filter(|p| *p < 1.0).map(|p| p.max(LEAST_TOP_P)),
        };
        sampling.validate().map_err(|error| ApiError::bad(error.to_string()))?;
        Ok(sampling)
    }

    fn stops(&mut self) -> Result<Vec<String>, ApiError> {
        let wrong = || {
            let expected = format!("expected a string or up to {MAX_STOPS}, each of 1 to {MAX_STOP_CHARS} characters");
            ApiError::field("stop", expected)
        };
        let stops: Vec<String> = match self.take("stop")? {
            None => Vec::new(),
            Some(Value::String(stop)) => vec![stop],
            Some(stops) => serde_json::from_value(stops).map_err(|_| wrong())?,
        };
        let is_stop = |stop: &String| (1..=MAX_STOP_CHARS).contains(&stop.chars().count());
        let is_good = stops.len() <= MAX_STOPS && stops.iter().all(is_stop);
        if is_good { Ok(stops) } else { Err(wrong()) }
    }

    /// A number in completions; a flag and a number in chats.
    fn logprobs(&mut self) -> Result<Option<usize>, ApiError> {
        if self.endpoint == Endpoint::Completions {
            return self.count("logprobs");
        }
        let wanted = self.flag("logprobs")?;
        match self.count("top_logprobs")? {
            Some(_) if !wanted => Err(ApiError::field("top_logprobs", "it needs logprobs: true")),
            count => Ok(wanted.then_some(count.unwrap_or(0))),
        }
    }

    fn stream_usage(&mut self, stream: bool) -> Result<StreamUsage, ApiError> {
        let Some(options) = self.take("stream_options")? else { return Ok(StreamUsage::Never) };
        let Value::Object(given) = options else {
            return Err(ApiError::field("stream_options", "expected an object"));
        };
        if !stream {
            return Err(ApiError::field("stream_options", "it needs stream: true"));
        }
        let mut options = Self { endpoint: self.endpoint, rows: STREAM_OPTIONS, given };
        let usage = match (options.flag("include_usage")?, options.flag("continuous_usage_stats")?) {
            (false, _) => StreamUsage::Never,
            (true, false) => StreamUsage::AtTheEnd,
            (true, true) => StreamUsage::Always,
        };
        options.flag("include_obfuscation")?;
        match options.given.keys().next() {
            Some(unknown) => Err(ApiError::field("stream_options", format!("unknown field '{unknown}'"))),
            None => Ok(usage),
        }
    }

    /// Refuses fields that would change the answer, and returns the names of those that nobody knows here.
    fn finish(mut self) -> Result<Vec<String>, ApiError> {
        self.given.retain(|name, value| !IGNORED.contains(&name.as_str()) && !value.is_null());
        let known: Vec<_> = self.rows.iter().filter(|row| row.is_of(self.endpoint)).map(|row| row.name).collect();
        let mut unknown = Vec::new();
        for (name, value) in &self.given {
            if let Some((_, neutral)) = UNSUPPORTED.iter().find(|(unsupported, _)| unsupported == name) {
                if asks_for_nothing(value, neutral) {
                    continue;
                }
                return Err(ApiError::field(name, "this server does not support it").with_code("unsupported_parameter"));
            }
            // What looks like a mistake would change the answer.
            let hint = nearest(name, &known).filter(|near| near != name);
            if hint.is_some() || self.rows.iter().any(|row| row.name == name) {
                let hint = hint.map_or_else(String::new, |near| format!(": did you mean {near}?"));
                return Err(ApiError::field(name, format!("unknown field{hint}")).with_code("unknown_parameter"));
            }
            if unknown.len() < MAX_NAMED {
                unknown.push(shown(&name.as_str().into()));
            }
        }
        Ok(unknown)
    }
}

/// Returns whether a field that is not supported has a value that is the same as leaving it out.
fn asks_for_nothing(value: &Value, neutral: &str) -> bool {
    let equals = |nothing: &Value| value == nothing || (value.is_number() && value.as_f64() == nothing.as_f64());
    fields::nothing(neutral).iter().any(equals)
}

/// Token ids. Their upper limit depends on the model.
fn tokens(items: Vec<Value>) -> Option<Vec<u32>> {
    items.into_iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn message(index: usize, message: Value, whole: &minijinja::Value) -> Result<Message, ApiError> {
    let place = |field: &str| format!("messages[{index}].{field}");
    let role = message["role"].as_str().unwrap_or_default();
    if !ROLES.contains(&role) {
        return Err(ApiError::field(&place("role"), format!("expected one of {}", ROLES.join(", "))));
    }
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let text = |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
            parts
                .iter()
                .map(text)
                .collect::<Option<String>>()
                .ok_or_else(|| ApiError::field(&place("content"), "only parts of type text are supported"))?
        }
        _ => return Err(ApiError::field(&place("content"), "expected a string or an array of parts")),
    };
    for field in OF_TOOLS {
        if !message[field].is_null() {
            return Err(ApiError::field(&place(field), "this server does not support it"));
        }
    }
    let keys = whole.try_iter().into_iter().flatten();
    let field = |key: minijinja::Value| {
        let is_content = key.as_str() == Some("content");
        let value = if is_content { content.as_str().into() } else { whole.get_item(&key).unwrap_or_default() };
        (key, value)
    };
    let whole = minijinja::Value::from_pairs(keys.map(field));
    Ok(Message { role: role.to_owned(), content, whole })
}

/// A value in an error, shortened.
pub fn shown(value: &Value) -> String {
    text::short(&value.to_string(), 40)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(endpoint: Endpoint, body: Value) -> Result<Generation, Value> {
        Generation::parse(endpoint, body.to_string().as_bytes(), "m").map_err(|error| error.json()["error"].clone())
    }

    #[test]
    fn defaults_are_those_of_openai() {
        let found =
            parse(Endpoint::Completions, json!({"model": "m", "prompt": "a", "user": "x", "tools": []})).expect("good");
        assert!(matches!(&found.input, Input::Prompts(prompts) if *prompts == [Prompt::Text("a".into())]));
        let plain = Sampling { repetition_penalty: None, temperature: 1.0, top_k: None, top_p: None };
        assert_eq!((found.sampling, found.choices, found.stream, found.logprobs), (plain, 1, false, None));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 7, "top_k": -1,
            "top_p": 1, "temperature": 0, "stop": ["x", "y"], "logprobs": true, "seed": -3, "stream": true,
            "stream_options": {"include_usage": true}, "response_format": {"type": "text"},
        });
        let found = parse(Endpoint::Chat, body).expect("good");
        assert!(matches!(&found.input, Input::Messages(messages) if messages[0].content == "ab"));
        assert_eq!((found.sampling, found.max_new_tokens), (Sampling::GREEDY, Some(7)));
        assert_eq!((found.logprobs, found.seed), (Some(0), Some(-3i64 as u64)));
        assert_eq!(found.usage, StreamUsage::AtTheEnd);
    }

    /// vLLM's clients send the defaults of their fields.
    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let body = json!({
            "model": "m", "prompt": "a", "min_tokens": 0, "min_p": 0, "length_penalty": 1.0, "skip_special_tokens": true,
            "add_special_tokens": true, "chat_template_kwargs": {}, "tool_choice": "auto", "best_of": 1, "echo": false,
            "stop_token_ids": [], "guided_json": null, "logit_bias": {}, "suffix": "", "response_format": {"type": "text"},
        });
        assert_eq!(parse(Endpoint::Completions, body).expect("good").unknown, [""; 0]);
        let found = parse(Endpoint::Completions, json!({"model": "m", "prompt": "a", "x_trace": 7})).expect("good");
        assert_eq!(found.unknown, ["\"x_trace\""]);
        let body = |more: Value| {
            let mut body = json!({"model": "m", "prompt": "a", "stream": true});
            more.as_object().into_iter().flatten().for_each(|(name, value)| body[name] = value.clone());
            parse(Endpoint::Completions, body).expect("good")
        };
        assert_eq!(body(json!({"temperature": 1e-40})).sampling.temperature, 0.0);
        assert_eq!(body(json!({"top_p": 0})).sampling.top_p, Some(LEAST_TOP_P));
        let usage = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
        assert_eq!(body(usage).usage, StreamUsage::Always);
        let scored = body(json!({"echo": true, "logprobs": 1, "max_tokens": 0}));
        assert_eq!((scored.echo, scored.logprobs, scored.max_new_tokens), (true, Some(1), Some(0)));
        assert!(
            matches!(body(json!({"prompt": null})).input, Input::Prompts(prompts) if prompts == [Prompt::Text("".into())])
        );
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |prompt: Value| match parse(Endpoint::Completions, json!({"model": "m", "prompt": prompt})) {
            Ok(Generation { input: Input::Prompts(prompts), .. }) => prompts,
            other => panic!("{other:?}"),
        };
        assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2, 3]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
        assert_eq!(prompts(json!(["a", [2]])), [Prompt::Text("a".into()), Prompt::Tokens(vec![2])]);
    }

    #[test]
    fn an_error_names_the_field_and_what_it_may_be() {
        for (field, value, part) in [
            ("temperature", json!(-1), "temperature: expected a number from 0 to 2, not -1"),
            ("temperature", json!("hot"), "not \"hot\""),
            ("top_p", json!(-0.1), "expected a number from 0 to 1"),
            ("min_p", json!(2), "expected a number from 0 to 1"),
            ("min_tokens", json!(-1), "expected a whole number"),
            ("length_penalty", json!(2), "this server does not support it"),
            ("skip_special_tokens", json!(false), "this server does not support it"),
            ("chat_template_kwargs", json!({"a": 1}), "this server does not support it"),
            ("max_tokens", json!(-5), "expected a whole number from 0 to 4294967295, not -5"),
            ("max_tokens", json!(1.5), "not 1.5"),
            ("max_tokens", json!(u64::MAX), "not 18446744073709551615"),
            ("n", json!(33), "from 1 to 32"),
            ("n", json!("x".repeat(1000)), "xxx…"),
            ("seed", json!(1e300), "expected a whole number"),
            ("stop", json!([""]), "each of 1 to 256 characters"),
            ("stop", json!(["a", "b", "c", "d", "e"]), "up to 4"),
            ("logprobs", json!(6), "from 0 to 5"),
            ("stream", json!(1), "expected true or false"),
            ("stream_options", json!({}), "it needs stream: true"),
            ("prompt", json!([]), "it is empty"),
            ("prompt", json!([1, -1]), "expected a string, an array of token ids"),
            ("prompt", json!([1, 4_294_967_296_u64]), "expected a string, an array of token ids"),
            ("prompt", json!([[1], 2]), "expected a string, an array of token ids"),
            ("tools", json!([{}]), "this server does not support it"),
            ("best_of", json!(2), "this server does not support it"),
            ("temprature", json!(1), "unknown field: did you mean temperature?"),
            ("max_completion_tokens", json!(1), "unknown field"),
        ] {
            let mut body = json!({"model": "m", "prompt": "a"});
            body[field] = value;
            let error = parse(Endpoint::Completions, body).expect_err(part);
            assert_eq!(error["param"], field, "{error}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains(part) && message.starts_with(field), "{message}");
        }
        for (body, part) in [
            (json!({"model": "m", "messages": []}), "messages: it is empty"),
            (
                json!({"model": "m", "messages": [{"role": "tool", "content": "a"}]}),
                "messages[0].role: expected one of",
            ),
            (json!({"model": "m", "messages": [{"role": "user"}]}), "messages[0].content: expected a string"),
            (json!({"model": "m", "messages": [1]}), "messages[0].role"),
            (
                json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "only parts of type text",
            ),
            (json!({"model": "m", "messages": "a"}), "expected an array"),
            (json!({"model": "other", "messages": []}), "'other' is not served here; the model is 'm'"),
            (json!([]), "not a JSON object"),
        ] {
            let error = parse(Endpoint::Chat, body).expect_err(part);
            assert!(error["message"].as_str().is_some_and(|message| message.contains(part)), "{error}");
        }
        for body in [&b"{\"model\": \"\xff\"}"[..], b"{", b"", &[b'['; 100_000], b"{\"model\": 1e999}"] {
            let error = Generation::parse(Endpoint::Chat, body, "m").expect_err("no JSON").json();
            assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("body")), "{error}");
        }
    }
}
