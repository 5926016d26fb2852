// Names for what Django's admin draws without any: halves of a date and time, lists that one types into, boxes of
// inline rows, pictures that open a calendar. They are made by scripts, and some of them later.
(() => {
    "use strict";

    const textOf = (element) => element?.textContent.trim().replace(/:$/, "") ?? "";

    const labelOf = (field) => {
        const row = field.closest(".form-row, .flex-container, td, fieldset");
        const column = field.closest("td")?.className.match(/field-(\w+)/)?.[1];
        return textOf(document.querySelector(`label[for="${CSS.escape(field.id)}"]`))
            || textOf(row?.querySelector("label, legend")) || (column ?? "").replaceAll("_", " ");
    };

    const name = () => {
        for (const field of document.querySelectorAll(".datetime input:not([aria-label])")) {
            field.setAttribute("aria-label", `${textOf(field.closest(".form-row")?.querySelector("legend, label")) || labelOf(field)}, ${field.classList.contains("vDateField") ? "date" : "time"}`);
        }
        for (const icon of document.querySelectorAll(".help-tooltip[aria-label]:not([role])")) icon.setAttribute("role", "img");
        for (const box of document.querySelectorAll(".delete input[type=checkbox]:not([aria-label])")) {
            box.setAttribute("aria-label", `Delete ${textOf(box.closest("tr")?.querySelector(".original p")) || "this row"}`);
        }
        for (const list of document.querySelectorAll(".select2-selection:not([aria-label])")) {
            const field = list.closest(".select2-container").previousElementSibling;
            if (!field) continue;
            const chosen = textOf(field.selectedOptions?.[0]);
            list.setAttribute("aria-label", chosen ? `${labelOf(field)}: ${chosen}` : labelOf(field));
            list.removeAttribute("aria-labelledby");
            list.querySelector("[role=textbox]")?.setAttribute("aria-label", labelOf(field));
        }
        for (const field of document.querySelectorAll(".tabular td :is(select, input, textarea):not([aria-label], [type=hidden])")) {
            if (!field.labels?.length) field.setAttribute("aria-label", labelOf(field) || "Value");
        }
        for (const search of document.querySelectorAll(".select2-search__field:not([aria-label])")) {
            search.setAttribute("aria-label", "Search");
        }
        for (const found of document.querySelectorAll(".select2-results__options:not([aria-label])")) {
            found.setAttribute("aria-label", "Found");
        }
    };

    document.addEventListener("DOMContentLoaded", () => {
        name();
        new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
        document.addEventListener("change", (event) => {
            const list = event.target.nextElementSibling?.querySelector?.(".select2-selection");
            list?.removeAttribute("aria-label");
            name();
        });
    });
})();
