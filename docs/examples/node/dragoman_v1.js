// Calls dragoman.v1: node dragoman_v1.js ADDRESS PROTO_FOLDER. Prints one line of JSON for each answer.
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const files = ["dragoman/v1/translation.proto", "dragoman/v1/generation.proto", "dragoman/v1/model.proto"];
const definition = protoLoader.loadSync(files, {
  includeDirs: [protos],
  keepCase: true,
  defaults: true,
  enums: String,
  longs: Number,
});
const { v1 } = grpc.loadPackageDefinition(definition).dragoman;
const credentials = grpc.credentials.createInsecure();
const translation = new v1.TranslationService(address, credentials);
const generation = new v1.GenerationService(address, credentials);
const models = new v1.ModelService(address, credentials);

const call = (client, method, request) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });

async function main() {
  const listed = await call(models, "ListModels", {});
  console.log(JSON.stringify(listed.models.map((model) => `${model.name}/${model.version}`)));

  const request = { model: "spell", inputs: ["71", "40"], options: { beam_size: 2 } };
  const answer = await call(translation, "Translate", request);
  console.log(JSON.stringify(answer.translations.map((each) => [each.text, each.finish_reason])));

  let text = "";
  for await (const response of generation.Generate({ model: "count", prompt: "one two", options: { max_tokens: 8 } })) {
    text += response.text_delta;
  }
  console.log(JSON.stringify(text));

  try {
    await call(translation, "Translate", { model: "nothing", inputs: ["71"] });
  } catch (error) {
    console.log(JSON.stringify([grpc.status[error.code], error.details]));
  }
}

main();
