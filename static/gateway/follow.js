// While it is on, the first page of the list is asked for again and again: also what began long ago may have just ended.
const PAUSE = 2000;
const button = document.getElementById("follow");
const state = document.getElementById("follow-state");
const list = document.getElementById("requests");
const body = list.querySelector("tbody");
let timer = null;
let asking = false;

function show(text) {
    const seen = new Set([...body.rows].map((row) => row.dataset.id));
    const rows = new DOMParser().parseFromString(`<table><tbody>${text}</tbody></table>`, "text/html").querySelectorAll("tr");
    const fresh = [...rows].filter((row) => !seen.has(row.dataset.id));
    if (!fresh.length) return;
    const focused = document.activeElement?.closest("tr")?.dataset.id;
    for (const row of fresh) row.classList.add("fresh");
    body.replaceChildren(...rows);
    // Whoever goes through the list by keyboard stays where they are.
    if (focused) [...body.rows].find((row) => row.dataset.id === focused)?.querySelector("a").focus();
    list.hidden = false;
    document.getElementById("nothing").hidden = true;
    state.textContent = `${fresh.length} new`;
}

async function ask() {
    timer = null;
    asking = true;
    try {
        const answer = await fetch(button.dataset.url, { headers: { accept: "text/html" }, redirect: "error" });
        if (!answer.ok) throw new Error(String(answer.status));
        const text = await answer.text();
        if (!isOn()) return;
        if (state.textContent === "No answer, trying again") state.textContent = "";
        show(text);
    } catch {
        state.textContent = "No answer, trying again";
    }
    asking = false;
    next();
}

const isOn = () => button.getAttribute("aria-pressed") === "true";

// A tab that nobody sees asks nothing.
function next(pause = PAUSE) {
    if (isOn() && !document.hidden && !asking && timer === null) timer = setTimeout(ask, pause);
}

button.hidden = false;
button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(!isOn()));
    state.textContent = isOn() ? "Following" : "";
    if (!isOn() && timer !== null) {
        clearTimeout(timer);
        timer = null;
    }
    next(0);
});
document.addEventListener("visibilitychange", () => {
    if (document.hidden && timer !== null) {
        clearTimeout(timer);
        timer = null;
    }
    next(0);
});
