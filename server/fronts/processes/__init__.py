"""Several fronts of one server: processes that answer calls on one port, each with a link to every lane."""
