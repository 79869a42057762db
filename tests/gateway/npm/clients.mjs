// The openai npm client, asked for everything it can do here; prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "Weather in Zürich?" }];
const tools = [
  { type: "function", function: { name: "weather", parameters: { type: "object" } } },
];
const told = {};

const chat = await client.chat.completions.create({ model: "m", messages, logprobs: true, n: 2 });
told.chat = chat.choices.map((one) => [one.message.content, one.logprobs.content.length]);

told.stream = "";
for await (const one of await client.chat.completions.create({ model: "m", messages, stream: true }))
  told.stream += one.choices[0]?.delta?.content ?? "";

const called = await client.chat.completions.create({ model: "m", messages, tools });
told.tools = called.choices[0].message.tool_calls[0].function;

told.streamed = { name: "", arguments: "" };
for await (const one of await client.chat.completions.create({
  model: "m", messages, tools, stream: true,
})) {
  const call = one.choices[0]?.delta?.tool_calls?.[0]?.function;
  told.streamed.name += call?.name ?? "";
  told.streamed.arguments += call?.arguments ?? "";
}

const embeddings = await client.embeddings.create({ model: "e", input: ["a", "b"] });
told.embeddings = embeddings.data.map((one) => Array.from(one.embedding));

told.models = [];
for await (const one of client.models.list()) told.models.push(one.id);

told.completion = (await client.completions.create({ model: "m", prompt: "Once" })).choices[0].text;

try {
  await client.chat.completions.create({ model: "refuse", messages });
} catch (error) {
  told.refusal = [error.constructor.name, error.status, error.error?.message];
}
console.log(JSON.stringify(told));
