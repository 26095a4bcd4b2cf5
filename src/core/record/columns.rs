//! A table of data as typed columns, written as CSV and as Parquet from one list of columns.

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};

#[cfg(feature = "parquet")]
pub use super::parquet::parquet;
use super::{Better, MeasureUnit};

/// A column of a table whose rows are `R`. Every column may be empty in a row.
pub struct Column<R> {
    /// Name in the header. It ends in the unit of the column, if the column has one.
    pub name: &'static str,
    /// One or two sentences for the documentation.
    pub explanation: String,
    /// `None` where a unit means nothing, for example for a name.
    pub unit: Option<MeasureUnit>,
    /// The direction of improvement; `None` where neither is better.
    pub better: Option<Better>,
    /// Type of the values.
    pub data_type: DataType,
    /// Reads the value from a row.
    pub get: Get<R>,
}

/// Value of a column in a row; `None` leaves the cell empty.
pub(crate) type Get<R> = Box<dyn Fn(&R) -> Option<Value>>;

impl<R> Column<R> {
    /// A column without a unit, typed by what `get` returns.
    pub fn new<C: Cell>(name: &'static str, explanation: &str, get: impl Fn(&R) -> C + 'static) -> Self {
        Self {
            name,
            explanation: explanation.to_owned(),
            unit: None,
            better: None,
            data_type: C::DATA_TYPE,
            get: Box::new(move |row| get(row).value()),
        }
    }
}

/// Type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// UTF-8.
    Text,
    /// A 64-bit integer.
    Whole,
    /// A 64-bit floating-point number.
    Real,
    /// True or false.
    Flag,
    /// A time in UTC, to the millisecond.
    Time,
}

/// Value of a column in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// UTF-8.
    Text(String),
    /// A 64-bit integer.
    Whole(i64),
    /// A 64-bit floating-point number.
    Real(f64),
    /// True or false.
    Flag(bool),
    /// A time in UTC.
    Time(DateTime<Utc>),
}

impl Value {
    /// The value as a number, if it is one.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(value) => Some(*value as f64),
            Self::Real(value) => Some(*value),
            Self::Text(_) | Self::Flag(_) | Self::Time(_) => None,
        }
    }
}

/// A Rust type that a column can hold.
pub trait Cell {
    /// Type of the column.
    const DATA_TYPE: DataType;

    /// `None` leaves the cell empty.
    fn value(&self) -> Option<Value>;
}

macro_rules! cell {
    ($type:ty, $kind:ident, |$value:ident| $convert:expr) => {
        impl Cell for $type {
            const DATA_TYPE: DataType = DataType::$kind;

            fn value(&self) -> Option<Value> {
                let $value = self;
                $convert.map(Value::$kind)
            }
        }
    };
}

cell!(String, Text, |text| Some(text.clone()));
cell!(usize, Whole, |count| i64::try_from(*count).ok());
cell!(u64, Whole, |count| i64::try_from(*count).ok());
cell!(u32, Whole, |count| Some(i64::from(*count)));
cell!(i64, Whole, |count| Some(*count));
cell!(f64, Real, |value| Some(*value));
cell!(bool, Flag, |flag| Some(*flag));
cell!(DateTime<Utc>, Time, |time| Some(*time));

impl<C: Cell> Cell for Option<C> {
    const DATA_TYPE: DataType = C::DATA_TYPE;

    fn value(&self) -> Option<Value> {
        self.as_ref()?.value()
    }
}

/// The table as CSV with a header line. A missing value is an empty cell.
///
/// # Errors
/// When a row cannot be encoded.
pub fn csv<R>(columns: &[Column<R>], rows: &[R]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns.iter().map(|column| column.name))?;
    for row in rows {
        let text = |value| match value {
            Value::Text(text) => crate::text::csv(&text),
            Value::Whole(value) => value.to_string(),
            Value::Real(value) => value.to_string(),
            Value::Flag(value) => value.to_string(),
            Value::Time(value) => value.to_rfc3339_opts(SecondsFormat::Millis, true),
        };
        writer.write_record(columns.iter().map(|column| (column.get)(row).map_or(String::new(), text)))?;
    }
    writer.into_inner().context("the CSV table could not be written")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub type Row = (Option<&'static str>, Option<i64>, Option<f64>, Option<bool>);

    pub(crate) fn columns() -> [Column<Row>; 4] {
        [
            Column::new("name", "", |row: &Row| row.0.map(str::to_owned)),
            Column::new("size_bytes", "", |row: &Row| row.1),
            Column::new("time_ms", "", |row: &Row| row.2),
            Column::new("is_new", "", |row: &Row| row.3),
        ]
    }

    pub(crate) const ROWS: [Row; 3] = [
        (Some("größe, \"a\""), Some(i64::MAX), Some(0.1), Some(true)),
        (None, None, None, None),
        (Some(""), Some(-1), Some(f64::MIN_POSITIVE), Some(false)),
    ];

    #[test]
    fn csv_has_a_header() {
        let text = String::from_utf8(csv(&columns(), &ROWS).expect("a table")).expect("UTF-8");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "name,size_bytes,time_ms,is_new");
        assert_eq!(lines[1], "\"größe, \"\"a\"\"\",9223372036854775807,0.1,true");
        assert_eq!(lines[2], ",,,");
    }
}
