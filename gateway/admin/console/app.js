// The frame of the console: pages by the fragment of the address, the connection, the theme.
import { askAgain, onTokenNeeded } from "./api.js";
import { backendPage } from "./backend.js";
import { askToken } from "./dialogs.js";
import { h, setAttribute, setText } from "./dom.js";
import { clock } from "./format.js";
import { livePage } from "./live.js";
import { overviewPage } from "./overview.js";
import { run } from "./store.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
let closePage = () => {};

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // the person has typed it
  }
}

function showPage(isFirst) {
  const [page, name] = location.hash.replace(/^#\/?/, "").split("/");
  closePage();
  main.replaceChildren();
  let title = "Overview";
  if (page === "backend" && name) {
    title = decoded(name);
    closePage = backendPage(main, title);
  } else if (page === "live") {
    title = "Live";
    closePage = livePage(main);
  } else {
    closePage = overviewPage(main);
  }
  document.title = `${title} - MCP gateway`;
  for (const link of document.querySelectorAll("nav a")) {
    setAttribute(link, "aria-current", link.dataset.page === (page || "overview") ? "page" : null);
  }
  if (!isFirst) main.focus(); // so that a screen reader begins at the new page
}

// Themes.

const THEMES = ["system", "light", "dark"];
const button = document.getElementById("theme");

function showTheme(theme) {
  setAttribute(document.documentElement, "data-theme", theme === "system" ? null : theme);
  setText(button, `Theme: ${theme}`);
}

function storedTheme() {
  try {
    return THEMES.includes(localStorage.theme) ? localStorage.theme : "system";
  } catch {
    return "system"; // a browser without storage
  }
}

let theme = storedTheme();
showTheme(theme);
button.addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  showTheme(theme);
  try {
    localStorage.theme = theme;
  } catch {
    // It is kept until the page is closed.
  }
});

// The connection.

let isRefused = false;
let wasLost = false;

function onState(state, wait, error) {
  setAttribute(connection, "class", state);
  if (state === "open") setText(connection, wasLost ? `Connected again at ${clock(Date.now())}` : "Connected");
  else if (state === "lost") setText(connection, `Connection lost; next attempt in ${Math.ceil(wait / 1000)} s`);
  else {
    isRefused = true;
    running.abort();
    connection.replaceChildren(
      h("span", {}, error.status === 401 ? "No access: the gateway asks for the admin token" : error.message),
      " ",
      h("button", { type: "button", onclick: start }, "Connect"),
    );
  }
  wasLost ||= state !== "open";
}

let running = new AbortController();
function start() {
  running.abort();
  running = new AbortController();
  askAgain();
  setText(connection, "Connecting");
  run(running.signal, onState);
  if (isRefused) {
    isRefused = false;
    showPage(false);
  }
}

onTokenNeeded((reason) => {
  setText(connection, "Waiting for the admin token");
  return askToken(reason);
});
addEventListener("hashchange", () => showPage(false));
showPage(true);
start();
