"""KServe's own gRPC client against a server: python kserve_client.py ADDRESS. Runs in an environment of its own."""

import asyncio
import json
import sys

import grpc
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(model: str, *texts: str, **parameters: object) -> InferRequest:
    tensor = InferInput("text", [len(texts)], "BYTES", data=list(texts))
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7", parameters=parameters)


async def main(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        print(json.dumps([await client.is_server_live(), await client.is_server_ready()]))
        print(json.dumps([await client.is_model_ready("spell"), await client.is_model_ready("nothing")]))
        # The protocol without Triton's extensions has no floating point: a number may come as a string.
        answer = await client.infer(request("spell", "71", "40", temperature="0.1", seed=5))
        outputs = {each.name: each for each in answer.outputs}
        texts = [each.decode() if isinstance(each, bytes) else each for each in outputs["text"].data]
        print(json.dumps([answer.id, answer.model_version, texts, outputs["finish_reason"].shape]))
        try:
            await client.infer(request("spell", "71", beams=4))
        except grpc.RpcError as error:
            print(json.dumps(error.code().name))


asyncio.run(main(sys.argv[1]))
