// The live page: one WebSocket, one picture a second, rows kept by the id of their call so that focus stays.

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;
const SILENCE = 6000;
// Close codes of the gateway (proxy/live/consumers.py).
const SIGNED_OUT = 4401;
const TRY_LATER = 4429;

const PHASES = { line: ["In line", "warn"], loading: ["At the backend", "info"], streaming: ["Streaming", "ok"] };
const STATES = {
    up: ["Up", "ok"], down: ["Down", "bad"], disabled: ["Disabled", ""], unknown: ["Not asked yet", ""],
    resting: ["Resting after failures", "warn"],
};

const element = (id) => document.getElementById(id);
const rows = new Map();
const cancelling = new Set();
let socket = null;
let pause = FIRST_PAUSE;
let heardAt = 0;

function connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(`${scheme}//${location.host}/ws/live`);
    let opened = false;
    socket.addEventListener("open", () => {
        opened = true;
        heardAt = Date.now();
    });
    socket.addEventListener("message", (event) => hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => closed(event, opened));
}

async function closed(event, opened) {
    if (event.code === SIGNED_OUT || (!opened && await isSignedOut())) {
        connection("Signed out", "bad");
        trouble("You are signed out, so nothing is shown any more. ", location.pathname, "Sign in again");
        show([], 0);
        return;
    }
    connection("Connection lost", "bad");
    trouble(event.code === TRY_LATER
        ? "Too many live pages are open. Close some; this one tries again by itself."
        : "The connection is lost: what you see is old. Trying again…");
    setTimeout(connect, pause * (0.75 + Math.random() / 2));
    pause = Math.min(2 * pause, LONGEST_PAUSE);
}

async function isSignedOut() {
    try {
        const answer = await fetch(location.pathname, { redirect: "manual", cache: "no-store" });
        return answer.type === "opaqueredirect" || answer.status === 403;
    } catch {
        return false;  // the gateway does not answer at all
    }
}

function hear(message) {
    heardAt = Date.now();
    if (message.type === "picture") {
        pause = FIRST_PAUSE;
        connection("Live", "ok");
        trouble(message.alone && message.backends !== null
            ? "The connection between the gateway's processes is away: calls of other processes are missing here." : "");
        show(message.calls, message.hidden);
        showBackends(message.backends, message.workers);
    } else if (message.type === "cancelling") {
        notice(`Cancelling ${nameOf(message.call)}.`, "");
    } else if (message.type === "refused") {
        cancelling.delete(message.call);
        const row = rows.get(message.call);
        if (row) row.button.disabled = false;
        notice(message.why, "warn");
    }
}

// Says once that nothing was heard for a while, though the connection seems open.
setInterval(() => {
    if (socket?.readyState === WebSocket.OPEN && Date.now() - heardAt > SILENCE) {
        connection("No news", "warn");
        trouble("Nothing was heard from the gateway for some seconds: what you see is old.");
    }
}, 1000);

function connection(text, kind) {
    const badge = element("connection");
    if (badge.textContent !== text) badge.textContent = text;
    badge.className = `badge ${kind}`;
}

function trouble(text, href, link) {
    const note = element("trouble");
    note.hidden = !text;
    if (note.dataset.text === text) return;
    note.dataset.text = text;
    note.textContent = text;
    if (href) {
        const anchor = document.createElement("a");
        anchor.href = href;
        anchor.textContent = link;
        note.append(anchor);
    }
}

function notice(text, kind) {
    const note = document.createElement("p");
    note.className = `note ${kind}`;
    note.textContent = text;
    element("notices").replaceChildren(note);
    setTimeout(() => note.remove(), 8000);
}

// Calls

function show(calls, hidden) {
    const body = element("calls");
    const now = new Set(calls.map((call) => call.id));
    for (const [id, row] of rows) if (!now.has(id)) drop(id, row);
    for (const call of calls) {
        const row = rows.get(call.id) ?? add(call, body);
        update(row, call);
    }
    element("calls-table").hidden = !calls.length;
    element("no-calls").hidden = calls.length > 0;
    element("hidden-calls").textContent = hidden ? `and ${hidden} more, which are not listed` : "";
    element("in-flight").textContent = calls.length + hidden;
    const waiting = calls.filter((call) => call.phase === "line");
    element("in-line").textContent = waiting.length;
    element("rate").textContent = calls.reduce((sum, call) => sum + (call.rate ?? 0), 0).toFixed(0);
    showLine(waiting);
}

