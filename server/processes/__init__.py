"""The server's processes, whatever they do: how one is started and ends, and how two exchange messages.

- `start.py` starts one. `linux.py` has what Linux knows of processes: names, parents, how one ended.
- A channel (`channel.py`) carries messages and descriptors; `memory_files.py` makes descriptors of larger contents.
- `silence.py` counts how long a process or a thread has given no sign of life.
- `logs.py` brings the log of a process to the server's log.

`engine/processes/` has the host and the lanes, `fronts/processes/` the further fronts.
"""
