// Calls inference.GRPCInferenceService: node open_inference.js ADDRESS PROTO_FOLDER. Prints JSON, a line an answer.
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const definition = protoLoader.loadSync("grpc_service.proto", {
  includeDirs: [`${protos}/inference`],
  keepCase: true,
  longs: Number,
});
const { GRPCInferenceService } = grpc.loadPackageDefinition(definition).inference;
const client = new GRPCInferenceService(address, grpc.credentials.createInsecure());

const call = (method, request) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });

// Texts are bytes. With `contents` in the request the response has `contents`, not raw bytes.
const request = (id, model, texts, parameters) => ({
  id,
  model_name: model,
  parameters,
  inputs: [
    {
      name: "text",
      datatype: "BYTES",
      shape: [texts.length],
      contents: { bytes_contents: texts.map((text) => Buffer.from(text)) },
    },
  ],
});
const output = (response, name) => response.outputs.find((each) => each.name === name).contents;
const textsOf = (response) => output(response, "text").bytes_contents.map(String);

async function main() {
  const { ready } = await call("ModelReady", { name: "spell" });
  console.log(JSON.stringify(ready));

  const answer = await call("ModelInfer", request("1", "spell", ["71", "40"], { beam_size: { int64_param: 2 } }));
  console.log(JSON.stringify([answer.id, textsOf(answer), output(answer, "num_output_tokens").int_contents]));

  const stream = client.ModelStreamInfer();
  stream.write(request("2", "count", ["one two"], { max_tokens: { int64_param: 8 } }));
  stream.write(request("3", "count", ["one two"], { beams: { int64_param: 8 } }));
  stream.end();
  let text = "";
  for await (const { error_message, infer_response } of stream) {
    if (error_message) {
      console.log(JSON.stringify([infer_response.id, error_message.slice(0, 50)]));
    } else {
      text += textsOf(infer_response).join("");
    }
  }
  console.log(JSON.stringify(text));
}

main();
