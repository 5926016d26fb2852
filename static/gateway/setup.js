// Asks every second whether the first call has come, and shows what it was.
const box = document.getElementById("answer-state");

function show(state) {
    const now = !state.received ? "waiting" : state.ok ? "ok" : "failed";
    for (const part of box.querySelectorAll("[data-when]")) part.hidden = part.dataset.when !== now;
    for (const place of box.querySelectorAll("[data-show]")) place.textContent = state[place.dataset.show] ?? "–";
    return now === "ok";
}

async function watch() {
    for (;;) {
        await new Promise((resolve) => { setTimeout(resolve, 1000); });
        try {
            const answer = await fetch(box.dataset.url, { headers: { accept: "application/json" } });
            if (answer.ok && show(await answer.json())) return;
        } catch { /* the gateway is restarting: ask again */ }
    }
}

if (box.querySelector('[data-when="ok"]').hidden) watch();
