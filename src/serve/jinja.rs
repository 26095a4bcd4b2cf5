//! Renders chat templates as Hugging Face transformers does. Templates come from files of others, so a process of its own runs
//! this module: see [`work`].

use std::{
    fmt::{self, Write as _},
    io::{self, BufRead, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use chrono::Local;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest, ValueKind, from_args},
};
use minijinja_contrib::pycompat;
use serde_json::json;

use crate::{error::one_line, model::ChatTemplate};

/// Instructions that a template may take. Templates of models take some thousands.
const FUEL: u64 = 10_000_000;
/// Bytes of a template.
const SOURCE_MAX_BYTES: usize = 1 << 20;
/// Bytes of a prompt, and of a text that a method makes.
const TEXT_MAX_BYTES: usize = 16 << 20;
/// Depth of a value that is written as JSON.
const JSON_MAX_DEPTH: usize = 128;
/// Time for a conversation. The process ends when it is over.
const LIMIT: Duration = Duration::from_secs(5);
/// Name of the template in its environment, without an extension that would turn on escaping.
const NAME: &str = "chat";

/// A template that can be rendered.
pub struct Compiled {
    environment: Environment<'static>,
    tokens: Vec<(String, String)>,
}

impl Compiled {
    /// Compiles a template, and renders three small conversations to find what this program does not know.
    pub fn new(template: ChatTemplate) -> Result<Self, String> {
        let ChatTemplate { source, bos_token, eos_token, special_tokens } = template;
        let refused = |error: &dyn fmt::Display| format!("the model's chat template: {}", one_line(error));
        if source.len() > SOURCE_MAX_BYTES {
            return Err(refused(&format!("it is larger than {SOURCE_MAX_BYTES} bytes")));
        }
        let mut environment = environment();
        environment.add_template_owned(NAME, prepared(&source)).map_err(|error| refused(&error))?;
        let mut tokens: Vec<(String, String)> = special_tokens.into_iter().collect();
        let own = [("bos_token", bos_token), ("eos_token", eos_token)].map(|(name, token)| (name.to_owned(), token));
        tokens.extend(own.into_iter().filter(|(_, token)| !token.is_empty()));
        let compiled = Self { environment, tokens };
        for roles in [&["user"][..], &["system", "user"], &["user", "assistant", "user"]] {
            let messages = roles.iter().map(|role| json!({"role": role, "content": "a"})).collect();
            let messages: Value = serde_json::from_value(messages).map_err(|error| refused(&error))?;
            let unknown = compiled.render_value(messages).err().filter(|error| {
                use ErrorKind::{UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
                matches!(error.kind(), UnknownFilter | UnknownFunction | UnknownMethod | UnknownTest)
            });
            if let Some(error) = unknown {
                return Err(refused(&error));
            }
        }
        Ok(compiled)
    }

    /// Renders messages, which are an array in JSON.
    pub fn render(&self, messages: &str) -> Result<String, String> {
        let messages: Value = serde_json::from_str(messages).map_err(|error| one_line(&error))?;
        self.render_value(messages).map_err(|error| {
            let detail = error.detail().map(str::to_owned).unwrap_or_else(|| error.to_string());
            format!("the model's chat template refuses the messages: {}", one_line(&detail))
        })
    }

    fn render_value(&self, messages: Value) -> Result<String, Error> {
        let messages: Value = messages.try_iter()?.map(with_thoughts).collect();
        let mut names: Vec<(Value, Value)> =
            self.tokens.iter().map(|(name, token)| (Value::from(name), Value::from(token))).collect();
        names.extend([
            ("messages".into(), messages),
            ("tools".into(), ().into()),
            ("documents".into(), ().into()),
            ("add_generation_prompt".into(), true.into()),
        ]);
        let mut text = Bounded(Vec::new());
        self.environment.get_template(NAME)?.render_captured_to(Value::from_pairs(names), &mut text)?;
        String::from_utf8(text.0).map_err(|_| invalid("the prompt is not UTF-8"))
    }
}

/// A text that does not grow beyond the limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_MAX_BYTES {
            return Err(io::Error::other(format!("the prompt is longer than {TEXT_MAX_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a template and then conversations from standard input, and answers each on a line of `out`: `{"text"}` or
/// `{"error"}`.
///
/// A template may recurse until the stack ends, double a value until the memory ends, or compare shared values for years. The
/// library bounds instructions only, and one instruction can do each of these. So nothing in the same process could bound a
/// template, and its end must not be that of the server.
pub fn work(mut out: impl Write) -> io::Result<()> {
    let mut lines = io::stdin().lock().lines();
    let Some(template) = lines.next().transpose()? else { return Ok(()) };
    let (begin, watched) = mpsc::channel::<bool>();
    thread::spawn(move || {
        // `true` begins a time, and `false` ends it.
        while let Ok(begins) = watched.recv() {
            if begins && watched.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                std::process::exit(1);
            }
        }
    });
    let mut within = |work: &mut dyn FnMut() -> Result<String, String>| {
        let _ = begin.send(true);
        let answer = match work() {
            Ok(text) => json!({"text": text}),
            Err(error) => json!({"error": error}),
        };
        let _ = begin.send(false);
        writeln!(out, "{answer}")?;
        out.flush()
    };
    let mut compiled = None;
    within(&mut || {
        let template = serde_json::from_str(&template).map_err(|error| one_line(&error))?;
        compiled = Some(Compiled::new(template)?);
        Ok(String::new())
    })?;
    let Some(compiled) = compiled else { return Ok(()) };
    lines.try_for_each(|messages| {
        let messages = messages?;
        within(&mut || compiled.render(&messages))
    })
}

/// An environment as transformers sets up Jinja.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(method);
    environment.set_fuel(Some(FUEL));
    minijinja_contrib::add_to_environment(&mut environment);
    environment.add_filter("tojson", tojson);
    environment.add_filter("center", |text: &str, width: Option<usize>| padded(text, width.unwrap_or(80), ' ', 1, 2));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(invalid(message)) });
    environment.add_function("strftime_now", |format: String| {
        let mut text = String::new();
        // A wrong format is an error of `write`, where `to_string` would panic.
        let written = write!(text, "{}", Local::now().format(&format));
        written.map(|()| text).map_err(|_| invalid("strftime_now: the format is wrong"))
    });
    environment
}

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// A message whose thoughts have every name that templates read.
fn with_thoughts(message: Value) -> Value {
    let of = |name: &str| message.get_attr(name).ok().filter(|value| !value.is_undefined() && !value.is_none());
    let Some(thoughts) = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(of) else {
        return message;
    };
    let own = message.try_iter().into_iter().flatten().filter(|key| key.as_str() != Some("reasoning_content"));
    let mut fields: Vec<(Value, Value)> =
        own.map(|key| (key.clone(), message.get_item(&key).unwrap_or_default())).collect();
    if !fields.iter().any(|(key, _)| key.as_str() == Some("thinking")) {
        fields.insert(0, ("thinking".into(), thoughts.clone()));
    }
    fields.push(("reasoning_content".into(), thoughts));
    Value::from_pairs(fields)
}

