"""A benchmark writes over what an earlier run of one left, and over nothing else."""

import json
from pathlib import Path

import pytest
from benchmarks.report import add_json_option, add_plot_option, argument_parser, write_json, write_plot
from matplotlib.figure import Figure
from tests.trees import tree


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_what_an_earlier_run_left_is_replaced_and_nothing_else(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argument_parser("A benchmark.")
    add_json_option(parser)
    add_plot_option(parser, "figures")
    for _ in range(2):
        options = parser.parse_args([option, str(tmp_path / "new" / "file")])
        if option == "--json":
            write_json(options.json, {"machine": {}, "figure": 1})
        else:
            write_plot(options.plot, Figure())
    assert list(tree(tmp_path)) == ["new", "new/file"]

    (tmp_path / "thesis").write_text(json.dumps({"chapters": 7}))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n a cat")
    (tmp_path / "link").symlink_to("new/file")
    before = tree(tmp_path)
    for name in ("thesis", "photo.png", "link", "new"):
        with pytest.raises(SystemExit):
            parser.parse_args([option, str(tmp_path / name)])
        assert str(tmp_path / name) in capsys.readouterr().err
    assert tree(tmp_path) == before
