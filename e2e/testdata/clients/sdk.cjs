// sdk.cjs LIBRARY: asks one thing, with what the environment says and nothing else. NODE_PATH says where the libraries are.
"use strict";
const messages = [{ role: "user", content: "hello" }];
const ask = {
  anthropic: async () => (await new (require("@anthropic-ai/sdk"))().messages.create({ model: "demo", max_tokens: 16, messages })).content[0].text,
  openai: async () => (await new (require("openai"))().chat.completions.create({ model: "demo", messages })).choices[0].message.content,
}[process.argv[2]];
ask().then(console.log, (error) => {
  console.error(String(error));
  process.exit(1);
});
