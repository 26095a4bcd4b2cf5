"""Compares the times that `candlepower load`, GuideLLM and AIPerf measure at the same time on one server.

    target/clients/venv/bin/python scripts/check_load_tools.py PROGRAM TOKENIZER

PROGRAM is candlepower. TOKENIZER is a folder with a tokenizer, such as target/clients/tokenizer. `scripts/check_clients.sh` makes the
interpreter's environment and that folder. The server is this script: it sends the first token about 250 ms after a request and each other one
after about 20 ms more, and keeps the times. Each tool is one client that sends one request after the other. Prints the medians, and exits with
code 1 if one is more than 2 % from that of `candlepower load`, or that one from the server's.
"""

import asyncio
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading

TTFT_S, ITL_S, TOKENS = 0.250, 0.020, 32
REQUESTS = 30
TOLERANCE = 0.02
# Seconds of each answer: to the first token and to the last one.
served = []


async def serve(reader, writer):
    """Answers the requests of a connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            loop = asyncio.get_running_loop()
            arrived = loop.time()
            lines = head.decode().split("\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
            request = json.loads(await reader.readexactly(length)) if length else {}
            if lines[0].startswith("GET"):
                body = json.dumps({"object": "list", "data": [{"id": "paced", "object": "model"}]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
                continue
            await answer(writer, "chat" in lines[0], request, arrived)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(writer, is_chat, request, arrived):
    loop = asyncio.get_running_loop()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    count = int(request.get("max_tokens") or request.get("max_completion_tokens") or TOKENS)

    def event(fields):
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        text = json.dumps({"id": "1", "object": kind, "created": 1, "model": "paced"} | fields)
        data = f"data: {text}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    sent = []
    for number in range(count):
        await asyncio.sleep(arrived + TTFT_S + number * ITL_S - loop.time())
        content = {"delta": {"role": "assistant", "content": " the"}} if is_chat else {"text": " the"}
        event({"choices": [{"index": 0, "finish_reason": "length" if number + 1 == count else None} | content]})
        await writer.drain()
        sent.append(loop.time() - arrived)
    served.append((sent[0], sent[-1]))
    event({"choices": [], "usage": {"prompt_tokens": 64, "completion_tokens": count, "total_tokens": 64 + count}})
    end = b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))
    await writer.drain()


def start():
    """The port of a server on a thread of its own."""
    ports = []
    is_bound = threading.Event()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        is_bound.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    is_bound.wait()
    return ports[0]


def candlepower(program, url, tokenizer, folder):
    command = [program, "load", "--url", url, "--model", "paced", "--api", "chat", "--arrivals", "closed", "--requests", str(REQUESTS),
               "--prompt-tokens", "64", "--max-new-tokens", str(TOKENS), "--tokenizer", f"{tokenizer}/tokenizer.json", "--min-duration", "0",
               "--percentile", "50", "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | {"CANDLEPOWER_OUT": folder}, check=False)
    measures = json.loads(found.stdout)["measures"]
    return {"TTFT": measures["ttft_from_send_p50_ms"], "TPOT": measures["tpot_p50_ms"], "E2E": measures["e2e_from_send_p50_ms"]}


def guidellm(url, tokenizer, folder):
    program = os.path.join(os.path.dirname(sys.executable), "guidellm")
    subprocess.run([program, "run", "--backend", f"kind=openai_http,target={url},model=paced,request_format=/v1/chat/completions",
                    "--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={REQUESTS}",
                    "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
                    "--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={TOKENS}", "--output", "kind=json,path=report.json",
                    "--disable-console-interactive"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads(pathlib.Path(folder, "report.json").read_text())["benchmarks"][0]["metrics"]
    median = lambda name: metrics[name]["successful"]["median"]
    # The latency of a request is in seconds.
    return {"TTFT": median("time_to_first_token_ms"), "TPOT": median("inter_token_latency_ms"), "E2E": median("request_latency") * 1e3}


def aiperf(url, tokenizer, folder):
    program = os.path.join(os.path.dirname(sys.executable), "aiperf")
    # With this variable, whatever its value, it takes the path of a folder for a name in a hub.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([program, "profile", "--model", "paced", "--url", url, "--endpoint-type", "chat", "--streaming", "--tokenizer", tokenizer,
                    "--request-count", str(REQUESTS), "--concurrency", "1", "--isl", "64", "--osl", str(TOKENS), "--ui", "none",
                    "--artifact-dir", "aiperf"], cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)
    (report,) = pathlib.Path(folder, "aiperf").rglob("profile_export_aiperf.json")
    found = json.loads(report.read_text())
    return {"TTFT": found["time_to_first_token"]["p50"], "TPOT": found["inter_token_latency"]["p50"], "E2E": found["request_latency"]["p50"]}


def main():
    program, tokenizer = (str(pathlib.Path(argument).resolve()) for argument in sys.argv[1:3])
    url = f"http://127.0.0.1:{start()}"
    tools = {"candlepower": lambda folder: candlepower(program, url, tokenizer, folder),
             "GuideLLM": lambda folder: guidellm(url, tokenizer, folder), "AIPerf": lambda folder: aiperf(url, tokenizer, folder)}
    found = {}

    def run(name):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = tools[name](folder)

    threads = [threading.Thread(target=run, args=(name,)) for name in tools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = (statistics.median(times) * 1e3 for times in zip(*served))
    truth = {"TTFT": first, "TPOT": (last - first) / (TOKENS - 1), "E2E": last}
    print("| median, ms | server | " + " | ".join(tools) + " |\n|---|---:|" + "---:|" * len(tools))
    is_wrong = False
    for time, of_server in truth.items():
        values = [found[name][time] for name in tools if name in found]
        print(f"| {time} | {of_server:.2f} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
        is_wrong |= any(abs(value / values[0] - 1) > TOLERANCE for value in values) or abs(values[0] / of_server - 1) > TOLERANCE
    sys.exit(is_wrong or len(found) < len(tools))


main()
