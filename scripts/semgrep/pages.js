// Examples of pages.yaml; scripts/audit runs them.
function show(element, text) {
    // ruleid: scripts-make-no-markup
    element.innerHTML = text;
    // ruleid: scripts-make-no-markup
    element.insertAdjacentHTML("beforeend", text);
    // ruleid: scripts-make-no-markup
    eval(text);
    // ok: scripts-make-no-markup
    element.textContent = text;
}
