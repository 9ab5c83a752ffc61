"""The messages in which the protocol describes the server and its models."""

import functools
from importlib import metadata

from dragoman.inference import grpc_service_pb2 as pb
from dragoman.inference import model_config_pb2
from dragoman.server.errors import ModelNotFound
from dragoman.server.fronts.grpc.open_inference.outputs import DEFAULT_OUTPUTS, OUTPUTS
from dragoman.server.fronts.grpc.open_inference.parameters import PRIORITY_LEVELS
from dragoman.server.fronts.grpc.open_inference.requests import INPUTS
from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel

__all__ = ["is_served", "model_config", "model_metadata", "server_metadata"]

EXTENSIONS = ("model_configuration", "model_repository", "statistics")
"""The extensions of the protocol, by the names that Triton gives them."""
BACKEND = "dragoman"
DEFAULT_PRIORITY_LEVEL = 2

_DATATYPES = {
    "BYTES": model_config_pb2.TYPE_STRING,
    "INT32": model_config_pb2.TYPE_INT32,
    "FP32": model_config_pb2.TYPE_FP32,
}
_KINDS = {
    "cpu": model_config_pb2.ModelInstanceGroup.KIND_CPU,
    "cuda": model_config_pb2.ModelInstanceGroup.KIND_GPU,
}


def server_metadata() -> pb.ServerMetadataResponse:
    """Name, version and extensions of the server."""
    return pb.ServerMetadataResponse(name="dragoman", version=_version(), extensions=EXTENSIONS)


@functools.cache
def _version() -> str:
    return metadata.version("dragoman")  # looks through folders


def is_served(registry: Registry, name: str, version: str) -> bool:
    """Whether calls for a model are answered; `version` is a number, an alias, or "" for any."""
    try:
        registry.lease(name, version)
    except ModelNotFound:
        return False
    return True


def model_metadata(registry: Registry, name: str, version: str) -> pb.ModelMetadataResponse:
    """Versions, inputs and outputs of a model. Outputs that need an option are left out: generic clients ask for all.

    Raises:
        ModelNotFound: no such version is served.
    """
    model = registry.lease(name, version).model
    task = model.manifest.task
    response = pb.ModelMetadataResponse(
        name=model.name,
        versions=[each.version for each in registry.models if each.name == name],
        platform=_platform(model),
    )
    for input_name in INPUTS[task]:
        response.inputs.add(name=input_name, datatype="BYTES", shape=[-1, 1])
    for output_name in DEFAULT_OUTPUTS:
        shape = [-1, *_dims(output_name)]
        response.outputs.add(name=output_name, datatype=OUTPUTS[output_name].datatype, shape=shape)
    return response


def model_config(model: ServedModel, max_inputs: int) -> model_config_pb2.ModelConfig:
    """Returns a model in Triton's terms. Dimensions are those of one text of a batch."""
    manifest, facts = model.manifest, model.engine.facts
    config = model_config_pb2.ModelConfig(
        name=model.name, platform=_platform(model), backend=BACKEND, max_batch_size=max_inputs
    )
    for index, name in enumerate(INPUTS[manifest.task]):
        config.input.add(name=name, data_type=model_config_pb2.TYPE_STRING, dims=[1], optional=index > 0)
    for name in DEFAULT_OUTPUTS:
        config.output.add(name=name, data_type=_DATATYPES[OUTPUTS[name].datatype], dims=_dims(name))
    config.instance_group.add(name="lanes", kind=_KINDS[facts.provider], count=facts.num_lanes)
    config.dynamic_batching.priority_levels = max(PRIORITY_LEVELS)
    config.dynamic_batching.default_priority_level = DEFAULT_PRIORITY_LEVEL
    config.model_transaction_policy.decoupled = True  # a stream has any number of responses to a request
    parameters = {
        "task": manifest.task,
        "precision": manifest.precision,
        "provider": facts.provider,
        "num_parameters": manifest.dimensions.num_parameters,
        "max_input_tokens": model.max_input_tokens,
        "max_output_tokens": manifest.limits.max_output_tokens,
    }
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)
    return config


def _platform(model: ServedModel) -> str:
    return f"{BACKEND}_{model.manifest.task}"


def _dims(output: str) -> list[int]:
    """The dimensions of an output beside the batch: hypotheses, then tokens."""
    return [-1] if OUTPUTS[output].kind == "text" else [-1, -1]
