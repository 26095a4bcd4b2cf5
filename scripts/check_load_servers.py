"""Compares what `candlepower load` counts with what servers that others wrote sent, and with their logs.

    .venv/bin/pip install -r scripts/requirements-servers.txt
    PYTHON=.venv/bin/python scripts/real_models.sh smollm2
    .venv/bin/python scripts/check_load_servers.py PROGRAM

PROGRAM is candlepower. The servers are those of llama-cpp-python, of transformers and candlepower's own, directly and behind nginx with and
without buffers, and one that is killed and started again. All listen on loopback. Without nginx, its cases are left out with a line. A witness
passes the bytes between the load and each server on unchanged, and reads the answers with a parser of its own: which ended with a reason, and
how many events had text. Prints a line for each case, and exits with code 1 if a count is not that of the witness or of the server's log, or
if an answer that was truncated or buffered passed as right.
"""

import collections
import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "target" / "real-models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SAFETENSORS = MODEL.with_suffix("")
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
NEW_TOKENS = 40
REQUESTS = 24
# Four requests a second, whatever becomes of them.
PACED = ("constant", "--rate", 4)
START_S = 180
PROGRAM = None


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Witness:
    """Passes connections on to a port, and keeps the bytes of each answer."""

    def __init__(self, upstream):
        self.upstream, self.answers = upstream, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            client.close()
            return
        # One list for each request: a connection may be kept.
        answers = []

        def forward(source, target, is_answer):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if is_answer and answers:
                        answers[-1].append(data)
                    elif not is_answer and data.startswith(b"POST"):
                        answers.append([])
                        self.answers.append(answers[-1])
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=forward, args=(server, client, True), daemon=True)
        back.start()
        forward(client, server, False)
        back.join()
        client.close()
        server.close()

    def counts(self):
        """Answers that are complete, and their events with text."""
        complete = [events for is_complete, events in map(answer, self.answers) if is_complete]
        return len(complete), sum(complete)


def answer(parts):
    """Whether an answer ends with a reason, and how many of its events have text."""
    response = http.client.HTTPResponse(SimpleNamespace(makefile=lambda _: io.BytesIO(b"".join(parts))))
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, OSError):
        return False, 0
    is_complete, events = False, 0
    for line in body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:]).get("choices", []):
            is_complete |= choice.get("finish_reason") is not None
            events += bool(choice.get("text") or choice.get("delta", {}).get("content"))
    return is_complete and response.status == 200, events


