"""AIPerf, with its defaults but for the length of the run. packages: aiperf"""

import json
import os
import subprocess
import sys
from pathlib import Path

URL, KEY, MODEL, TOKENIZER = (os.environ[name] for name in ("URL", "KEY", "MODEL", "TOKENIZER"))


def main():
    # With this variable, whatever its value, it takes the path of a folder for a name in a hub.
    os.environ.pop("HF_HUB_OFFLINE", None)
    program = os.path.join(os.path.dirname(sys.executable), "aiperf")
    for kind in ("chat", "completions"):
        subprocess.run([
            program, "profile", "--model", MODEL, "--url", URL.removesuffix("/v1"), "--endpoint-type", kind,
            "--streaming", "--tokenizer", TOKENIZER, "--api-key", KEY, "--request-count", "4", "--concurrency", "1",
            "--isl", "64", "--osl", "16", "--extra-inputs", "ignore_eos:true", "--ui", "none",
            "--artifact-dir", kind,
        ], check=True)
        (report,) = Path(kind).rglob("profile_export_aiperf.json")
        found = json.loads(report.read_text())
        assert found["request_count"]["avg"] == 4 and "error_request_count" not in found, found
        # By default, it also encodes the text of answers, which may have fewer tokens than the model generated.
        assert found["usage_completion_tokens"]["avg"] == 16, found["usage_completion_tokens"]


main()
