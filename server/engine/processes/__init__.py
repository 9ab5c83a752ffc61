"""Lanes as processes: the host that has the weights, the lanes that it forks, and the sockets between all of them.

- A channel (`server/processes/channel.py`) carries messages about lanes and fronts (`messages.py`) between the host and
  another process. `supervisor.py` is the server process's end, `connection.py` a front's, `host.py` the host's. The
  host's parts are `host_fronts.py`, `host_lanes.py`, and `host_changes.py` for versions that come and go, with
  `checking.py`.
- A link carries commands and reports (`engine/api.py`) between a front and a lane, in frames (`frames.py`).
  `link.py` is the front's end, `port.py` the lane's.
- `spawn.py` starts a host, and `entry.py` is its life.
"""
