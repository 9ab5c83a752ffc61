"""The messages and services of the public contract, generated from the .proto files beside them."""
