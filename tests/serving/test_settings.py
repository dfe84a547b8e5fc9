"""Settings: flags before the environment before defaults."""

import pytest

from mtsk.serving.settings import Settings


def test_the_environment_is_read() -> None:
    environment = {
        "MTSK_PORT": "9000", "MTSK_ELASTIC": "no", "MTSK_TARGET_WAIT_S": "0.5", "MTSK_API_KEY": "one, two",
        "MTSK_HOST": "::1", "MTSK_LOG_TRANSCRIPTS": "1", "MTSK_MAX_WAIT_S": " ", "OTHER": "x",
    }  # fmt: skip
    expected = Settings(
        port=9000, elastic=False, target_wait_s=0.5, api_key=("one", "two"), host="::1", log_transcripts=True
    )
    assert Settings().with_environment(environment) == expected


def test_flags_go_first() -> None:
    assert Settings(port=1234).with_environment({"MTSK_PORT": "9000"}).port == 1234


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MTSK_PORT", "abc", "MTSK_PORT=abc is not a number"),
        ("MTSK_PORT", "70000", "port 70000: allowed are 0 to 65535"),
        ("MTSK_ELASTIC", "perhaps", "MTSK_ELASTIC=perhaps: allowed are 1, true"),
        ("MTSK_MAX_WAIT_S", "0.1", "max_wait_s 0.1 is less than target_wait_s 1"),
        ("MTSK_MAX_BATCH", "0", "max_batch 0: more than 0 is needed"),
        ("MTSK_GRACE_S", "-1", "grace_s -1: 0 is the least"),
    ],
)
def test_mistakes_are_told(variable: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings().with_environment({variable: value})


def test_an_empty_key_opens_nothing() -> None:
    with pytest.raises(ValueError, match="an empty api_key is none"):
        Settings(api_key=("good", " "))
