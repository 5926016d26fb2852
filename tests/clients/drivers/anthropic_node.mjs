import Anthropic from "@anthropic-ai/sdk";
import { ENOUGH, IMAGE, MODELS, QUESTION, QUESTIONS, answerJobs, listOf, raised } from "./jobs.mjs";

const { name, description, parameters } = QUESTIONS.tool;
const TOOL = { name, description, input_schema: parameters };

const connect = (url, key) => new Anthropic({ baseURL: url, apiKey: key });
const ask = (content) => [{ role: "user", content }];
const tokens = (usage) => [usage.input_tokens, usage.output_tokens];
const create = (url, key, request) => connect(url, key).messages.create({ max_tokens: 2000, ...request });
const joined = (message, kind, field) =>
  message.content.filter((block) => block.type === kind).map((block) => block[field]).join("");

await answerJobs({
  async chat(url, key) {
    const answer = await create(url, key, { model: MODELS.chat, messages: ask(QUESTION) });
    return { text: joined(answer, "text", "text"), tokens: tokens(answer.usage) };
  },

  async stream(url, key) {
    const texts = [];
    const events = connect(url, key).messages.stream({ model: MODELS.chat, max_tokens: 100, messages: ask(QUESTION) });
    events.on("text", (text) => texts.push(text));
    const message = await events.finalMessage();
    return { text: texts.join(""), chunks: texts.length, tokens: tokens(message.usage) };
  },

  async tools(url, key) {
    const messages = ask(QUESTIONS.tool_question);
    const request = { model: MODELS.tools, messages, tools: [TOOL] };
    const first = await create(url, key, request);
    const uses = first.content.filter((block) => block.type === "tool_use");
    const result = { type: "tool_result", tool_use_id: uses[0].id, content: QUESTIONS.tool_result };
    messages.push({ role: "assistant", content: first.content }, { role: "user", content: [result] });
    const second = await create(url, key, request);
    return { calls: uses.map((use) => [use.name, use.input]), text: joined(second, "text", "text") };
  },

  async images(url, key) {
    const source = { type: "base64", media_type: "image/png", data: IMAGE };
    const content = [{ type: "image", source }, { type: "text", text: QUESTION }];
    const answer = await create(url, key, { model: MODELS.vision, messages: ask(content) });
    return { text: joined(answer, "text", "text") };
  },

  async thinking(url, key) {
    const wanted = { type: "enabled", budget_tokens: 1024 };
    const answer = await create(url, key, { model: MODELS.thinking, messages: ask(QUESTION), thinking: wanted });
    return {
      thinking: joined(answer, "thinking", "thinking"),
      text: joined(answer, "text", "text"),
      tokens: tokens(answer.usage),
    };
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
    let text = "";
    for await (const part of parts) {
      if (part.type === "content_block_delta") text += part.delta.text;
      if (text.split(" ").length > ENOUGH) break; // which aborts it
    }
    return { text };
  },
});
