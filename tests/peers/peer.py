"""A peer of candlepower without any framework. The argument names its fault."""

import json
import os
import sys
import time

FAULT = sys.argv[1]
PARAMETERS = 31201792  # Those of llama-mini.


def answer(**fields):
    print(json.dumps(fields), flush=True)


for line in sys.stdin:
    request = json.loads(line)
    match request["request"]:
        case "describe":
            answer(protocol=7 if FAULT == "version" else 1, name="plain", version="1.0")
        case "load" if FAULT == "other-dtype":
            answer(unsupported="it computes in f64 only")
        case "load" if FAULT == "refuses":
            answer(error="no memory\nis left")
        case "load":
            about = {key: request[key] for key in ("dtype", "device", "threads")}
            answer(**about, parameters=1 if FAULT == "other-model" else PARAMETERS, weight_bytes=4 * PARAMETERS)
        case "reset" if request["sampling"]["temperature"] > 0:
            answer(unsupported="it chooses tokens by argmax only")
        case "reset":
            answer()
        case "prefill" | "step":
            count = request.get("count", 1)
            time.sleep(0.002 * count)
            tokens, ns = list(range(count)), [1_000_000] * count
            match FAULT:
                case "dies": sys.exit("out of luck \x1b[2J" + "!" * 5000)
                case "hangs": time.sleep(60)
                case "lengths": tokens.append(0)
                case "garbage": print("Loading checkpoint shards: 100%")
                case "long-line": print("x" * (5 << 20))
                case "negative": ns[0] = -5
                case "nan": ns[0] = float("nan")
                case "clock": ns[0] = 10**15
                case "vocabulary": tokens[0] = 16384
                case "closes": os.close(1); time.sleep(60)
            answer(tokens=tokens, ns=ns, cache_bytes=4096)
        case "close":
            break
