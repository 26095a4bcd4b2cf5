//! Configuration in layers: defaults, a file, the environment and flags. A later layer overrides an earlier one.
//!
//! The `config!` macro declares a configuration. Each of its fields is a key: the field's name, type, default and
//! documentation define the key in files, the environment variable or flag, the help text, and the row in the guide's
//! tables. [`Layers`] merges the layers with figment and reports every bad value at once.

use std::{marker::PhantomData, path::Path};

use anyhow::{Result, bail};
use figment::{
    Figment, Metadata, Profile, Provider,
    error::Kind,
    value::{Dict, Empty, Map, Tag, Value},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error as _};
use serde_json::Value as Json;

use crate::{
    error::nearest,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
};

/// A key of a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The name in files. Flags write it with dashes.
    pub name: &'static str,
    /// The field's documentation.
    pub about: &'static str,
    /// Other names of the key, in files and flags.
    pub aliases: &'static [&'static str],
    /// The default as a person reads it, where it is not the value of [`Default`].
    pub default: Option<&'static str>,
}

/// A configuration that [`Layers`] can read. `config!` implements it.
pub trait Config: Serialize + DeserializeOwned + Default {
    /// Every key, in the order of the fields.
    const KEYS: &'static [Key];
}

/// Declares a configuration. Fields are written with their defaults: `/// Documentation` and `pub name: Type = default,`.
/// Between the two, in this order, may stand `#[alias = "…"]`, another name of the key; `#[default = "…"]`, the default in
/// words where it depends on something else; and serde's attributes. The fields of `and { … }` are not keys.
#[doc(hidden)]
#[macro_export]
macro_rules! __config {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $(
                $(#[doc = $about:literal])+
                $(#[alias = $alias:literal])*
                $(#[default = $words:literal])?
                $(#[serde($($serde:tt)*)])*
                pub $key:ident: $type:ty = $default:expr,
            )+
        }
        $(and { $($(#[$other_attribute:meta])* pub $other:ident: $other_type:ty,)+ })?
    ) => {
        $(#[$attribute])*
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $about])+ $(#[serde($($serde)*)])* pub $key: $type,)+
            $($($(#[$other_attribute])* #[serde(skip)] pub $other: $other_type,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ $($($other: Default::default(),)+)? }
            }
        }

        impl $crate::config::Config for $name {
            const KEYS: &'static [$crate::config::Key] = &[$($crate::config::Key {
                name: stringify!($key),
                about: concat!($($about),+).trim_ascii(),
                aliases: &[$($alias),*],
                default: $crate::config::words(&[$($words)?]),
            }),+];
        }
    };
}
pub use __config as config;

/// The first of at most one.
pub const fn words(given: &[&'static str]) -> Option<&'static str> {
    given.first().copied()
}

/// Implements serde's traits for a type by its `Display` and `FromStr`.
#[doc(hidden)]
#[macro_export]
macro_rules! __serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub use __serde_as_text as serde_as_text;

/// The layers of a configuration, lowest first.
pub struct Layers<C> {
    figment: Figment,
    defaults: Dict,
    problems: Vec<String>,
    config: PhantomData<C>,
}

impl<C: Config> Layers<C> {
    /// Starts with the defaults as the lowest layer.
    pub fn new(defaults: &C) -> Self {
        let mut problems = Vec::new();
        let defaults = Value::serialize(defaults).map(Value::into_dict).unwrap_or_else(|error| {
            problems.push(error.to_string());
            None
        });
        let defaults = defaults.unwrap_or_default();
        let layer = Layer { name: "default".into(), place: Place::Default, values: defaults.clone() };
        Self { figment: Figment::from(layer), defaults, problems, config: PhantomData }
    }

    /// Adds the environment: the variables that start with `prefix`, without it.
    pub fn environment(self, prefix: &'static str, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let pairs = variables.into_iter().map(|(key, text)| (key.to_lowercase(), text.into()));
        self.add("environment", Place::Environment(prefix), pairs)
    }

    /// Adds a TOML text from the file `name`.
    pub fn toml(mut self, name: &str, text: &str) -> Self {
        match toml::from_str::<serde_json::Map<String, Json>>(text) {
            Ok(pairs) => self.add(name, Place::File(name.into()), pairs),
            Err(error) => {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                self.problems.push(format!("{name} line {line}: {}", error.message().replace('\n', " ")));
                self
            }
        }
    }

    /// Adds a YAML text from the file or preset `name`.
    pub fn yaml(mut self, name: &str, text: &str) -> Self {
        match serde_saphyr::from_str::<serde_json::Map<String, Json>>(text) {
            Ok(pairs) => self.add(name, Place::File(name.into()), pairs),
            Err(error) => {
                let error = error.to_string();
                let line = error.lines().next().unwrap_or_default();
                self.problems.push(format!("{name} cannot be read as YAML: {line}"));
                self
            }
        }
    }

    /// Adds a YAML file.
    pub fn yaml_file(mut self, path: &Path) -> Self {
        let name = path.display().to_string();
        match read_text_limited(path, SETTINGS_MAX_BYTES) {
            Ok(text) => self.yaml(&name, &text),
            Err(error) => {
                self.problems.push(format!("{name} cannot be read: {error}"));
                self
            }
        }
    }

    /// Adds flags: keys and the texts that were given for them.
    pub fn flags(self, given: &[(&str, String)]) -> Self {
        let pairs = given.iter().map(|(key, text)| ((*key).to_owned(), text.as_str().into()));
        self.add("command line", Place::Flag, pairs)
    }

    /// Adds the values of the flag `--set`, each `KEY=VALUE`.
    pub fn set(mut self, given: &[String]) -> Self {
        let mut pairs = Vec::new();
        for text in given {
            match text.split_once('=') {
                Some((key, value)) => pairs.push((key.trim().to_owned(), value.into())),
                None => self.problems.push(format!("--set '{text}': write KEY=VALUE")),
            }
        }
        self.add("command line", Place::Set, pairs)
    }

    fn add(mut self, name: &str, place: Place, pairs: impl IntoIterator<Item = (String, Json)>) -> Self {
        let mut values = Dict::new();
        for (given, value) in pairs {
            let Some(key) = C::KEYS.iter().find(|key| key.name == given || key.aliases.contains(&given.as_str()))
            else {
                let names: Vec<_> = C::KEYS.iter().map(|key| key.name).collect();
                self.problems.push(match nearest(&given, &names) {
                    Some(near) => format!("unknown setting {}: did you mean {}?", place.of(&given), place.spell(near)),
                    None => format!("unknown setting {}: the settings are {}", place.of(&given), names.join(", ")),
                });
                continue;
            };
            match typed(&value, self.defaults.get(key.name)) {
                Ok(value) => drop(values.insert(key.name.to_owned(), value)),
                Err(reason) => self.problems.push(format!("{}: {reason}", place.of(&given))),
            }
        }
        self.figment = self.figment.merge(Layer { name: name.to_owned(), place, values });
        self
    }

    /// For each key, its value as text and the name of the layer that it is from.
    pub fn sources(&self) -> impl Iterator<Item = (&'static Key, String, String)> {
        C::KEYS.iter().map(|key| {
            let name = self.figment.find_metadata(key.name).map_or("default", |metadata| &metadata.name);
            let value = match key.default {
                Some(words) if name == "default" => words.to_owned(),
                _ => self.figment.find_value(key.name).map(|value| text(&value)).unwrap_or_default(),
            };
            (key, value, name.to_owned())
        })
    }

    /// The configuration.
    ///
    /// # Errors
    /// Lists every unknown key and every bad value with its source, one per line.
    pub fn resolve(mut self) -> Result<C> {
        loop {
            match self.figment.extract::<C>() {
                Ok(config) if self.problems.is_empty() => return Ok(config),
                Ok(_) => break,
                Err(error) => {
                    self.problems.push(describe(&self.figment, &error));
                    // The default stands in for the bad value, so that the next bad value is found.
                    let default =
                        error.path.first().and_then(|key| Some((key.clone(), self.defaults.get(key)?.clone())));
                    let Some((key, value)) = default else { break };
                    if self.figment.find_value(&key).is_ok_and(|found| found == value) {
                        break;
                    }
                    let values = Dict::from([(key, value)]);
                    let layer = Layer { name: "default".into(), place: Place::Default, values };
                    self.figment = self.figment.merge(layer);
                }
            }
        }
        // A value may have several lines.
        let problems: Vec<String> = self.problems.iter().map(|problem| crate::text::line(problem)).collect();
        bail!(problems.join("\n"))
    }
}

/// How a layer spells its keys.
#[derive(Clone)]
enum Place {
    Default,
    File(String),
    Environment(&'static str),
    Flag,
    Set,
}

impl Place {
    /// The key as it is written there.
    fn spell(&self, key: &str) -> String {
        match self {
            Self::Default | Self::File(_) => key.to_owned(),
            Self::Environment(prefix) => format!("{prefix}{}", key.to_uppercase()),
            Self::Flag => format!("--{}", key.replace('_', "-")),
            Self::Set => format!("--set {key}"),
        }
    }

    /// The key as it is written there, and where that is.
    fn of(&self, key: &str) -> String {
        match self {
            Self::Default => format!("default of {key}"),
            Self::File(name) => format!("{key} in {name}"),
            _ => self.spell(key),
        }
    }
}

struct Layer {
    name: String,
    place: Place,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let place = self.place.clone();
        Metadata::named(self.name.clone())
            .interpolater(move |_, keys| place.of(keys.first().copied().unwrap_or_default()))
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// A value with the type of the key's default, so that every source accepts the same spellings of a value. A text that
/// cannot be converted remains a text, which the key's type then refuses.
fn typed(value: &Json, default: Option<&Value>) -> Result<Value, String> {
    if let Some(Value::Dict(_, known)) = default
        && let Some(pairs) = table(value)
    {
        return match pairs.keys().find(|key| !known.contains_key(*key)) {
            Some(key) => Err(unknown("key", key, &known.keys().map(String::as_str).collect::<Vec<_>>())),
            None => Value::serialize(pairs).map_err(|error| error.to_string()),
        };
    }
    if let Some(Value::Array(_, defaults)) = default {
        // The items of a list that is empty by default may be numbers.
        let first = defaults.first().cloned().unwrap_or(Value::Empty(Tag::Default, Empty::None));
        let item = |value: &Json| typed(value, Some(&first));
        return Ok(match value {
            // An empty text would be as if the key were not given.
            Json::String(text) if text.trim().is_empty() && defaults.is_empty() => text.as_str().into(),
            Json::String(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|text| item(&text.into())).collect::<Result<Vec<_>, _>>()?.into()
            }
            Json::Array(items) => items.iter().map(item).collect::<Result<Vec<_>, _>>()?.into(),
            one => vec![item(one)?].into(),
        });
    }
    let text = match value {
        Json::String(text) => text.trim().to_owned(),
        Json::Number(number) => number.to_string(),
        Json::Bool(word) => word.to_string(),
        Json::Null => return Err("it has no value".into()),
        Json::Array(_) => return Err("it is a list, but one value is expected".into()),
        Json::Object(_) => return Err("it is a table, but a value is expected".into()),
    };
    Ok(match default {
        // An optional key without a default may be a number.
        Some(Value::Num(..) | Value::Empty(..)) => number_of(&text),
        Some(Value::Bool(..)) => text.parse::<bool>().ok().map(Value::from),
        _ => None,
    }
    .unwrap_or_else(|| text.into()))
}

/// A table that is not empty, also as a YAML text, such as `{a: 1, b: 2}` of a flag.
fn table(value: &Json) -> Option<serde_json::Map<String, Json>> {
    let pairs: Option<serde_json::Map<String, Json>> = match value {
        Json::Object(pairs) => Some(pairs.clone()),
        Json::String(text) => serde_saphyr::from_str(text).ok(),
        _ => None,
    };
    pairs.filter(|pairs| !pairs.is_empty())
}

fn number_of(text: &str) -> Option<Value> {
    let whole = text.parse::<u64>().ok().map(Value::from);
    let whole = whole.or_else(|| text.parse::<i64>().ok().map(Value::from));
    whole.or_else(|| text.parse::<f64>().ok().map(Value::from))
}

/// A value as a person writes it.
fn text(value: &Value) -> String {
    match value {
        Value::Array(_, items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => match serde_json::to_value(other) {
            Ok(Json::String(text)) => text,
            Ok(Json::Null) | Err(_) => String::new(),
            Ok(other) => other.to_string(),
        },
    }
}

/// One line: the source, the value, and why it is refused.
fn describe(figment: &Figment, error: &figment::Error) -> String {
    let key = error.path.first().map_or("", String::as_str);
    let place = error.metadata.as_ref().map_or(key.to_owned(), |place| place.interpolate(&Profile::Default, &[key]));
    let value = figment.find_value(key).map(|value| text(&value)).unwrap_or_default();
    let reason = match &error.kind {
        Kind::Message(message) => message.clone(),
        Kind::UnknownVariant(given, names) => unknown("name", given, names),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => match expected.as_str() {
            "u64" => "expected a whole number from 0 to 2^64 - 1".to_owned(),
            "usize" | "u32" => "expected a whole number".to_owned(),
            "f64" => "expected a number".to_owned(),
            "a boolean" => "expected true or false".to_owned(),
            "a sequence" => "expected one or several values, separated by commas".to_owned(),
            other if other.starts_with("struct ") => "expected a table of keys and values".to_owned(),
            other => format!("expected {other}"),
        },
        other => other.to_string(),
    };
    format!("{place}='{value}': {reason}")
}

/// Says that the name of a `kind` is unknown, with the nearest name, or all of them.
pub fn unknown(kind: &str, given: &str, names: &[&str]) -> String {
    match nearest(given, names) {
        Some(near) => format!("unknown {kind} '{given}': did you mean {near}?"),
        None => format!("unknown {kind} '{given}': expected one of {}", names.join(", ")),
    }
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: impl Fn(f64) -> bool,
    expected: &str,
) -> Result<f64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    match number.is_finite() && range(number) {
        true => Ok(number),
        false => Err(D::Error::custom(format!("expected {expected}"))),
    }
}

/// Reads a number above 0.
pub fn above_0<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, |number| number > 0.0, "a number above 0")
}

/// Reads a number of at least 0.
pub fn at_least_0<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, |number| number >= 0.0, "a number of at least 0")
}

/// Reads a number above 0 and below 1.
pub fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, |number| number > 0.0 && number < 1.0, "a number between 0 and 1")
}

/// Reads a share above 0 and up to 1, or a whole number above 1.
pub fn share_or_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let limit = Option::<f64>::deserialize(deserializer)?;
    let is_valid = |limit: f64| limit > 0.0 && limit.is_finite() && (limit <= 1.0 || limit.fract() == 0.0);
    match limit.is_none_or(is_valid) {
        true => Ok(limit),
        false => Err(D::Error::custom("expected a share up to 1, or a whole number above 1")),
    }
}

