"""GuideLLM, with its defaults but for the length of the run. packages: guidellm"""

import json
import os
import subprocess
import sys

URL, KEY, MODEL, TOKENIZER = (os.environ[name] for name in ("URL", "KEY", "MODEL", "TOKENIZER"))


def main():
    program = os.path.join(os.path.dirname(sys.executable), "guidellm")
    for path in ("/v1/chat/completions", "/v1/completions"):
        backend = f"kind=openai_http,target={URL.removesuffix('/v1')},model={MODEL},api_key={KEY},request_format={path}"
        subprocess.run([
            program, "run", "--backend", backend, "--profile", "kind=synchronous", "--constraint",
            "kind=max_requests,count=4", "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}", "--data",
            "kind=synthetic_text,prompt_tokens=64,output_tokens=16", "--output", "kind=json,path=report.json",
            "--disable-console-interactive",
        ], check=True)
        with open("report.json") as file:
            (benchmark,) = json.load(file)["benchmarks"]
        requests = benchmark["metrics"]["request_totals"]
        assert (requests["successful"], requests["errored"]) == (4, 0), requests
        assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == 16


main()
