// The AI SDK. packages: ai @ai-sdk/openai-compatible
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const { URL: baseURL, KEY: apiKey, MODEL } = process.env;
const provider = (apiKey) => createOpenAICompatible({ name: "candlepower", baseURL, apiKey, includeUsage: true });
const options = { prompt: "Name a colour of candles.", maxOutputTokens: 16, temperature: 0, maxRetries: 0 };

for (const model of [provider(apiKey).chatModel(MODEL), provider(apiKey).completionModel(MODEL)]) {
    const whole = await generateText({ model, ...options });
    assert(whole.text && whole.usage.outputTokens > 0, JSON.stringify(whole));
    const stream = streamText({ model, ...options, onError: ({ error }) => assert.fail(error) });
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
    assert.equal(await stream.finishReason, whole.finishReason);
}
const refused = generateText({ model: provider("wrong").chatModel(MODEL), ...options });
await assert.rejects(refused, (error) => APICallError.isInstance(error) && error.statusCode === 401);
