import json

import pytest

from dragoman.client.channel import ChannelSettings, resolve_target
from dragoman.common.errors import UsageError


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("localhost:8500", "dns:///localhost:8500"),
        ("10.0.0.7:1", "dns:///10.0.0.7:1"),
        ("[::1]:8500", "dns:///[::1]:8500"),
        ("dns:///models.default.svc:8500", "dns:///models.default.svc:8500"),
        ("unix:/run/dragoman.sock", "unix:/run/dragoman.sock"),
        ("ipv4:10.0.0.7:1,10.0.0.8:1", "ipv4:10.0.0.7:1,10.0.0.8:1"),
    ],
)
def test_every_address_behind_a_name_is_used(target: str, name: str) -> None:
    assert resolve_target(target) == name


@pytest.mark.parametrize(
    "target",
    ["", "localhost", ":8500", "localhost:", "localhost:http", "h:70000", "http://host:80", "a/b:1"],
)
def test_a_target_that_is_none_is_refused_with_its_value(target: str) -> None:
    with pytest.raises(UsageError, match=r"is not of the form HOST:PORT") as caught:
        resolve_target(target)
    assert repr(target) in str(caught.value)


def test_the_service_config_balances_and_retries() -> None:
    arguments = dict(ChannelSettings(max_attempts=3).arguments(""))
    config = json.loads(str(arguments["grpc.service_config"]))
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    [method] = config["methodConfig"]
    assert method["retryPolicy"]["maxAttempts"] == 3
    assert {name["service"] for name in method["name"]} == {
        "dragoman.v1.TranslationService",
        "dragoman.v1.GenerationService",
        "dragoman.v1.ModelService",
    }


def test_one_attempt_means_no_retries() -> None:
    settings = ChannelSettings(max_attempts=1)
    assert "retryPolicy" not in settings.service_config()["methodConfig"][0]
    assert dict(settings.arguments(""))["grpc.enable_retries"] == 0


@pytest.mark.parametrize("attempts", [0, 6])
def test_attempts_that_grpc_would_clip_are_refused(attempts: int) -> None:
    with pytest.raises(UsageError, match=f"max_attempts = {attempts}"):
        ChannelSettings(max_attempts=attempts)
