// Copy buttons, tabs, menus. Pages work without.

function copyButtons() {
    for (const button of document.querySelectorAll("[data-copy]")) {
        const source = button.dataset.copy
            ? document.getElementById(button.dataset.copy)
            : button.closest(".code").querySelector("code");
        const name = button.textContent;
        button.hidden = false;
        button.addEventListener("click", async () => {
            try {
                await navigator.clipboard.writeText(source.textContent);
                button.textContent = "Copied";
            } catch {
                // Without https or permission: select it, for Ctrl-C.
                getSelection().selectAllChildren(source);
                button.textContent = "Press Ctrl-C";
            }
            setTimeout(() => { button.textContent = name; }, 2000);
        });
    }
}

function tabs() {
    for (const group of document.querySelectorAll("[data-tabs]")) {
        const sections = [...group.querySelectorAll(":scope > [data-tab]")];
        if (sections.length < 2) continue;
        const list = document.createElement("div");
        list.className = "tab-list";
        list.setAttribute("role", "tablist");
        list.setAttribute("aria-label", group.dataset.tabs || "Choose");
        const buttons = sections.map((section, index) => {
            const button = document.createElement("button");
            section.id ||= `panel-${Math.random().toString(36).slice(2)}`;
            Object.assign(button, { type: "button", className: "tab", id: `${section.id}-tab`, textContent: section.dataset.tab });
            button.setAttribute("role", "tab");
            button.setAttribute("aria-controls", section.id);
            section.setAttribute("role", "tabpanel");
            section.setAttribute("aria-labelledby", button.id);
            button.addEventListener("click", () => select(index));
            list.append(button);
            return button;
        });
        const select = (chosen, focus) => {
            sections.forEach((section, index) => {
                section.hidden = index !== chosen;
                buttons[index].setAttribute("aria-selected", String(index === chosen));
                buttons[index].tabIndex = index === chosen ? 0 : -1;
            });
            if (focus) buttons[chosen].focus();
        };
        list.addEventListener("keydown", (event) => {
            const now = buttons.indexOf(document.activeElement);
            const last = buttons.length - 1;
            const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now === 0 ? last : now - 1, Home: 0, End: last }[event.key];
            if (next === undefined) return;
            event.preventDefault();
            select(next, true);
        });
        for (const heading of group.querySelectorAll(":scope > [data-tab] > .tab-heading")) heading.hidden = true;
        group.prepend(list);
        select(0);
    }
}

function menus() {
    const open = () => document.querySelectorAll("details.menu[open]");
    addEventListener("click", (event) => {
        for (const menu of open()) if (!menu.contains(event.target)) menu.open = false;
    });
    addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        for (const menu of open()) {
            menu.open = false;
            menu.querySelector("summary").focus();
        }
    });
}

// On a phone the navigation is wider than the window: where one is should be in it.
function showWhereOneIs() {
    const here = document.querySelector(".nav [aria-current]");
    if (here) here.parentElement.scrollLeft = here.offsetLeft - (here.parentElement.clientWidth - here.offsetWidth) / 2;
}

copyButtons();
tabs();
menus();
showWhereOneIs();
window.addEventListener("resize", showWhereOneIs);