/// A template in the form that the library reads: lines end in LF, `generation` is a scope, and `%` of a literal is a filter.
fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut out, mut rest) = (String::with_capacity(source.len()), source.as_str());
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let tag = &rest[open..];
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'{') => end_of(tag, 2, "}}"),
            Some(b'%') => end_of(tag, 2, "%}"),
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        let Some(end) = end else { return out + tag };
        let inner = &tag[2..end - 2];
        let is_statement = tag.as_bytes()[1] == b'%';
        match inner.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c)) {
            _ if tag.as_bytes()[1] == b'#' => out.push_str(&tag[..end]),
            // transformers only notes where the text of a `generation` is.
            "generation" if is_statement => out.push_str(&tag[..end].replace("generation", "with")),
            "endgeneration" if is_statement => out.push_str(&tag[..end].replace("endgeneration", "endwith")),
            "raw" if is_statement => {
                let after = tag[end..].find("endraw").map_or(tag.len(), |at| end + at + "endraw".len());
                out.push_str(&tag[..after]);
                rest = &tag[after..];
                continue;
            }
            _ => {
                out.push_str(&tag[..2]);
                push_expression(inner, &mut out);
                out.push_str(&tag[end - 2..end]);
            }
        }
        rest = &tag[end..];
    }
    out + rest
}

