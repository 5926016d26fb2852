// In <head>, so that the chosen theme holds before anything is painted. The key is that of Django's admin.
(() => {
    const root = document.documentElement;
    const chosen = () => {
        try { return localStorage.getItem("theme"); } catch { return null; }
    };
    const prefersDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
    const isDark = () => (root.dataset.theme === "dark") || (root.dataset.theme !== "light" && prefersDark());
    const theme = chosen();
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;

    addEventListener("DOMContentLoaded", () => {
        for (const button of document.querySelectorAll("[data-theme-toggle]")) {
            const show = () => button.setAttribute("aria-pressed", String(isDark()));
            button.hidden = false;
            show();
            button.addEventListener("click", () => {
                root.dataset.theme = isDark() ? "light" : "dark";
                try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it holds for this page */ }
                show();
            });
        }
    });
})();
