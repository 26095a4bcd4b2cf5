//! Typed access to the metadata of a GGUF file. A key of a wrong type, or a number that is not finite, is refused by its name.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::Value;
use serde_json::json;

/// The keys of a file.
pub struct Metadata(pub HashMap<String, Value>);

impl Metadata {
    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let value = self.0.get(key);
        value.map(|value| convert(value).with_context(|| format!("{key} is not {what}"))).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", text)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| value.to_bool().ok())
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", number)
    }

    /// A whole number of any type, negative ones included.
    pub fn whole(&self, key: &str) -> Result<Option<i128>> {
        self.typed(key, "a whole number", whole)
    }

    /// An array whose elements are `what`.
    pub fn list<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let convert = |value: &'a Value| match value {
            Value::Array(values) => values.iter().map(&convert).collect(),
            _ => None,
        };
        self.typed(key, &format!("a list of {what}"), convert)
    }

    /// A number as JSON. Writers may state it once for all layers, or as an array with one for each.
    pub fn of_all_layers(&self, key: &str) -> Result<Option<serde_json::Value>> {
        let Some(Value::Array(values)) = self.0.get(key) else { return self.typed(key, "a finite number", in_json) };
        let each = self.list(key, "finite numbers", in_json)?.unwrap_or_default();
        let first = each.first().with_context(|| format!("{key} is an empty list"))?;
        ensure!(
            each.iter().all(|value| value == first),
            "{key} has {} numbers that differ: layers of different sizes are not supported",
            values.len()
        );
        Ok(Some(first.clone()))
    }

    /// Whether each layer has a property, where the value is an array of flags.
    pub fn flags(&self, key: &str) -> Option<Vec<bool>> {
        match self.0.get(key) {
            Some(Value::Array(values)) => values.iter().map(|value| value.to_bool().ok()).collect(),
            _ => None,
        }
    }
}

pub fn text(value: &Value) -> Option<&str> {
    value.to_string().ok().map(String::as_str)
}

pub fn whole(value: &Value) -> Option<i128> {
    Some(match value {
        Value::U8(value) => (*value).into(),
        Value::I8(value) => (*value).into(),
        Value::U16(value) => (*value).into(),
        Value::I16(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => return None,
    })
}

pub fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::F32(value) => (*value).into(),
        Value::F64(value) => *value,
        other => whole(other)? as f64,
    };
    number.is_finite().then_some(number)
}

/// A number as JSON. One without a fraction is a whole number there, which readers of counts expect.
fn in_json(value: &Value) -> Option<serde_json::Value> {
    let number = number(value)?;
    let is_whole = number.fract() == 0.0 && number.abs() < (1u64 << 53) as f64;
    Some(match whole(value).map(i64::try_from) {
        Some(Ok(whole)) => json!(whole),
        None if is_whole => json!(number as i64),
        _ => json!(number),
    })
}
