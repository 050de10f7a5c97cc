// Stream an answer with grpc-js: node examples/grpc_js_stream.mjs [HOST:PORT] [MODEL] [PROTO]
// First: npm install @grpc/grpc-js @grpc/proto-loader
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address = "127.0.0.1:8001", model = "smollm2", proto = "proto/inference.proto"] =
  process.argv.slice(2);
const { inference } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

// Typed contents: the answer's tensors come typed too.
const tensor = (name, datatype, contents) => ({ name, datatype, shape: [1], contents });
const bytes = (text) => ({ bytes_contents: [Buffer.from(text)] });
const stream = client.ModelStreamInfer();
stream.on("data", ({ error_message, infer_response }) => {
  if (error_message) {
    console.error(error_message);
    process.exitCode = 1;
    return;
  }
  const [text] = infer_response.outputs;
  process.stdout.write(text.contents.bytes_contents[0].toString());
});
stream.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
stream.on("end", () => {
  console.log();
  client.close();
});
stream.write({
  model_name: model,
  id: "1",
  inputs: [
    tensor("text_input", "BYTES", bytes("The capital of France is")),
    tensor("sampling_parameters", "BYTES", bytes('{"temperature": 0, "max_tokens": 16}')),
    tensor("stream", "BOOL", { bool_contents: [true] }),
  ],
});
stream.end();