function add(call, body) {
    const line = document.createElement("tr");
    const model = cell(line, "th");
    model.scope = "row";
    const row = { line, model, call };
    row.phase = badge(cell(line));
    for (const name of ["age", "tokens", "rate"]) row[name] = cell(line, "td", "number");
    row.key = cell(line);
    row.tenant = cell(line);
    row.backend = cell(line);
    row.action = cell(line);
    row.button = document.createElement("button");
    row.button.type = "button";
    row.button.className = "button danger small";
    row.button.textContent = "Cancel";
    row.button.addEventListener("click", () => confirmCancel(call.id));
    row.action.append(row.button);
    body.append(line);
    rows.set(call.id, row);
    return row;
}

function update(row, call) {
    row.call = call;
    text(row.model, call.model);
    label(row.phase, PHASES[call.phase] ?? [call.phase, ""]);
    text(row.age, duration(call.age));
    text(row.tokens, call.tokens ? String(call.tokens) : "–");
    text(row.rate, call.rate === null ? "–" : call.rate.toFixed(1));
    text(row.key, `${call.key_name} (${call.key}…)${call.user ? `, ${call.user}` : ""}`);
    text(row.tenant, call.tenant);
    text(row.backend, call.backend || "–");
    row.button.hidden = !call.may_end;
    row.button.disabled = cancelling.has(call.id);
    row.button.setAttribute("aria-label", `Cancel ${call.model} of ${call.key_name}, ${duration(call.age)} old`);
}

function drop(id, row) {
    if (row.line.contains(document.activeElement)) element("calls-title").focus();
    if (cancelling.delete(id)) notice(`${nameOf(id)} has ended.`, "ok");
    row.line.remove();
    rows.delete(id);
}

function nameOf(id) {
    const call = rows.get(id)?.call;
    return call ? `the call of ${call.model} by ${call.key_name}` : "the call";
}

function confirmCancel(id) {
    const row = rows.get(id);
    if (!row) return;
    const dialog = element("confirm");
    element("confirm-text").textContent = `${row.call.model}, by ${row.call.key_name}, for ${duration(row.call.age)}. `
        + "Its client gets an error at once; what was generated so far is recorded.";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
        if (dialog.returnValue !== "cancel" || socket?.readyState !== WebSocket.OPEN) return;
        cancelling.add(id);
        row.button.disabled = true;
        socket.send(JSON.stringify({ type: "cancel", call: id }));
    }, { once: true });
    dialog.showModal();
}

// The line and the backends

function showLine(waiting) {
    const models = new Map();
    for (const call of waiting) {
        const seen = models.get(call.model) ?? { count: 0, longest: 0 };
        models.set(call.model, { count: seen.count + 1, longest: Math.max(seen.longest, call.age) });
    }
    element("line").hidden = !models.size;
    element("line-rows").replaceChildren(...[...models].map(([model, { count, longest }]) => {
        const line = document.createElement("tr");
        cell(line, "th").textContent = model;
        cell(line, "td", "number").textContent = count;
        cell(line, "td", "number").textContent = duration(longest);
        return line;
    }));
}

function showBackends(backends, workers) {
    if (backends === null || !element("backends")) return;
    element("workers").textContent = workers === 1 ? "1 process" : `${workers} processes`;
    element("backends-table").hidden = !backends.length;
    element("no-backends").hidden = backends.length > 0;
    element("backends").replaceChildren(...backends.map((backend) => {
        const line = document.createElement("tr");
        const name = cell(line, "th");
        name.scope = "row";
        name.textContent = backend.name;
        const state = cell(line);
        label(badge(state), STATES[backend.state] ?? [backend.state, ""]);
        if (backend.problem) state.append(` ${backend.problem}`);
        cell(line).textContent = backend.version || "–";
        cell(line, "td", "number").textContent = backend.in_flight;
        cell(line, "td", "number").textContent = backend.slots;
        cell(line).textContent = backend.warm.join(", ") || "–";
        return line;
    }));
}

function cell(line, kind = "td", name = "") {
    const made = document.createElement(kind);
    made.className = name;
    line.append(made);
    return made;
}

function badge(parent) {
    const made = document.createElement("span");
    parent.append(made);
    return made;
}

function label(made, [name, kind]) {
    text(made, name);
    made.className = `badge ${kind}`;
}

function text(where, value) {
    if (where.textContent !== value) where.textContent = value;
}

function duration(seconds) {
    if (seconds < 60) return `${seconds.toFixed(0)} s`;
    return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

connect();
