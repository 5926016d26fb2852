// The playground: one WebSocket, one conversation, one answer at a time.

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;
// Bytes of one message to the gateway, which takes 64 KiB.
const LONGEST_ASK = 60000;
// Close codes of the gateway (proxy/live/sockets.py).
const SIGNED_OUT = 4401;
const TRY_LATER = 4429;

const element = (id) => document.getElementById(id);
const [key, model, prompt, conversation] = ["key", "model", "prompt", "conversation"].map(element);
// What was said: {role, content}; an answer that was broken off stays as far as it came.
let said = [];
let answer = null;  // the one on its way: {content, text, thinking, meta}
let socket = null;
let pause = FIRST_PAUSE;

function connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(`${scheme}//${location.host}/ws/chat`);
    let opened = false;
    socket.addEventListener("open", () => {
        opened = true;
        pause = FIRST_PAUSE;
        connection("Ready", "ok");
        trouble("");
        buttons();
    });
    socket.addEventListener("message", (event) => hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => closed(event, opened));
}

async function closed(event, opened) {
    if (answer) finish("The connection was lost: the answer ends here.", "bad");
    buttons();
    if (event.code === SIGNED_OUT || (!opened && await isSignedOut())) {
        connection("Signed out", "bad");
        trouble("You are signed out. Open this page again to sign in; what was said here is lost then.");
        return;
    }
    connection("Connection lost", "bad");
    trouble(event.code === TRY_LATER
        ? "Too many playgrounds are open. Close some; this one tries again by itself."
        : "The connection is lost. Trying again…");
    setTimeout(connect, pause * (0.75 + Math.random() / 2));
    pause = Math.min(2 * pause, LONGEST_PAUSE);
}

async function isSignedOut() {
    try {
        const page = await fetch(location.pathname, { redirect: "manual", cache: "no-store" });
        return page.type === "opaqueredirect" || page.status === 403;
    } catch {
        return false;  // the gateway does not answer at all
    }
}

function hear(message) {
    if (message.type === "refused") {
        finish(message.why, "bad");
        return;
    }
    if (!answer) return;  // the rest of an answer that was stopped
    if (message.type === "begun") {
        answer.call = message.call;
        state(message.backend ? `Answered by ${message.backend}…` : "Answering…");
    } else if (message.type === "piece") {
        answer.content += message.text;
        if (message.thinking) {
            answer.thinking.hidden = false;
            answer.thinking.querySelector("p").textContent += message.thinking;
        }
        const follows = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 40;
        answer.text.textContent = answer.content;
        if (follows) conversation.scrollTop = conversation.scrollHeight;
    } else if (message.type === "ended") {
        finish(ending(message), "");
    } else if (message.type === "failed") {
        finish(message.why, "bad");
    }
}

function ending(message) {
    const parts = [];
    if (message.completion_tokens !== null) {
        parts.push(`${message.prompt_tokens ?? 0} + ${message.completion_tokens} tokens`);
        if (message.decode_ms > 0) parts.push(`${(1000 * message.completion_tokens / message.decode_ms).toFixed(1)} per second`);
    }
    parts.push(`${(message.total_ms / 1000).toFixed(1)} s`);
    if (message.reason === "length") parts.push("cut at the most tokens");
    return parts.join(" · ");
}

// What is on its way ends here, with a line below it.
function finish(why, tone) {
    if (answer) {
        if (answer.content) said.push({ role: "assistant", content: answer.content });
        // A question without an answer is asked anew, not in addition.
        else prompt.value ||= said.pop()?.content ?? "";
        answer.meta.textContent = why;
        answer.meta.className = `small ${tone === "bad" ? "bad-text" : "muted"}`;
        if (answer.call) {
            const link = document.createElement("a");
            link.href = `/requests/${withDashes(answer.call)}/`;
            link.textContent = "The request";
            answer.meta.append(" · ", link);
        }
        conversation.removeAttribute("aria-busy");
        answer = null;
        state("");
    } else if (why) {
        trouble(why);
    }
    buttons();
    curl();
}

