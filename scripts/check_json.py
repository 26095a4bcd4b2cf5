#!/usr/bin/env python3
"""Validates candlepower's JSON output against the schemas in src/report/schemas, with Python's jsonschema.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-data.txt
    .venv/bin/python scripts/check_json.py record target/candlepower/<run>/records.jsonl
    candlepower compare A B --format json | .venv/bin/python scripts/check_json.py comparison -
    candlepower perplexity FILE --model MODEL --json | .venv/bin/python scripts/check_json.py perplexity -
    candlepower history medium/ --format json | .venv/bin/python scripts/check_json.py history -
"""

import argparse
import json
import sys
from pathlib import Path

import jsonschema

SCHEMAS = Path(__file__).resolve().parent.parent / "src" / "report" / "schemas"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=sorted(path.stem for path in SCHEMAS.glob("*.json")))
    parser.add_argument("file", help="a file with one JSON document per line, or - for standard input")
    arguments = parser.parse_args()
    schema = json.loads((SCHEMAS / f"{arguments.kind}.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.check_schema(schema)
    text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text()
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            for error in validator.iter_errors(json.loads(line)):
                sys.exit(f"{arguments.file} line {number}: {error.json_path}: {error.message}")
            count += 1
    print(f"{arguments.file}: {count} documents as the schema of {arguments.kind} says")


if __name__ == "__main__":
    main()
