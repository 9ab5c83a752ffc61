"""Write docs/reliability.md from what the programs of tests/load measured.

python tools/reliability_page.py docs/figures/reliability docs/reliability.md
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

HEAD: Final = """# Reliability

What happens to calls when too many come, when parts of a server die, when models change, and when somebody attacks.
Each section is one run of one program of [tests/load](../tests/load/), with its command, date, commit and machine. A
program ends with exit code 1 where a bound is broken. Small runs of the same programs are tests in CI. `make soak
FIGURES=docs/figures/reliability` and its kin write the files of [figures/reliability](figures/reliability/), and
`make reliability` writes this page from them.
"""

SECTIONS: Final[Mapping[str, str]] = {
    "soak": """Soak

Mixed calls: two tasks, beams, seeded samples, rules, alternatives, scores, streams, malformed calls. Some callers
cancel, have too little time, break their connections off or send half a call. An engine in the program's own process
has answered every distinct call alone beforehand. Answers are compared byte for byte. If callers go away, the server
may count their calls as answered or not. All others have to be counted by the status that callers received.
""",
    "overload": """Overload

Ten times the peak, each call with a deadline of twice the p99 at 80 % of the peak. Sleeps replace the graphs, as if the
model was larger: the callers run on the same machine and could not send ten times the peak of a small model. A call
that is accepted and then misses its deadline counts as infinitely slow.
""",
    "faults": """Faults

Two fronts and two lanes under load. A call has to end with the right answer, or with a status that our client repeats.
The server is ready again when new connections get right answers, five in a row, and all processes are there. A killed
server is started again at once, as a supervisor does.
""",
    "kills": """SIGKILL again and again

Lanes, hosts and fronts are killed at random moments, some while others are being replaced.
""",
    "rolling": """Rolling change

Two servers behind our client's balancer. Callers go on with calls, streams and generated text while the servers change.
At last a new version's share of the calls grows from nothing to all of them. A sticky key has to have the same version
on both servers, and may not go back to the old one.
""",
    "cluster": """Several hosts

Three servers, each on a host of its own (a network namespace), by our client's balancer, through nginx and through
Envoy with the files of [examples/gateways](examples/gateways). Half of a gateway's clients repeat nothing. Each server
is restarted, one host is cut off for 15 s without the end of a connection, one stands still for 5 s. What was under way
on the host that is cut off may be lost: a stream, and through nginx the call of a client that repeats nothing. Such a
call may also be lost through nginx where it meets a server just as that stops. No other call may fail.
""",
    "fuzz": """Hostile input: decoders and readers of files

Messages of both protocols and metadata go through the whole chain of a front. Random damage to sound input, and inputs
that atheris (libFuzzer) finds by looking for new code.
""",
    "hostile": """Hostile input: attacks on a live server

A neighbour on a connection of its own asks for a translation all the time. Its latency is that of each attack. A second
server has a port of TLS that asks for certificates. Memory is counted without pages of files.
""",
    "side-by-side": """Side by side with Triton

The same weights in fp32 behind `dragoman serve`, and behind Triton with CTranslate2 in its Python backend and dynamic
batching, one after the other. Triton runs as it comes, and once with a bounded queue: 64 calls wait, for half a second
at most. Calls of the overload have 32 texts, those of the floods and of SIGTERM one. The statuses beside a flood are
those of the attackers' calls. After SIGTERM the callers repeat nothing: UNAVAILABLE is a call that was never begun,
which clients repeat by themselves.

Triton answers more of these small calls a second, and most floods slow its neighbour less. In overload nearly all of
its answers come too late, and after SIGTERM it answers NOT_FOUND, which no client repeats. Dragoman's overload is
worse here than in the section above: callers, front and lanes share two cores, so refusals are sent late, too.
""",
}


def page(figures: Iterable[Mapping[str, Any]]) -> str:
    """The page's text."""
    by_name = {each["name"]: each for each in figures}
    return "\n".join([HEAD, *(_section(by_name[name]) for name in SECTIONS if name in by_name)])


def _section(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    lines = [f"## {SECTIONS[run['name']]}"]
    lines += [f"`{run['command']}`", ""]
    where = f"{machine['cpu']}, {machine['usable_cores']} cores"
    lines += [f"{run['date']}, commit {run['commit']}, {where}, load {machine['load_average_1_min']}.", ""]
    if run["bounds"]:
        rows = [[each["what"], each["measured"], each["limit"], _verdict(each)] for each in run["bounds"]]
        lines += _table(["bound", "measured", "limit", "holds"], rows)
    lines += [f"- {name}: {value}" for name, value in run["facts"].items()]
    lines += [""] if run["facts"] else []
    for table in run["tables"]:
        lines += [f"**{table['title']}**", "", *_table(table["columns"], table["rows"])]
    return "\n".join(lines)


def _verdict(bound: Mapping[str, Any]) -> str:
    return "yes" if bound["holds"] else "**no**"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    heads = [_cell(each) for each in columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Command line: the folder of figures, and the page."""
    folder, target = map(Path, sys.argv[1:])
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    target.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