/// Reads a number from 0 to 10.
pub fn from_0_to_10<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, |number| (0.0..=10.0).contains(&number), "a number from 0 to 10")
}

#[cfg(test)]
mod tests {
    use super::*;

    config! {
        /// An example.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Example {
            /// Number of steps
            /// in all
            pub steps: usize = 3,
            /// Widths to try
            #[alias = "width"]
            pub widths: Vec<usize> = vec![8],
            /// Share of steps
            #[default = "half"]
            #[serde(deserialize_with = "above_0")]
            pub part: f64 = 0.5,
            /// Longest time
            pub limit: Option<u64> = None,
            /// Prints
            pub verbose: bool = false,
            /// Folder of results
            pub out: std::path::PathBuf = "out".into(),
        }
    }

    fn layers() -> Layers<Example> {
        Layers::new(&Example::default())
    }

    #[test]
    fn a_field_defines_the_key_and_later_layers_override_earlier_ones() {
        let [steps, widths, part, limit, ..] = Example::KEYS else { panic!("four keys or more") };
        assert_eq!((steps.name, steps.about), ("steps", "Number of steps in all"));
        assert_eq!((widths.aliases, part.default, limit.default), (&["width"][..], Some("half"), None));

        let all = layers()
            .yaml("a.yaml", "steps: 1\nwidth: 4\nlimit: 7")
            .environment("X_", [("STEPS".to_owned(), "2".to_owned()), ("WIDTHS".to_owned(), "16, 32".to_owned())])
            .flags(&[("steps", "9".into())]);
        let from: Vec<_> =
            all.sources().take(4).map(|(key, value, from)| format!("{} {value} {from}", key.name)).collect();
        assert_eq!(from, ["steps 9 command line", "widths 16,32 environment", "part half default", "limit 7 a.yaml"]);
        let expected = Example { steps: 9, widths: vec![16, 32], limit: Some(7), ..Example::default() };
        assert_eq!(all.resolve().expect("good values"), expected);
    }

    #[test]
    fn a_text_and_a_typed_value_mean_the_same() {
        let texts =
            ["part=1e-3", "widths=8", "verbose=true", "out=12", "limit=18446744073709551615"].map(str::to_owned);
        let from_texts = layers().set(&texts).resolve().expect("good values");
        let typed = "part: 1.0e-3\nwidths: [8]\nverbose: true\nout: 12\nlimit: 18446744073709551615";
        assert_eq!(from_texts, layers().yaml("a.yaml", typed).resolve().expect("good values"));
        assert_eq!((from_texts.part, from_texts.verbose, from_texts.limit), (0.001, true, Some(u64::MAX)));
        assert_eq!(layers().flags(&[("part", "0.1".into())]).resolve().expect("a number").part, 0.1);
    }

    #[test]
    fn every_bad_value_is_reported_with_its_source() {
        let all = layers()
            .yaml("a.yaml", "step: 1\nwidths: [1, two]\nsteps: [1]")
            .environment("X_", [("LIMIT".to_owned(), "-1".to_owned()), ("WIDHTS".to_owned(), "1".to_owned())])
            .flags(&[("part", "0".into())])
            .set(&["steps".into(), "stesp=1".into()])
            .toml("b.toml", "x = 1\ny = [")
            .yaml_file(Path::new("absent.yaml"));
        let message = all.resolve().expect_err("bad values").to_string();
        for line in [
            "unknown setting step in a.yaml: did you mean steps?",
            "steps in a.yaml: it is a list, but one value is expected",
            "widths in a.yaml='1,two': expected a whole number",
            "unknown setting X_WIDHTS: did you mean X_WIDTHS?",
            "X_LIMIT='-1': expected a whole number from 0 to 2^64 - 1",
            "--part='0': expected a number above 0",
            "--set 'steps': write KEY=VALUE",
            "unknown setting --set stesp: did you mean --set steps?",
            "b.toml line 2: ",
            "absent.yaml cannot be read: ",
        ] {
            assert!(message.lines().any(|found| found.starts_with(line)), "{line} is missing from:\n{message}");
        }
        assert_eq!(message.lines().count(), 10, "{message}");
    }
}
