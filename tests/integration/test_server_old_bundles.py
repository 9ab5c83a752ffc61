"""A bundle that an older release exported is served, and answers as it did then."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.serving import serving

from dragoman.server.bundle.manifest import GoldenExample
from dragoman.server.bundle.reader import Bundle
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD = ("schema_1/spell/1", "schema_1/spell/2", "schema_1/count/1", "schema_1/count/2", "aligned/spell/1",
       "extending/count/3", "extending/count/4", "halves/spell/1", "halves/count/1")  # fmt: skip


def answers(bundle: Bundle) -> Iterator[tuple[GoldenExample, str]]:
    """Golden examples with the texts of their answers."""
    for example, input_ids in zip(bundle.manifest.golden_examples, bundle.golden_inputs(), strict=True):
        ids = list(example.token_ids)
        if bundle.manifest.task == "translation":
            yield example, bundle.tokenizer.decode(ids)
        else:
            prompt = bundle.tokenizer.decode(input_ids)
            yield example, bundle.tokenizer.decode([*input_ids, *ids]).removeprefix(prompt)


@pytest.mark.parametrize("name", OLD)
async def test_an_old_bundle_answers_as_it_did(name: str, tmp_path: Path) -> None:
    bundle = Bundle.read(FIXTURES / name)
    assert bundle.manifest.schema_version == 1
    shutil.copytree(bundle.path, tmp_path / bundle.name / bundle.version)
    async with serving(tmp_path) as served:
        for example, expected in answers(bundle):
            options = decoding_pb2.DecodingOptions(max_tokens=example.max_tokens)
            if bundle.manifest.task == "translation":
                request = translation_pb2.TranslateRequest(
                    model=bundle.name, inputs=[example.text], options=options
                )
                [translation] = (await served.translation.Translate(request)).translations
                assert translation.text == expected
                continue
            prompt = generation_pb2.GenerateRequest(model=bundle.name, prompt=example.text, options=options)
            assert "".join([each.text_delta async for each in served.generation.Generate(prompt)]) == expected
