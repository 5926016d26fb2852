// Keeps parts of a page up to date: an element with data-refresh-url is filled with what is there, every
// data-refresh-seconds, as long as the page is seen. An answer may ask for another pace: X-Refresh-Seconds.
(() => {
    "use strict";

    const watch = (part) => {
        let seconds = Number(part.dataset.refreshSeconds) || 5;
        let timer = 0, busy = false, failures = 0, shown = "";

        const later = () => {
            clearTimeout(timer);
            if (!document.hidden) timer = setTimeout(refresh, seconds * 1000 * Math.min(2 ** failures, 12));
        };

        const show = (html) => {
            // What is the same is left alone: somebody may be about to press a button of it.
            if (html === shown) return;
            const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
            part.innerHTML = shown = html;
            if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
        };

        const refresh = async () => {
            if (busy || document.hidden) return;
            busy = true;
            try {
                const answer = await fetch(part.dataset.refreshUrl, {
                    redirect: "error", signal: AbortSignal.timeout(10000),
                });
                if (!answer.ok) throw new Error(answer.status);
                show(await answer.text());
                seconds = Number(answer.headers.get("X-Refresh-Seconds")) || seconds;
                failures = 0;
                part.removeAttribute("data-stale");
            } catch {
                failures += 1;
                // Old figures must not look like new ones.
                if (failures > 1) part.setAttribute("data-stale", "");
            } finally {
                busy = false;
                later();
            }
        };

        document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
        later();
    };

    document.querySelectorAll("[data-refresh-url]").forEach(watch);
})();
