// OpenAI's client for Node. packages: openai
import assert from "node:assert";
import OpenAI from "openai";

const { URL: baseURL, KEY: apiKey, MODEL: model } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const models = await client.models.list();
assert.deepEqual(models.data.map((own) => own.id), [model]);

const chat = { model, messages: [{ role: "user", content: "Name a colour of candles." }], max_completion_tokens: 16, temperature: 0 };
const answer = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 1 });
const { content } = answer.choices[0].message;
assert(content && answer.choices[0].logprobs.content.map((own) => own.token).join("") === content);
let text = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
}
assert.equal(text, content);
assert.deepEqual({ ...usage, prompt_tokens_details: 0 }, { ...answer.usage, prompt_tokens_details: 0 });
assert.equal(await client.chat.completions.stream(chat).finalContent(), content);

const completion = await client.completions.create({ model, prompt: "The capital of France is", max_tokens: 8, temperature: 0 });
assert(completion.choices[0].text.includes("Paris"));
await assert.rejects(client.completions.create({ model: "other", prompt: "a" }), OpenAI.NotFoundError);
await assert.rejects(client.completions.create({ model, prompt: "a", temperature: -1 }), (error) => error.status === 400 && error.param === "temperature");
await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);

// A client that leaves ends its request.
const stream = await client.completions.create({ model, prompt: "Once", max_tokens: 512, stream: true });
for await (const _ of stream) break;
