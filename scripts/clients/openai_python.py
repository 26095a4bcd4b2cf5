"""OpenAI's Python client. packages: openai"""

import asyncio
import os

import openai

URL, KEY, MODEL = (os.environ[name] for name in ("URL", "KEY", "MODEL"))
MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour of candles."}]


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def main():
    client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL

    chat = dict(model=MODEL, messages=MESSAGES, max_completion_tokens=16, temperature=0)
    answer = client.chat.completions.create(logprobs=True, top_logprobs=2, **chat)
    choice, usage = answer.choices[0], answer.usage
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason in ("stop", "length")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob == token.top_logprobs[0].logprob for token in tokens)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **chat))
    assert "".join(part.delta.content or "" for chunk in chunks for part in chunk.choices) == choice.message.content
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    with client.chat.completions.stream(**chat) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == choice.message.content

    text = dict(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    completion = client.completions.create(logprobs=1, echo=True, **text).choices[0]
    assert completion.text.startswith(text["prompt"]) and "Paris" in completion.text
    assert "".join(completion.logprobs.tokens) == completion.text and completion.logprobs.token_logprobs[0] is None
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **text))
    assert text["prompt"] + streamed == completion.text
    texts = {choice.text for choice in client.completions.create(**text | dict(n=3, temperature=1.5, seed=1)).choices}
    assert len(texts) > 1

    async def several():
        async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*[client.completions.create(**text) for _ in range(4)])

    assert {answer.choices[0].text for answer in asyncio.run(several())} == {streamed}

    refused(openai.NotFoundError, lambda: client.completions.create(**text | dict(model="other")))
    assert refused(openai.BadRequestError, lambda: client.completions.create(**text | dict(top_p=2))).param == "top_p"
    long = dict(prompt=[1] * 9000)
    assert refused(openai.BadRequestError, lambda: client.completions.create(**text | long)).code == "context_length_exceeded"
    tools = dict(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert refused(openai.BadRequestError, lambda: client.chat.completions.create(**chat | tools)).param == "tools"
    refused(openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="a"))
    refused(openai.AuthenticationError, openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0).models.list)


main()
