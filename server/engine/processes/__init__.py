"""Lanes as processes: the host that has the weights, the lanes that it forks, and the sockets between all of them."""
