#!/usr/bin/env python3
"""Reads the tables of a report or a sweep with pyarrow, pandas, polars and DuckDB, and checks that they agree.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-data.txt
    .venv/bin/python scripts/check_data.py target-reports/<machine>/<utc> target/candlepower/<run>/sweep.parquet

In the folder of a report, results.parquet and results.csv must be equal. Exits with code 1 if something differs.
"""

import argparse
import datetime
import math
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow
import pyarrow.parquet

# The names that each reader may use for a column of the file's type.
TYPES = {
    pyarrow.string(): ({"str", "string", "object"}, {polars.String}, {"VARCHAR"}),
    pyarrow.int64(): ({"int64", "float64", "Int64"}, {polars.Int64}, {"BIGINT"}),
    pyarrow.float64(): ({"float64"}, {polars.Float64}, {"DOUBLE"}),
    pyarrow.timestamp("ms", tz="UTC"): (
        {"datetime64[ms, UTC]"}, {polars.Datetime("ms", "UTC")}, {"TIMESTAMP WITH TIME ZONE"}),
    pyarrow.bool_(): ({"bool", "object", "boolean"}, {polars.Boolean}, {"BOOLEAN"}),
}


def timestamp(value):
    """Of a time that may be text, or without a zone, which then is UTC."""
    moment = pandas.Timestamp(value)
    return (moment if moment.tzinfo else moment.tz_localize("UTC")).timestamp()


def same(a, b):
    a, b = (None if isinstance(x, float) and math.isnan(x) else x for x in (a, b))
    if isinstance(a, datetime.datetime):
        return pandas.Timestamp(a).timestamp() == timestamp(b)
    return a == b or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-12))


def check(file):
    table = pyarrow.parquet.read_table(file)
    by_polars, by_pandas = polars.read_parquet(file), pandas.read_parquet(file)
    relation = duckdb.sql(f"select * from read_parquet('{file}')")
    duck_types = dict(zip(relation.columns, map(str, relation.types)))
    duck_rows = relation.fetchall()
    for number, field in enumerate(table.schema):
        in_pandas, in_polars, in_duckdb = TYPES[field.type]
        # pandas assigns no type to a column that is entirely empty.
        filled = table[field.name].null_count < table.num_rows
        if filled:
            assert str(by_pandas[field.name].dtype) in in_pandas, (field, by_pandas[field.name].dtype)
        assert by_polars.schema[field.name] in in_polars, (field, by_polars.schema[field.name])
        assert duck_types[field.name] in in_duckdb, (field, duck_types[field.name])
        values = table[field.name].to_pylist()
        for name, others in [
            ("pandas", [None if pandas.isna(x) else x for x in by_pandas[field.name]]),
            ("polars", by_polars[field.name].to_list()),
            ("DuckDB", [row[number] for row in duck_rows]),
        ]:
            assert len(others) == len(values) and all(map(same, values, others)), f"{file}: {field.name} in {name}"
    print(f"{file}: {table.num_rows} rows, {table.num_columns} columns, the same in pandas, polars and DuckDB")
    return table


def check_csv(file, table):
    frames = {
        "pandas": pandas.read_csv(file).to_dict("list"),
        "polars": polars.read_csv(file, infer_schema_length=None).to_dict(as_series=False),
        "DuckDB": duckdb.sql(f"select * from read_csv('{file}')").df().to_dict("list"),
    }
    for name, columns in frames.items():
        assert list(columns) == table.column_names, f"{file}: columns in {name}"
        for column in table.column_names:
            values, others = table[column].to_pylist(), columns[column]
            others = [None if pandas.isna(x) else x for x in others]
            agree = all(same(a, b) or str(a) == str(b) or (a == "" and b is None) for a, b in zip(values, others))
            assert len(values) == len(others) and agree, f"{file}: {column} in {name}"
    print(f"{file}: as the Parquet file in pandas, polars and DuckDB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="a report's folder, or a Parquet file")
    for path in parser.parse_args().paths:
        if path.is_dir():
            check_csv(path / "results.csv", check(path / "results.parquet"))
        else:
            check(path)


if __name__ == "__main__":
    main()
