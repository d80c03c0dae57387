// client.cjs LIBRARY URL: one request with the placeholder. NODE_PATH says where the libraries are.
"use strict";
const [library, url] = process.argv.slice(2);
const messages = [{ role: "user", content: "hello" }];
const headers = { authorization: "Bearer " + process.env.ANTHROPIC_AUTH_TOKEN };

async function check(response) {
  const text = await response.text();
  if (!response.ok) throw new Error(response.status + " " + text);
}

function get(agent) {
  return new Promise((resolve, reject) => {
    require("node:https").get(url, { headers, agent }, (response) => {
      let text = "";
      response.on("data", (chunk) => (text += chunk));
      response.on("end", () => (response.statusCode === 200 ? resolve() : reject(new Error(response.statusCode + " " + text))));
    }).on("error", reject);
  });
}

// proxyAgent is undefined where nobody names a proxy.
function proxyAgent() {
  const { HttpsProxyAgent } = require("https-proxy-agent");
  return process.env.HTTPS_PROXY && new HttpsProxyAgent(process.env.HTTPS_PROXY);
}

function socket() {
  const WebSocket = require("ws");
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(url, { headers, agent: proxyAgent() });
    ws.on("open", () => ws.send("hello"));
    ws.on("message", (data) => (ws.close(), String(data) === "hello" ? resolve() : reject(new Error("another answer"))));
    ws.on("error", reject);
  });
}

const { fetch: undiciFetch, EnvHttpProxyAgent } = library === "undici" ? require("undici") : {};
({
  fetch: () => fetch(url, { headers }).then(check),
  https: () => get(),
  undici: () => undiciFetch(url, { headers, dispatcher: new EnvHttpProxyAgent() }).then(check),
  "https-proxy-agent": () => get(proxyAgent()),
  ws: socket,
  "sdk-anthropic": () => new (require("@anthropic-ai/sdk"))({ baseURL: url, apiKey: null, authToken: process.env.ANTHROPIC_AUTH_TOKEN, maxRetries: 0 }).messages.create({ model: "demo", max_tokens: 16, messages }),
  "sdk-openai": () => new (require("openai"))({ baseURL: url, apiKey: process.env.ANTHROPIC_AUTH_TOKEN, maxRetries: 0 }).chat.completions.create({ model: "demo", messages }),
})[library]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