/// The place after `close`, from `from` on, outside of strings and brackets.
fn end_of(text: &str, from: usize, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (from, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            _ if depth == 0 && text.as_bytes()[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            b'\'' | b'"' => at = end_of_string(bytes, at)? - 1,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place after a string that begins here.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            byte if byte == bytes[start] => return Some(at + 1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Adds an expression, with `'…' % x` as `'…'|format(x)`.
fn push_expression(text: &str, out: &mut String) {
    let bytes = text.as_bytes();
    let mut rest = 0;
    while let Some(start) = bytes[rest..].iter().position(|byte| b"'\"".contains(byte)).map(|at| rest + at) {
        let Some(end) = end_of_string(bytes, start) else { break };
        out.push_str(&text[rest..end]);
        rest = end;
        let operator = end + (text[end..].len() - text[end..].trim_start().len());
        if bytes.get(operator) == Some(&b'%') {
            let begin = operator + 1 + (text[operator + 1..].len() - text[operator + 1..].trim_start().len());
            if let Some(after) = end_of_operand(text, begin) {
                let operand = &text[begin..after];
                // A tuple has several values.
                let is_group = operand.starts_with('(') && end_of(operand, 1, ")") == Some(operand.len());
                let operand = if is_group { &operand[1..operand.len() - 1] } else { operand };
                out.push_str("|format(");
                push_expression(operand, out);
                out.push(')');
                rest = after;
            }
        }
    }
    out.push_str(&text[rest..]);
}

/// The place after a value with its attributes, calls and filters.
fn end_of_operand(text: &str, begin: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = begin;
    let mut needs_name = true;
    loop {
        let start = at + (text[at..].len() - text[at..].trim_start().len());
        match bytes.get(start)? {
            b'\'' | b'"' if needs_name => at = end_of_string(bytes, start)?,
            b'(' if needs_name || start == at => at = end_of(text, start + 1, ")")?,
            b'[' if needs_name || start == at => at = end_of(text, start + 1, "]")?,
            b'{' if needs_name => at = end_of(text, start + 1, "}")?,
            byte if needs_name && (byte.is_ascii_alphanumeric() || *byte == b'_') => {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                at = text[start..].find(|c| !is_name(c)).map_or(text.len(), |length| start + length);
            }
            _ => return None,
        }
        let next = at + (text[at..].len() - text[at..].trim_start().len());
        needs_name = matches!(bytes.get(next), Some(b'.' | b'|'));
        if needs_name {
            at = next + 1;
        } else if !matches!(bytes.get(at), Some(b'(' | b'[')) {
            return Some(at);
        }
    }
}

/// Methods of Python's strings, maps and lists.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let whole = |at: Option<usize>, text: &str| {
        let at = at.ok_or_else(|| invalid("substring not found"))?;
        Ok(Value::from(text[..at].chars().count()))
    };
    let parts = |parts: [&str; 3]| Ok(Value::from(minijinja::value::Tuple::from(parts.map(Value::from))));
    match (value.as_str(), name) {
        (Some(text), "rsplit") => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            let mut found: Vec<&str> = match separator {
                Some("") => return Err(invalid("empty separator")),
                Some(separator) => text.rsplitn(most, separator).collect(),
                None => {
                    let mut found = Vec::new();
                    let mut rest = text.trim_end();
                    while !rest.is_empty() {
                        let cut = rest.rfind(char::is_whitespace).filter(|_| found.len() + 1 < most);
                        let start = cut.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                        found.push(&rest[start..]);
                        rest = cut.map_or("", |at| rest[..at].trim_end());
                    }
                    found
                }
            };
            found.reverse();
            Ok(found.into_iter().collect())
        }
        (Some(text), "removeprefix" | "removesuffix") => {
            let (part,): (&str,) = from_args(args)?;
            let cut = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Ok(cut.unwrap_or(text).into())
        }
        (Some(text), "partition" | "rpartition") => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let is_first = name == "partition";
            match if is_first { text.split_once(separator) } else { text.rsplit_once(separator) } {
                Some((before, after)) => parts([before, separator, after]),
                None if is_first => parts([text, "", ""]),
                None => parts(["", "", text]),
            }
        }
        (Some(text), "index" | "rindex") => {
            let (part,): (&str,) = from_args(args)?;
            whole(if name == "index" { text.find(part) } else { text.rfind(part) }, text)
        }
        (Some(text), "zfill") => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(text.starts_with(['+', '-']).into());
            Ok(format!("{sign}{}", padded(digits, width.saturating_sub(sign.len()), '0', 1, 1)?).into())
        }
        (Some(text), "ljust" | "rjust" | "center") => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let left =
                [("ljust", 0), ("rjust", 2), ("center", 1)].iter().find(|row| row.0 == name).map_or(0, |row| row.1);
            Ok(padded(text, width, fill.unwrap_or(' '), left, 2)?.into())
        }
        (Some(text), "swapcase") => {
            let swapped = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Ok(text.chars().map(swapped).collect::<String>().into())
        }
        (Some(text), "casefold") => Ok(text.to_lowercase().into()),
        (Some(text), "isdecimal") => Ok((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()),
        (Some(text), "istitle") => Ok((text.chars().any(char::is_alphabetic) && titled(text) == text).into()),
        (Some(text), "replace") => {
            let (old, new, most): (&str, &str, Option<i64>) = from_args(args)?;
            let count =
                text.matches(old).count().min(most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX));
            if count.saturating_mul(new.len()).saturating_add(text.len()) > TEXT_MAX_BYTES {
                return Err(invalid("replace: the text is too long"));
            }
            Ok(text.replacen(old, new, count).into())
        }
        (None, "copy") if matches!(value.kind(), ValueKind::Map | ValueKind::Seq) => Ok(value.clone()),
        (None, "index") if value.kind() == ValueKind::Seq => {
            let (wanted,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *wanted);
            place.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn titled(text: &str) -> String {
    let mut follows_letter = false;
    let case = |c: char| -> String {
        let is_later = std::mem::replace(&mut follows_letter, c.is_alphabetic());
        if is_later { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().map(case).collect()
}

/// A text of a width, with the share `left`/`of` of the padding before it. An odd space of two halves is where Python has it.
fn padded(text: &str, width: usize, fill: char, left: usize, of: usize) -> Result<String, Error> {
    if width > TEXT_MAX_BYTES {
        return Err(invalid(format!("the width is {width}: at most {TEXT_MAX_BYTES} is supported")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let is_half = left * 2 == of;
    let before = missing * left / of + usize::from(is_half && missing % 2 == 1 && width % 2 == 1);
    let fill = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(fill(before) + text + &fill(missing - before))
}

/// The filter `tojson` of transformers: Python's `json.dumps`.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    if positional.len() > 4 {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let value =
            positional.get(place).cloned().map_or_else(|| named.get::<Option<Value>>(name), |value| Ok(Some(value)))?;
        Ok(value.filter(|value| !value.is_none()))
    };
    let indent = match argument(1, "indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(count) => Some(" ".repeat(usize::try_from(count).unwrap_or(0).min(64))),
    };
    let separators = argument(2, "separators")?.map(|pair| -> Result<[String; 2], Error> {
        let texts: Vec<String> = pair.try_iter()?.map(|text| text.to_string()).collect();
        texts.try_into().map_err(|_| invalid("tojson: separators are two texts"))
    });
    let default = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
    let json = Json {
        is_ascii: argument(0, "ensure_ascii")?.is_some_and(|flag| flag.is_true()),
        is_sorted: argument(3, "sort_keys")?.is_some_and(|flag| flag.is_true()),
        indent,
        separators: separators.transpose()?.unwrap_or(default),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    json.push(value, 0, &mut out)?;
    Ok(out.into())
}

/// How JSON is written.
struct Json {
    is_ascii: bool,
    is_sorted: bool,
    indent: Option<String>,
    separators: [String; 2],
}

impl Json {
    fn push(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > JSON_MAX_DEPTH || out.len() > TEXT_MAX_BYTES {
            return Err(invalid("tojson: the value is too deep or too large"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.push_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| Ok((None, item)));
                self.push_items(['[', ']'], items, depth, out)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.is_sorted {
                    keys.sort();
                }
                let items = keys.into_iter().map(|key| Ok((Some(self.key(&key)?), value.get_item(&key)?)));
                self.push_items(['{', '}'], items, depth, out)?;
            }
            kind => return Err(invalid(format!("tojson: Object of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn key(&self, key: &Value) -> Result<String, Error> {
        Ok(match key.kind() {
            ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
            ValueKind::None => "null".into(),
            ValueKind::Bool => key.to_string().to_lowercase(),
            ValueKind::Number => number(key),
            _ => return Err(invalid("tojson: keys must be str, int, float, bool or None")),
        })
    }

    fn push_items(
        &self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Result<(Option<String>, Value), Error>>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        let mut is_empty = true;
        for item in items {
            let (key, item) = item?;
            if !std::mem::take(&mut is_empty) {
                out.push_str(&self.separators[0]);
            }
            line(depth + 1, out);
            if let Some(key) = key {
                self.push_text(&key, out);
                out.push_str(&self.separators[1]);
            }
            self.push(&item, depth + 1, out)?;
        }
        if !is_empty {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn push_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.is_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    let Some(float) = f64::try_from(value.clone()).ok().filter(|_| !value.is_integer()) else {
        return value.to_string();
    };
    match float {
        _ if float.is_nan() => "NaN".into(),
        _ if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        _ if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) => {
            let text = format!("{float:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        _ => format!("{float:?}"),
    }
}
