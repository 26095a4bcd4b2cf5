#!/usr/bin/env python3
"""Makes fixtures/chat: chat templates, and what transformers renders of conversations with them.

    python3 -m venv .venv && .venv/bin/pip install transformers==5.23.0 jinja2==3.1.6
    .venv/bin/python scripts/make_chat_fixtures.py

The templates here use the constructs of those of Llama 3.2, Qwen3 and Gemma 3. --checkpoint also renders the template of a
checkpoint's folder, into --out, so that CANDLEPOWER_FIXTURES can name its result.
"""

import argparse
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent

LLAMA = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The first message may be one of the system. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

QWEN = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

# Blocks on lines of their own, without marks of whitespace, and other constructs of Python's Jinja.
PLAIN = r"""{% for message in messages %}
  {% if loop.first %}
[{{ message.role | upper }}] {{ message.content }}
  {% elif message.role == "assistant" and not loop.last %}
[{{ loop.index }}/{{ loop.length }}] {{ message['content'].replace("a", "A") }}{{ eos_token }}
  {% else %}
    {% set words = message.content.split() %}
[{{ message.role.title() }}: {{ words | length }} words, {{ words | join("-") }}] {{ none }} {{ true }} {{ 3 / 2 }} {{ 7 // 2 }}
    {% if words | length > 3 %}{% break %}{% endif %}
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}>{% endif %}

"""

CONVERSATIONS = [
    [{"role": "user", "content": "Why does a candle flicker?"}],
    [{"role": "system", "content": "  Answer in a line. "}, {"role": "user", "content": "\nWhy & how <b>?\n"}],
    [
        {"role": "user", "content": "Eins, zwei 🕯️ \"drei\" 'vier'"},
        {"role": "assistant", "content": "<think>\nHm\n</think>\n\nFünf."},
        {"role": "user", "content": "<tool_response>no</tool_response>"},
        {"role": "assistant", "content": "ab\n"},
        {"role": "user", "content": "and then what is next?"},
        {"role": "assistant", "content": "Six"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b <think>c</think> d"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}],
]


def case(template, tokens, messages):
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=True, **tokens)
        return {"messages": messages, "text": rendered[0]}
    except Exception as error:
        return {"messages": messages, "error": str(error)}


def write(folder, template, tokens):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens) + "\n")
    cases = [case(template, tokens, messages) for messages in CONVERSATIONS]
    text = json.dumps(cases, indent=1, ensure_ascii=False)
    (folder / "golden.json").write_text(text + "\n")
    print(f"{folder}: {sum('text' in case for case in cases)} of {len(cases)} conversations are rendered")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "fixtures", help="folder of the fixtures")
    parser.add_argument("--checkpoint", type=pathlib.Path, nargs="*", default=[], help="folder of a checkpoint")
    arguments = parser.parse_args()
    out = arguments.out / "chat"
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    for name, template in {"llama": LLAMA, "qwen3": QWEN, "gemma3": GEMMA, "plain": PLAIN}.items():
        write(out / name, template, tokens)
    for folder in arguments.checkpoint:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        own = {name: config.get(name) or "" for name in tokens}
        own = {name: token["content"] if isinstance(token, dict) else token for name, token in own.items()}
        file = folder / "chat_template.jinja"
        write(out / folder.name, file.read_text() if file.exists() else config["chat_template"], own)


if __name__ == "__main__":
    main()
