// A JSON Schema as a list of its members. References are followed, to a depth: a schema may refer to itself.
import { h } from "./dom.js";

const MAX_DEPTH = 6;
const MAX_MEMBERS = 300; // of one schema, in all

/** Return the part of `schema` that a local reference names; null if there is none. */
function resolve(schema, reference) {
  if (typeof reference !== "string" || !reference.startsWith("#")) return null;
  let found = schema;
  for (const part of reference.slice(1).split("/").slice(1)) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    if (found === null || typeof found !== "object" || !Object.hasOwn(found, key)) return null;
    found = found[key];
  }
  return found !== null && typeof found === "object" ? found : null;
}

/** Return the type of a schema in a few words. */
function typeOf(schema) {
  if (schema === true || schema === undefined) return "any";
  if (schema === null || typeof schema !== "object") return "none";
  if (Array.isArray(schema.enum)) return schema.enum.slice(0, 12).map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type) return [schema.type].flat().map(String).join(" | ");
  const kind = ["anyOf", "oneOf", "allOf"].find((name) => Array.isArray(schema[name]));
  return kind ?? (schema.properties ? "object" : "any");
}

/** Return the members below a schema: [name, schema, whether it is required]. */
function membersOf(schema) {
  const required = Array.isArray(schema.required) ? schema.required : [];
  const found = [];
  for (const [name, member] of Object.entries(schema.properties ?? {})) {
    found.push([name, member, required.includes(name)]);
  }
  if (schema.items && typeof schema.items === "object") found.push(["each item", schema.items, false]);
  if (schema.additionalProperties && typeof schema.additionalProperties === "object") {
    found.push(["any other member", schema.additionalProperties, false]);
  }
  for (const kind of ["anyOf", "oneOf", "allOf"]) {
    if (Array.isArray(schema[kind])) schema[kind].forEach((one, index) => found.push([`${kind} ${index + 1}`, one, false]));
  }
  return found;
}

function describe(root, members, depth, left, path) {
  const list = h("ul", { class: "schema" });
  for (let [name, schema, isRequired] of members) {
    if (left.count-- <= 0) {
      list.append(h("li", { class: "hint" }, "The rest is not shown."));
      break;
    }
    let note = "";
    let below = path;
    const reference = schema?.$ref;
    if (reference !== undefined) {
      const target = resolve(root, reference);
      if (target === null) note = `unknown reference ${JSON.stringify(reference)}`;
      else if (path.has(target)) note = `as ${reference} above`;
      schema = target === null || path.has(target) ? {} : { ...target, ...schema };
      below = new Set(path).add(target);
    }
    const isShown = schema !== null && typeof schema === "object";
    const inner = isShown ? membersOf(schema) : [];
    if (inner.length && depth >= MAX_DEPTH) note = "deeper levels are not shown";
    list.append(
      h(
        "li",
        {},
        h("code", {}, name),
        " ",
        h("span", { class: "type" }, note || typeOf(schema)),
        isRequired ? " required" : "",
        isShown && typeof schema.description === "string" ? h("p", {}, schema.description) : null,
        inner.length && depth < MAX_DEPTH ? describe(root, inner, depth + 1, left, below) : null,
      ),
    );
  }
  return list;
}

function asText(value) {
  try {
    return JSON.stringify(value, null, 2);
  } catch {
    return "It is nested too deeply to be shown.";
  }
}

/** Return a collapsed section with a schema; it is built when it is opened. */
export function schemaSection(title, schema) {
  const section = h("details", {}, h("summary", {}, title));
  section.addEventListener(
    "toggle",
    () => {
      const isObject = schema !== null && typeof schema === "object";
      const members = isObject ? membersOf(schema) : [];
      const left = { count: MAX_MEMBERS };
      const content = members.length
        ? describe(schema, members, 1, left, new Set([schema]))
        : h("p", { class: "hint" }, "No members.");
      section.append(content, h("pre", { tabindex: "0", role: "group", "aria-label": `${title} as JSON` }, asText(schema)));
    },
    { once: true },
  );
  return section;
}
