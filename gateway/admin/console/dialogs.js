// The two questions that the console asks: for the token, and whether an action is meant.
import { h } from "./dom.js";

function show(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    }),
  );
}

/** Ask for the admin token; return null if the person declines. */
export async function askToken(reason) {
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const dialog = h("dialog", { "aria-labelledby": "token-title" });
  const submit = (event) => {
    event.preventDefault();
    dialog.close("ok");
  };
  dialog.append(
    h(
      "form",
      { onsubmit: submit },
      h("h2", { id: "token-title" }, "Admin token"),
      reason ? h("p", { class: "problem", role: "alert" }, reason) : null,
      h("p", {}, "The gateway asks for its admin token. It stays in the memory of this page."),
      h("label", { for: "token" }, "Token"),
      input,
      h(
        "p",
        { class: "hint" },
        "It is the value of MCP_GATEWAY_ADMIN_TOKEN or --admin-token, else the content of the file admin-token in the",
        " state directory of the gateway.",
      ),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "submit", class: "primary" }, "Continue"),
        h("button", { type: "button", onclick: () => dialog.close("") }, "Not now"),
      ),
    ),
  );
  const answer = await show(dialog);
  const token = input.value.trim();
  // Other characters cannot be part of a token, and a header must not contain them.
  return answer === "ok" && /^[\x21-\x7e]+$/.test(token) ? token : null;
}

/** Ask whether an action is meant; return whether it is. */
export async function confirm(question, action) {
  const dialog = h("dialog", { "aria-labelledby": "confirm-title" });
  dialog.append(
    h("h2", { id: "confirm-title" }, question),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", class: "primary", onclick: () => dialog.close("ok") }, action),
      h("button", { type: "button", autofocus: true, onclick: () => dialog.close("") }, "Back"),
    ),
  );
  return (await show(dialog)) === "ok";
}
