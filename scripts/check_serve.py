#!/usr/bin/env python3
"""Runs OpenAI's Python client against `candlepower serve`.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-serve.txt
    .venv/bin/python scripts/check_serve.py target/release/candlepower --model llama-mini --engine tuned

Starts a server on a free port of loopback, and compares the greedy tokens of `candlepower run` with those of the server: whole and
streamed, alone and among 16 concurrent requests. Also checks chats, usage, seeds, stop strings, errors and cancellation. Needs
a model without a tokenizer, whose text shows its tokens. Exits with code 1 if something differs.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.request

import openai

PROMPTS = [[(31 * seed + 7 * place * place + 3) % 1000 for place in range(3 + 5 * seed)] for seed in range(16)]
NEW_TOKENS = 16
KEY = "a-key-of-this-run"


def tokens(text):
    return [int(token) for token in re.findall(r"<(\d+)>", text)]


def in_process(program, arguments, prompt):
    command = [program, "run", *arguments, "--json", "--warmup", "0", "--trials", "1", "--prompt-ids",
               ",".join(map(str, prompt)), "--max-new-tokens", str(NEW_TOKENS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["tokens"]


def streamed(stream):
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.text for choice in chunk.choices)
        usage = chunk.usage or usage
    return text, usage


def check_tokens(client, model, expected):
    def whole(number):
        answer = client.completions.create(
            model=model, prompt=PROMPTS[number], max_tokens=NEW_TOKENS, temperature=0)
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPTS[number]), NEW_TOKENS), usage
        assert usage.total_tokens == usage.prompt_tokens + NEW_TOKENS, usage
        assert answer.choices[0].finish_reason == "length"
        assert tokens(answer.choices[0].text) == expected[number], f"prompt {number}"

    def in_parts(number):
        text, usage = streamed(client.completions.create(
            model=model, prompt=PROMPTS[number], max_tokens=NEW_TOKENS, temperature=0, stream=True,
            stream_options={"include_usage": True}))
        assert usage.completion_tokens == NEW_TOKENS, usage
        assert tokens(text) == expected[number], f"prompt {number}, streamed"

    for number in range(len(PROMPTS)):
        whole(number)
        in_parts(number)
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        for request in (whole, in_parts):
            list(clients.map(request, range(len(PROMPTS))))
    print(f"greedy tokens of {len(PROMPTS)} prompts: the same in process, whole, streamed, and among 16 at once")


def check_chats(client, model):
    messages = [{"role": "system", "content": "be <1>"}, {"role": "user", "content": "<2> <3>"}]
    arguments = dict(model=model, messages=messages, max_completion_tokens=8, temperature=0)
    answer = client.chat.completions.create(**arguments)
    message = answer.choices[0].message
    assert message.role == "assistant" and len(tokens(message.content)) == 8, message
    text = ""
    for chunk in client.chat.completions.create(stream=True, **arguments):
        text += chunk.choices[0].delta.content or ""
    assert text == message.content
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "<4>"}]
    details = client.chat.completions.create(**arguments).usage.prompt_tokens_details
    print(f"chats: the same whole and streamed; the second turn had {details.cached_tokens} cached tokens")


def check_options(client, model):
    arguments = dict(model=model, prompt=[1, 2, 3], max_tokens=8)
    texts = [[choice.text for choice in client.completions.create(n=3, seed=7, temperature=0.9, **arguments).choices]
             for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3, texts
    greedy = client.completions.create(temperature=0, **arguments).choices[0].text
    cut = tokens(greedy)[4]
    answer = client.completions.create(temperature=0, stop=f"<{cut}>", **arguments).choices[0]
    assert answer.finish_reason == "stop" and greedy.startswith(answer.text) and f"<{cut}>" not in answer.text
    logprobs = client.completions.create(temperature=0, logprobs=2, **arguments).choices[0].logprobs
    assert len(logprobs.tokens) == 8 and all(logprob <= 0 for logprob in logprobs.token_logprobs)
    print("seeds, choices, stop strings and log-probabilities")


def check_errors(client, model, url):
    def refused(kind, **arguments):
        try:
            client.completions.create(**{"model": model, "prompt": [1], "max_tokens": 1, **arguments})
        except kind as error:
            assert error.body["message"], error.body
            return error
        raise AssertionError(f"{arguments}: no {kind.__name__}")

    refused(openai.NotFoundError, model="other")
    assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
    assert refused(openai.BadRequestError, prompt=[1] * 5000).code == "context_length_exceeded"
    refused(openai.BadRequestError, extra_body={"unknown": 1})
    try:
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key was accepted")
    except openai.AuthenticationError:
        pass
    assert [own.id for own in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    print("errors and models")


def check_cancellation(client, model, url):
    def metric(name):
        request = urllib.request.Request(url.replace("/v1", "/metrics"), headers={"authorization": f"Bearer {KEY}"})
        text = urllib.request.urlopen(request).read().decode()
        return float(re.search(rf"^candlepower_{name} (.*)$", text, re.M).group(1))

    before = metric("cancelled_sequences_total")
    stream = client.completions.create(
        model=model, prompt=[1], max_tokens=1000, temperature=0, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    started = time.monotonic()
    while metric("running_sequences") > 0 or metric("cancelled_sequences_total") == before:
        assert time.monotonic() < started + 5, "the sequence goes on without its client"
        time.sleep(0.01)
    print(f"cancellation: the place was free {1000 * (time.monotonic() - started):.0f} ms after the client left")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path, help="the command candlepower")
    parser.add_argument("--model", default="llama-mini", help="a model with seeded weights")
    known, arguments = parser.parse_known_args()
    program, arguments = str(known.program.resolve()), ["--model", known.model, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        key = pathlib.Path(folder, "key")
        key.write_text(KEY)
        expected = [in_process(program, arguments, prompt) for prompt in PROMPTS]
        server = subprocess.Popen([program, "serve", *arguments, "--port", "0", "--api-key-file", key],
                                  stdout=subprocess.PIPE, text=True)
        try:
            url = server.stdout.readline().strip() + "/v1"
            client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
            check_tokens(client, known.model, expected)
            check_chats(client, known.model)
            check_options(client, known.model)
            check_errors(client, known.model, url)
            check_cancellation(client, known.model, url)
        finally:
            server.terminate()
        assert server.wait(30) == 0, f"exit code {server.returncode}"


if __name__ == "__main__":
    main()