const withDashes = (id) => id.includes("-") ? id : id.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");

function body() {
    const options = {};
    if (element("temperature").value !== "") options.temperature = Number(element("temperature").value);
    if (element("most").value !== "") options.num_predict = Number(element("most").value);
    const system = element("system").value.trim();
    const written = prompt.value.trim();
    const messages = [
        ...(system ? [{ role: "system", content: system }] : []),
        ...said,
        ...(written && !answer ? [{ role: "user", content: written }] : []),
    ];
    return { model: model.value, messages, ...(Object.keys(options).length ? { options } : {}) };
}

function send() {
    if (answer || !prompt.value.trim() || socket?.readyState !== WebSocket.OPEN) return;
    const message = JSON.stringify({ type: "ask", key: key.value, ...body() });
    if (new TextEncoder().encode(message).length > LONGEST_ASK) {
        trouble("The conversation is too long for the playground. Begin a new one, or use curl.");
        return;
    }
    trouble("");
    const question = { role: "user", content: prompt.value.trim() };
    said.push(question);
    show("You", question.content);
    prompt.value = "";
    answer = { content: "", call: "", ...show(model.value, "") };
    conversation.setAttribute("aria-busy", "true");
    conversation.scrollTop = conversation.scrollHeight;
    state("Waiting for a slot…");
    socket.send(message);
    buttons();
    curl();
}

function stop() {
    if (!answer) return;
    socket.send(JSON.stringify({ type: "stop" }));
    finish("Stopped.", "");
    prompt.focus();
}

function show(who, content) {
    const turn = document.createElement("div");
    turn.className = "turn";
    const name = document.createElement("h3");
    name.textContent = who;
    const thinking = document.createElement("details");
    thinking.hidden = true;
    const summary = document.createElement("summary");
    summary.textContent = "Thoughts";
    const thoughts = document.createElement("p");
    thoughts.className = "said muted";
    thinking.append(summary, thoughts);
    const text = document.createElement("p");
    text.className = "said";
    text.textContent = content;
    const meta = document.createElement("p");
    meta.className = "small muted";
    turn.append(name, thinking, text, meta);
    conversation.append(turn);
    element("nothing").hidden = true;
    conversation.hidden = false;
    element("anew").hidden = false;
    return { text, thinking, meta };
}

function anew() {
    if (answer) stop();
    said = [];
    conversation.replaceChildren();
    conversation.hidden = true;
    element("anew").hidden = true;
    element("nothing").hidden = false;
    trouble("");
    curl();
    prompt.focus();
}

function buttons() {
    element("send").disabled = Boolean(answer) || socket?.readyState !== WebSocket.OPEN;
    element("stop").disabled = !answer;
}

function connection(text, tone) {
    element("connection").textContent = text;
    element("connection").className = `badge ${tone}`;
}

function trouble(text) {
    element("trouble").textContent = text;
    element("trouble").hidden = !text;
}

function state(text) {
    element("state").textContent = text;
}

// Only models that the chosen key may use.
function offer() {
    let first = null;
    for (const option of model.options) {
        option.hidden = option.disabled = !option.dataset.keys.split(" ").includes(key.value);
        if (!option.disabled) first ??= option;
    }
    if (model.selectedOptions[0]?.disabled) model.value = first?.value ?? "";
    curl();
}

function curl() {
    const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    element("curl").textContent = [
        `curl ${quoted(element("curl").dataset.url)}`,
        '-H "Authorization: Bearer $OLLAMA_GATEWAY_KEY"',
        `-d ${quoted(JSON.stringify(body()))}`,
    ].join(" \\\n  ");
}

key.addEventListener("change", offer);
for (const id of ["model", "temperature", "most", "system", "prompt"]) element(id).addEventListener("input", curl);
element("settings").addEventListener("submit", (event) => event.preventDefault());
element("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
});
prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
    } else if (event.key === "Escape") {
        stop();
    }
});
element("stop").addEventListener("click", stop);
element("anew").addEventListener("click", anew);
offer();
connect();
