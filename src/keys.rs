//! Keys and values of configurations, from YAML and from the command line.

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

/// The keys and values of a YAML file.
pub fn yaml(text: &str) -> Result<Vec<(String, Value)>> {
    let values: serde_json::Map<String, Value> = serde_saphyr::from_str(text).map_err(|error| {
        anyhow!("it can't be read as YAML: {}", error.to_string().lines().next().unwrap_or_default())
    })?;
    Ok(values.into_iter().collect())
}

/// The words of a flag: numbers where they are, a list where there are commas.
pub fn words(text: &str) -> Value {
    let word = |text: &str| -> Value {
        let text = text.trim();
        let whole = text.parse::<u64>().map(Value::from);
        whole.or_else(|_| text.parse::<f64>().map(Value::from)).unwrap_or_else(|_| text.into())
    };
    match text.contains(',') {
        true => text.split(',').map(word).collect(),
        false => word(text),
    }
}

/// A list, or one item for a list of it.
pub fn list<T>(value: &Value, item: impl Fn(&Value) -> Result<T>) -> Result<Vec<T>> {
    match value {
        Value::Array(items) => items.iter().map(item).collect(),
        one => Ok(vec![item(one)?]),
    }
}

pub fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no word"))
}

pub fn whole(value: &Value) -> Result<usize> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.with_context(|| format!("{value} is no whole number"))
}
