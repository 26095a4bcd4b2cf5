"""LangChain. packages: langchain-openai"""

import os

import openai
from langchain_openai import ChatOpenAI, OpenAI

URL, KEY, MODEL = (os.environ[name] for name in ("URL", "KEY", "MODEL"))


def main():
    common = dict(base_url=URL, api_key=KEY, model=MODEL, temperature=0, max_retries=0)
    chat = ChatOpenAI(max_tokens=16, stream_usage=True, **common)
    messages = [("system", "You are brief."), ("human", "Name a colour of candles.")]
    answer = chat.invoke(messages)
    assert answer.content and answer.usage_metadata["output_tokens"] > 0
    parts = list(chat.stream(messages))
    assert "".join(part.content for part in parts) == answer.content
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == (
        answer.usage_metadata["output_tokens"])
    assert [own.content for own in chat.batch([messages] * 3)] == [answer.content] * 3
    turns = chat.invoke([*messages, answer, ("human", "Another one?")])
    assert turns.content

    completions = OpenAI(max_tokens=8, **common)
    text = completions.invoke("The capital of France is")
    assert "Paris" in text and "".join(completions.stream("The capital of France is")) == text
    try:
        ChatOpenAI(**common | dict(model="other")).invoke(messages)
    except openai.NotFoundError:
        return
    raise AssertionError("another model was accepted")


main()
