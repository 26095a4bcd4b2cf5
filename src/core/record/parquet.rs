//! Tables as Parquet files.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};

use super::columns::{Column, DataType, Value};

/// The table as a Parquet file of one row group, compressed with Snappy. The types are UTF-8 string, INT64, DOUBLE,
/// BOOLEAN, and TIMESTAMP in milliseconds of UTC. Every column is optional.
///
/// # Errors
/// When the file cannot be encoded.
pub fn parquet<R>(columns: &[Column<R>], rows: &[R]) -> Result<Vec<u8>> {
    write(columns, rows).map_err(|error| anyhow!("the Parquet file could not be written: {error}"))
}

fn write<R>(columns: &[Column<R>], rows: &[R]) -> parquet::errors::Result<Vec<u8>> {
    let field = |column: &Column<R>| {
        let (physical, logical) = match column.data_type {
            DataType::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            DataType::Whole => (Physical::INT64, None),
            DataType::Real => (Physical::DOUBLE, None),
            DataType::Flag => (Physical::BOOLEAN, None),
            DataType::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
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
        let values = rows.iter().map(|row| (column.get)(row));
        /// The values of one type; a column holds no other.
        macro_rules! put {
            ($type:ty, $kind:ident, |$value:ident| $convert:expr) => {
                put::<$type>(
                    &mut writer,
                    values.map(|value| match value {
                        Some(Value::$kind($value)) => Some($convert),
                        _ => None,
                    }),
                )
            };
        }
        match column.data_type {
            DataType::Text => put!(ByteArrayType, Text, |text| ByteArray::from(text.as_str())),
            DataType::Whole => put!(Int64Type, Whole, |value| value),
            DataType::Real => put!(DoubleType, Real, |value| value),
            DataType::Flag => put!(BoolType, Flag, |value| value),
            DataType::Time => put!(Int64Type, Time, |time| time.timestamp_millis()),
        }?;
        writer.close()?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

/// Writes a column: the values that are present, and a definition level for each row.
fn put<T: parquet::data_type::DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: impl Iterator<Item = Option<T::T>>,
) -> parquet::errors::Result<()> {
    let values: Vec<Option<T::T>> = values.collect();
    let is_present: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&values, Some(&is_present), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::Field,
    };

    use super::{
        super::columns::tests::{ROWS, columns},
        parquet,
    };

    #[test]
    fn parquet_has_types_and_missing_values() {
        let bytes = parquet(&columns(), &ROWS).expect("a file");
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
}
