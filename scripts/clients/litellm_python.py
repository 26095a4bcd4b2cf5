"""LiteLLM. packages: litellm"""

import os

# Its list of prices is a file of the package, and not fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

URL, KEY, MODEL = (os.environ[name] for name in ("URL", "KEY", "MODEL"))


def main():
    for provider in ("openai", "hosted_vllm"):
        common = dict(model=f"{provider}/{MODEL}", api_base=URL, api_key=KEY, temperature=0, num_retries=0)
        chat = dict(messages=[{"role": "user", "content": "Name a colour of candles."}], max_tokens=16, **common)
        answer = litellm.completion(**chat)
        content = answer.choices[0].message.content
        assert content and answer.usage.completion_tokens > 0
        parts = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **chat))
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == content
        for wrong, kind in ((dict(api_key="wrong"), litellm.AuthenticationError), (dict(n=99), litellm.BadRequestError)):
            try:
                litellm.completion(**chat | wrong)
            except kind:
                continue
            raise AssertionError(f"{wrong}: no {kind.__name__}")
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=URL, api_key=KEY, prompt="The capital of France is",
        max_tokens=8, temperature=0)
    assert "Paris" in text.choices[0].text


main()
