import { Ollama } from "ollama";
import { ENOUGH, IMAGE, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, answerJobs, listOf, raised } from "./jobs.mjs";

const connect = (url, key) => new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });
const ask = (content) => [{ role: "user", content }];
const tokens = (answer) => [answer.prompt_eval_count, answer.eval_count];
const textOf = (parts) => parts.map((part) => part.message.content).join("");

await answerJobs({
  async chat(url, key) {
    const answer = await connect(url, key).chat({ model: MODELS.chat, messages: ask(QUESTION) });
    return { text: answer.message.content, tokens: tokens(answer) };
  },

  async stream(url, key) {
    const parts = await listOf(
      await connect(url, key).chat({ model: MODELS.chat, messages: ask(QUESTION), stream: true }),
    );
    return { text: textOf(parts), chunks: parts.length - 1, tokens: tokens(parts.at(-1)) };
  },

  async tools(url, key) {
    const client = connect(url, key);
    const messages = ask(QUESTIONS.tool_question);
    const first = await client.chat({ model: MODELS.tools, messages, tools: [TOOL] });
    const calls = first.message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
    messages.push(first.message, { role: "tool", tool_name: "get_time", content: QUESTIONS.tool_result });
    const parts = await listOf(await client.chat({ model: MODELS.tools, messages, tools: [TOOL], stream: true }));
    return { calls, text: textOf(parts) };
  },

  async images(url, key) {
    const messages = [{ role: "user", content: QUESTION, images: [IMAGE] }];
    const answer = await connect(url, key).chat({ model: MODELS.vision, messages });
    return { text: answer.message.content };
  },

  async thinking(url, key) {
    const request = { model: MODELS.thinking, messages: ask(QUESTION), think: true, stream: true };
    const parts = await listOf(await connect(url, key).chat(request));
    const thoughts = parts.map((part) => part.message.thinking ?? "").join("");
    return { thinking: thoughts, text: textOf(parts), tokens: tokens(parts.at(-1)) };
  },

  async structured(url, key) {
    const answer = await connect(url, key).chat({ model: MODELS.tools, messages: ask(QUESTION), format: SCHEMA });
    return { text: answer.message.content };
  },

  async embeddings(url, key) {
    const answer = await connect(url, key).embed({ model: MODELS.embedding, input: QUESTIONS.inputs });
    return { vectors: answer.embeddings, tokens: [answer.prompt_eval_count, 0] };
  },

  async list(url, key) {
    return { models: (await connect(url, key).list()).models.map((model) => model.model) };
  },

  async show(url, key) {
    const answer = await connect(url, key).show({ model: MODELS.tools });
    return { capabilities: answer.capabilities, family: answer.details.family };
  },

  async pull(url, key) {
    const steps = await listOf(await connect(url, key).pull({ model: MODELS.pull, stream: true }));
    return { statuses: steps.map((step) => step.status) };
  },

  unknown_model: (url, key) =>
    raised(() => connect(url, key).chat({ model: MODELS.unknown, messages: ask(QUESTION) })),

  refused: (url, key) => raised(() => connect(url, key).chat({ model: MODELS.chat, messages: ask(QUESTION) })),

  broken: (url, key) =>
    raised(async () =>
      listOf(await connect(url, key).chat({ model: MODELS.broken, messages: ask(QUESTION), stream: true })),
    ),

  async cancel(url, key) {
    const parts = await connect(url, key).chat({ model: MODELS.endless, messages: ask(QUESTION), stream: true });
    let text = "";
    let count = 0;
    const error = await raised(async () => {
      for await (const part of parts) {
        text += part.message.content;
        count += 1;
        if (count === ENOUGH) parts.abort();
      }
    });
    return { text, error: error.class && error.message };
  },
});
