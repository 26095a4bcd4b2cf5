//! Rows as columns with names and types, written as CSV and as Parquet. One list says what a file holds; both are made of
//! it.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use chrono::{DateTime, SecondsFormat, Utc};
use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};

/// A column of a table whose rows are `R`.
pub struct Column<R> {
    /// With its unit, where it has one.
    pub name: &'static str,
    pub get: Get<R>,
}

/// Type of a column, and how a row has it. Text is UTF-8; every column may be empty in a row.
pub enum Get<R> {
    Text(fn(&R) -> Option<String>),
    Whole(fn(&R) -> Option<i64>),
    Real(fn(&R) -> Option<f64>),
    Flag(fn(&R) -> Option<bool>),
    /// To the millisecond.
    Time(fn(&R) -> Option<DateTime<Utc>>),
}

/// The table as CSV, with a line of names; what is missing is empty.
///
/// # Errors
/// When the text can't be made.
pub fn csv<R>(columns: &[Column<R>], rows: &[R]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns.iter().map(|column| column.name))?;
    for row in rows {
        let cell = |column: &Column<R>| match column.get {
            Get::Text(get) => get(row),
            Get::Whole(get) => get(row).map(|value| value.to_string()),
            Get::Real(get) => get(row).map(|value| value.to_string()),
            Get::Flag(get) => get(row).map(|value| value.to_string()),
            Get::Time(get) => get(row).map(|value| value.to_rfc3339_opts(SecondsFormat::Millis, true)),
        };
        writer.write_record(columns.iter().map(|column| cell(column).unwrap_or_default()))?;
    }
    writer.into_inner().context("the table could not be written")
}

/// The table as a Parquet file of one row group, compressed with Snappy. Text is a UTF-8 string, whole numbers are INT64,
/// others DOUBLE, flags BOOLEAN, times TIMESTAMP in milliseconds of UTC; every column is optional.
///
/// # Errors
/// When the file can't be made.
pub fn parquet<R>(columns: &[Column<R>], rows: &[R]) -> Result<Vec<u8>> {
    write(columns, rows).map_err(|error| anyhow!("the Parquet file could not be made: {error}"))
}

fn write<R>(columns: &[Column<R>], rows: &[R]) -> parquet::errors::Result<Vec<u8>> {
    let field = |column: &Column<R>| {
        let (physical, logical) = match column.get {
            Get::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Get::Whole(_) => (Physical::INT64, None),
            Get::Real(_) => (Physical::DOUBLE, None),
            Get::Flag(_) => (Physical::BOOLEAN, None),
            Get::Time(_) => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
        };
        let builder = Type::primitive_type_builder(column.name, physical).with_repetition(Repetition::OPTIONAL);
        builder.with_logical_type(logical).build().map(Arc::new)
    };
    let fields = columns.iter().map(field).collect::<Result<_, _>>()?;
    let schema = Arc::new(Type::group_type_builder("candlepower").with_fields(fields).build()?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    for column in columns {
        let Some(mut writer) = group.next_column()? else { break };
        match column.get {
            Get::Text(get) => {
                put::<ByteArrayType, _>(&mut writer, rows, |row| get(row).map(|text| ByteArray::from(text.as_str())))?
            }
            Get::Whole(get) => put::<Int64Type, _>(&mut writer, rows, get)?,
            Get::Real(get) => put::<DoubleType, _>(&mut writer, rows, get)?,
            Get::Flag(get) => put::<BoolType, _>(&mut writer, rows, get)?,
            Get::Time(get) => put::<Int64Type, _>(&mut writer, rows, |row| Some(get(row)?.timestamp_millis()))?,
        }
        writer.close()?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

/// Parquet keeps the values that there are, and for each row whether there is one.
fn put<T: parquet::data_type::DataType, R>(
    writer: &mut SerializedColumnWriter<'_>,
    rows: &[R],
    get: impl Fn(&R) -> Option<T::T>,
) -> parquet::errors::Result<()> {
    let values: Vec<Option<T::T>> = rows.iter().map(get).collect();
    let is_there: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&values, Some(&is_there), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::Field,
    };

    use super::*;

    type Row = (Option<&'static str>, Option<i64>, Option<f64>, Option<bool>);

    const COLUMNS: [Column<Row>; 4] = [
        Column { name: "name", get: Get::Text(|row| row.0.map(str::to_owned)) },
        Column { name: "size_bytes", get: Get::Whole(|row| row.1) },
        Column { name: "time_ms", get: Get::Real(|row| row.2) },
        Column { name: "is_new", get: Get::Flag(|row| row.3) },
    ];
    const ROWS: [Row; 3] = [
        (Some("größe, \"a\""), Some(i64::MAX), Some(0.1), Some(true)),
        (None, None, None, None),
        (Some(""), Some(-1), Some(f64::MIN_POSITIVE), Some(false)),
    ];

    #[test]
    fn parquet_has_the_types_and_the_gaps() {
        let bytes = parquet(&COLUMNS, &ROWS).expect("a file");
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("a Parquet file");
        let rows: Vec<Vec<Field>> = reader
            .get_row_iter(None)
            .expect("rows")
            .map(|row| row.expect("a row").into_columns().into_iter().map(|(_, field)| field).collect())
            .collect();
        let text = |text: &str| Field::Str(text.into());
        assert_eq!(rows[0], [text("größe, \"a\""), Field::Long(i64::MAX), Field::Double(0.1), Field::Bool(true)]);
        assert_eq!(rows[1], [Field::Null, Field::Null, Field::Null, Field::Null]);
        assert_eq!(rows[2], [text(""), Field::Long(-1), Field::Double(f64::MIN_POSITIVE), Field::Bool(false)]);
    }

    #[test]
    fn csv_has_a_line_of_names() {
        let text = String::from_utf8(csv(&COLUMNS, &ROWS).expect("a table")).expect("UTF-8");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "name,size_bytes,time_ms,is_new");
        assert_eq!(lines[1], "\"größe, \"\"a\"\"\",9223372036854775807,0.1,true");
        assert_eq!(lines[2], ",,,");
    }
}
