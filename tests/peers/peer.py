"""A peer of candlepower without any framework. The arguments are its fault and the parameters of the models that it loads."""

import array
import json
import os
import sys
import time

FAULT, *COUNTS = sys.argv[1:]
PARAMETERS = dict(zip(("seeded", "language", "series"), map(int, COUNTS)))
WORK = ["generate"] if FAULT == "only-generates" else ["generate", "score", "train", "forward"]
steps, sequences = 0, 1


def answer(**fields):
    print(json.dumps(fields), flush=True)


for line in sys.stdin:
    request = json.loads(line)
    match request["request"]:
        case "describe" if FAULT == "first-version":
            answer(protocol=1, name="plain", version="1.0")
        case "describe":
            answer(protocol=7 if FAULT == "version" else 3, name="plain", version="1.0", work=WORK, sequences=4)
        case "load" if FAULT == "other-dtype":
            answer(unsupported="it computes in f64 only")
        case "load" if FAULT == "refuses":
            answer(error="no memory\nis left")
        case "load":
            kind, = request["model"]
            forecasts = kind == "series" and request["work"] == "forward"
            about = {key: request[key] for key in ("dtype", "device", "threads")}
            count = 1 if FAULT == "other-model" else PARAMETERS[kind]
            answer(**about, parameters=count, weight_bytes=4 * count)
        case "reset" if request["sampling"]["temperature"] > 0:
            answer(unsupported="it chooses tokens by argmax only")
        case "reset":
            sequences = request["sequences"]
            answer()
        case "logits":
            # The next token is likely to be the one after the last; without a fault, as in the test.
            rows = [[8.0 * (token == (id + 1) % 16384) for token in range(16384)] for id in request["ids"][request["from"] :]]
            match FAULT:
                case "short-logits": rows.pop()
                case "nan-logits": rows[0][0] = float("nan")
                case "dies": sys.exit("out of luck")
            with open(request["file"], "wb") as file:
                for row in rows:
                    array.array("f", row).tofile(file)
            answer()
        case "prefill" | "step" | "train" | "forward" as name:
            count = request.get("count", 1)
            steps += count
            time.sleep(0.002 * count)
            tokens = [step + sequence for step in range(count) for sequence in range(sequences)]
            ns = [1_000_000] * count
            losses = [] if forecasts else [2.5] * count
            match FAULT:
                case "dies": sys.exit("out of luck \x1b[2J" + "!" * 5000)
                case "dies-later" if steps > 10: sys.exit("killed in the middle")
                case "hangs": time.sleep(60)
                case "lengths": tokens.append(0)
                case "garbage": print("Loading checkpoint shards: 100%")
                case "long-line": print("x" * (5 << 20))
                case "negative": ns[0] = -5
                case "nan": ns[0] = float("nan")
                case "clock": ns[0] = 10**15
                case "vocabulary": tokens[0] = 16384
                case "closes": os.close(1); time.sleep(60)
                case "losses": losses.append(2.5)
                case "nan-loss": losses[-1] = float("nan")
                case "diverges": losses[-1] = None
            if name in ("train", "forward"):
                answer(losses=losses, ns=ns)
            else:
                answer(tokens=tokens, ns=ns, cache_bytes=2**64 - 1 if FAULT == "sizes" else 4096)
        case "close":
            break
