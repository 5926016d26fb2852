// What the drivers in JavaScript share; the protocol is that of jobs.py.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export const QUESTIONS = JSON.parse(readFileSync(new URL("../questions.json", import.meta.url)));
export const MODELS = QUESTIONS.models;
export const QUESTION = QUESTIONS.question;
export const IMAGE = QUESTIONS.image;
export const IMAGE_URL = `data:image/png;base64,${IMAGE}`;
export const SCHEMA = QUESTIONS.schema;
export const TOOL = { type: "function", function: QUESTIONS.tool };
// Chunks of an endless answer before the client leaves.
export const ENOUGH = 3;

export async function answerJobs(scenarios) {
  for await (const line of createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    let answer;
    try {
      answer = await scenarios[job.scenario](job.url, job.key);
    } catch (error) {
      answer = { failure: error.stack ?? String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}

// The exception that a call ends with, as a program sees it.
export async function raised(call) {
  try {
    await call();
  } catch (error) {
    const status = error.status ?? error.status_code ?? null;
    return { class: error.constructor.name, status, message: error.message };
  }
  return { class: null };
}

export async function listOf(parts) {
  const list = [];
  for await (const part of parts) list.push(part);
  return list;
}