class Server:
    """A process that listens on a port, and its log."""

    def __init__(self, folder, name, command, port, ready="/v1/models"):
        self.log, self.port, self.command, self.ready = folder / f"{name}.log", port, command, ready
        self.process = None
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(list(map(str, self.command)), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env=os.environ | {"HF_HUB_OFFLINE": "1"})
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", self.ready)
                connection.getresponse().read()
                return
            time.sleep(0.2)
        self.stop()
        sys.exit(f"error: {self.command[0]} did not start:\n{self.log.read_text()[-2000:]}")

    def stop(self, kind=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(kind)
        self.process.wait()

    def posts(self):
        """The statuses of the POST requests in an access log of uvicorn or of nginx."""
        return collections.Counter(re.findall(r'"POST [^"]*" (\d{3})', self.log.read_text()))


def llama_cpp(folder, port):
    command = [sys.executable, "-m", "llama_cpp.server", "--model", MODEL, "--host", "127.0.0.1", "--port", port, "--n_ctx", 1024]
    return Server(folder, f"llama_cpp-{port}", command, port)


def transformers(folder, port):
    program = pathlib.Path(sys.executable).with_name("transformers")
    command = [program, "serve", "--host", "127.0.0.1", "--port", port, "--device", "cpu", "--log-level", "info", SAFETENSORS]
    return Server(folder, f"transformers-{port}", command, port, "/health")


def candlepower(folder, port):
    command = [PROGRAM, "serve", "--model", MODEL, "--engine", "tuned", "--port", port]
    return Server(folder, f"candlepower-{port}", command, port)


def nginx(folder, upstream, directives):
    port = free_port()
    work = folder / f"nginx-{port}"
    work.mkdir()
    temporary = "".join(f"{name}_temp_path {work}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
events {{}}
http {{ {temporary} access_log /dev/stdout;
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; {directives} }} }} }}
""")
    return Server(folder, f"nginx-{port}", [NGINX, "-e", work / "error.log", "-c", work / "nginx.conf"], port)


def load(folder, port, model, api, schedule):
    """A load that runs."""
    command = [PROGRAM, "load", "--url", f"http://127.0.0.1:{port}", "--model", model, "--api", api, "--arrivals", *schedule, "--requests", REQUESTS,
               "--prompt-tokens", 24, "--max-new-tokens", NEW_TOKENS, "--min-duration", 0, "--percentile", 50, "--max-lateness-ms", 1000,
               "--json"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"CANDLEPOWER_OUT": str(folder / "out")})


def check(name, server, proxy=None, directives="", model=str(MODEL), api="completions", schedule=("closed",), killed=False, right=True):
    """Runs a case, and returns whether all counts are right. `right` tells whether the answers permit a valid run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        server = server(folder, free_port())
        stack.callback(server.stop)
        witness = Witness(server.port)
        front = proxy and proxy(folder, witness.port, directives)
        if front:
            stack.callback(front.stop)
        logged = front or server
        before = logged.posts()
        process = load(folder, (front or witness).port, model, api, schedule)
        if killed:
            time.sleep(2)
            server.stop(signal.SIGKILL)
            time.sleep(1)
            server.start()
        record = json.loads(process.communicate(timeout=600)[0])
        tally = record["load"]["tally"]
        # The log of an answer may follow it.
        time.sleep(0.5)
        statuses = logged.posts() - before
        complete, events = witness.counts()
        outcomes = tally["outcomes"]
        # That the generator was late or stood still says that this machine is busy, and nothing about the answers.
        reasons = [reason for reason in record["conditions"]["doubts"] if not reason.startswith("The generator ")]
        found = [("requests", sum(outcomes.values()), REQUESTS), ("complete answers", outcomes.get("ok", 0), complete),
                 ("events with text", tally["tokens"]["chunks"], events), ("valid", not reasons, right)]
        if statuses:
            found.append(("requests in the log", sum(outcomes.values()), statuses.total()))
            failed = sum(count for status, count in statuses.items() if status.startswith("5"))
            found.append(("statuses of 5xx in the log", outcomes.get("server_error", 0), failed))
    faults = [f"{what} {own}, not {truth}" for what, own, truth in found if own != truth]
    counts = outcomes | {key: tally["oddities"][key] for key in ("all_at_once",) if key in tally["oddities"]}
    print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}; {events} events; "
          f"{'invalid' if reasons else 'valid'}; {'; '.join(faults) or 'right'}", flush=True)
    return not faults


def main():
    global PROGRAM
    PROGRAM = pathlib.Path(sys.argv[1]).resolve()
    concurrent = ("closed", "--clients", 4)
    # Each of these servers asks proxies not to buffer, which this directive ignores.
    deaf = "proxy_ignore_headers X-Accel-Buffering;"
    checks = [
        lambda: check("llama-cpp-python, one client", llama_cpp),
        lambda: check("llama-cpp-python, four clients, which end each other's answers", llama_cpp, schedule=concurrent, right=False),
        lambda: check("transformers, one client", transformers, model=str(SAFETENSORS), api="chat"),
        lambda: check("transformers, four clients", transformers, model=str(SAFETENSORS), api="chat", schedule=concurrent),
        lambda: check("candlepower, four clients", candlepower, schedule=concurrent),
        lambda: check("candlepower, killed and started again", candlepower, schedule=PACED, killed=True, right=False),
    ]
    if NGINX:
        checks += [
            lambda: check("llama-cpp-python behind nginx", llama_cpp, nginx),
            lambda: check("llama-cpp-python behind nginx, which buffers", llama_cpp, nginx, deaf, right=False),
            lambda: check("llama-cpp-python behind nginx without buffers", llama_cpp, nginx, deaf + "proxy_buffering off;"),
            lambda: check("candlepower behind nginx", candlepower, nginx),
            lambda: check("candlepower behind nginx, which buffers", candlepower, nginx, deaf, right=False),
            lambda: check("candlepower behind nginx, killed and started again", candlepower, nginx, schedule=PACED, killed=True, right=False),
        ]
    else:
        print("nginx is not installed: its cases are left out", file=sys.stderr)
    sys.exit(0 if all([check() for check in checks]) else 1)


if __name__ == "__main__":
    main()
