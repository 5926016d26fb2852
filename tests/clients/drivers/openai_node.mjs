import OpenAI from "openai";
import { ENOUGH, IMAGE_URL, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, answerJobs, listOf, raised } from "./jobs.mjs";

const connect = (url, key) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const ask = (content) => [{ role: "user", content }];
const tokens = (usage) => [usage.prompt_tokens, usage.completion_tokens];
const create = (url, key, request) => connect(url, key).chat.completions.create(request);

await answerJobs({
  async chat(url, key) {
    const answer = await create(url, key, { model: MODELS.chat, messages: ask(QUESTION) });
    return { text: answer.choices[0].message.content, tokens: tokens(answer.usage) };
  },

  async completion(url, key) {
    const answer = await connect(url, key).completions.create({ model: MODELS.chat, prompt: QUESTION });
    return { text: answer.choices[0].text, tokens: tokens(answer.usage) };
  },

  async stream(url, key) {
    const request = { model: MODELS.chat, messages: ask(QUESTION), stream: true };
    const parts = await listOf(await create(url, key, { ...request, stream_options: { include_usage: true } }));
    const texts = parts.map((part) => part.choices[0]?.delta.content).filter(Boolean);
    return { text: texts.join(""), chunks: texts.length, tokens: tokens(parts.at(-1).usage) };
  },

  async stream_without_usage(url, key) {
    const request = { model: MODELS.chat, messages: ask(QUESTION), stream: true };
    const parts = await listOf(await create(url, key, request));
    const text = parts.map((part) => part.choices[0].delta.content ?? "").join("");
    return { text, usage: parts.map((part) => part.usage).filter(Boolean) };
  },

  async responses(url, key) {
    const events = await listOf(
      await connect(url, key).responses.create({ model: MODELS.chat, input: QUESTION, stream: true }),
    );
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const { usage } = events.at(-1).response;
    return { text: deltas.map((event) => event.delta).join(""), tokens: [usage.input_tokens, usage.output_tokens] };
  },

  async tools(url, key) {
    const messages = ask(QUESTIONS.tool_question);
    const request = { model: MODELS.tools, messages, tools: [TOOL] };
    const { message } = (await create(url, key, request)).choices[0];
    const calls = message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
    messages.push(message);
    messages.push({ role: "tool", tool_call_id: message.tool_calls[0].id, content: QUESTIONS.tool_result });
    const second = await create(url, key, request);
    return { calls, text: second.choices[0].message.content };
  },

  async images(url, key) {
    const content = [{ type: "text", text: QUESTION }, { type: "image_url", image_url: { url: IMAGE_URL } }];
    const answer = await create(url, key, { model: MODELS.vision, messages: ask(content) });
    return { text: answer.choices[0].message.content };
  },

  async thinking(url, key) {
    const request = { model: MODELS.thinking, messages: ask(QUESTION), reasoning_effort: "high" };
    const answer = await create(url, key, request);
    const { message } = answer.choices[0];
    return { thinking: message.reasoning, text: message.content, tokens: tokens(answer.usage) };
  },

  async structured(url, key) {
    const wanted = { type: "json_schema", json_schema: { name: "Weather", strict: true, schema: SCHEMA } };
    const answer = await create(url, key, { model: MODELS.tools, messages: ask(QUESTION), response_format: wanted });
    return { text: answer.choices[0].message.content };
  },

  async embeddings(url, key) {
    const answer = await connect(url, key).embeddings.create({ model: MODELS.embedding, input: QUESTIONS.inputs });
    return { vectors: answer.data.map((item) => item.embedding), tokens: [answer.usage.prompt_tokens, 0] };
  },

  async list(url, key) {
    return { models: (await listOf(connect(url, key).models.list())).map((model) => model.id) };
  },

  async show(url, key) {
    return { id: (await connect(url, key).models.retrieve(MODELS.tools)).id };
  },

  unknown_model: (url, key) => raised(() => create(url, key, { model: MODELS.unknown, messages: ask(QUESTION) })),

  refused: (url, key) => raised(() => create(url, key, { model: MODELS.chat, messages: ask(QUESTION) })),

  broken: (url, key) =>
    raised(async () =>
      listOf(await create(url, key, { model: MODELS.broken, messages: ask(QUESTION), stream: true })),
    ),

  async cancel(url, key) {
    const parts = await create(url, key, { model: MODELS.endless, messages: ask(QUESTION), stream: true });
    const seen = [];
    for await (const part of parts) {
      seen.push(part.choices[0].delta.content);
      if (seen.length === ENOUGH) break; // which aborts it
    }
    return { text: seen.join("") };
  },
});
