"""Who may call what, and how often."""

import pytest
from running import running

from parlance.core.errors import UserError
from parlance.serving.config import ServingConfig
from parlance.serving.keys import ApiKey, Keys, read_keys


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_server_with_keys_tells_nothing_without_one(letters, short_letters, caplog):
    keys = Keys(
        [
            ApiKey(key="all-of-them", name="all"),
            ApiKey(key="only-short", name="short", models=["short"]),
            ApiKey(key="twice-a-minute", name="slow", requests_per_minute=2),
        ]
    )
    caplog.set_level("INFO")
    body = {"model": "letters", "prompt": "a secret", "max_tokens": 1}
    with running({"letters": letters, "short": short_letters}, keys=keys) as server:
        for headers in ({}, bearer("wrong"), bearer(""), {"authorization": "Basic all-of-them"}, bearer("é")):
            for path in ("/v1/models", "/metrics", "/v1/absent"):
                status, answer, told = server.call(path, headers=headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert told["www-authenticate"] == "Bearer"
        assert server.call("/health")[0] == 200
        assert server.call("/v1/completions", body, headers=bearer("all-of-them"))[0] == 200
        status, answer, _ = server.call("/v1/completions", body, headers=bearer("only-short"))
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        listed = server.call("/v1/models", headers=bearer("only-short"))[1]["data"]
        assert [model["id"] for model in listed] == ["short"]
        assert server.call("/v1/models/letters", headers=bearer("only-short"))[0] == 404
        # A model need not be named where a key may use only one.
        assert server.call("/v1/completions", {"prompt": "a"}, headers=bearer("only-short"))[1]["model"] == "short"
        codes = [server.call("/v1/models", headers=bearer("twice-a-minute")) for _ in range(3)]
        assert [code for code, _, _ in codes] == [200, 200, 429]
        assert 1 <= int(codes[2][2]["retry-after"]) <= 30
    for hidden in ("all-of-them", "only-short", "twice-a-minute", "secret"):
        assert hidden not in caplog.text
    assert "key=all" in caplog.text


def test_prompts_are_logged_only_where_asked(letters, caplog):
    caplog.set_level("INFO")
    with running({"letters": letters}, ServingConfig(log_prompts=True, drain_seconds=1)) as server:
        server.call("/v1/completions", {"prompt": "a secret", "max_tokens": 1})
    assert "a secret" in caplog.text


def test_other_host_names_are_refused_where_no_key_is_asked_for(letters):
    with running({"letters": letters}, hosts=frozenset({"127.0.0.1", "localhost"})) as server:
        assert server.call("/v1/models")[0] == 200
        assert server.call("/v1/models", headers={"host": "localhost:1"})[0] == 200
        for host in ("evil.example", "127.0.0.1.evil.example:80", "[::2]:80", ""):
            assert server.call("/v1/models", headers={"host": host})[0] == 403


def test_the_allowance_fills_up_with_time():
    now = [0.0]
    caller = Keys([ApiKey(key="12345678", requests_per_minute=60)], lambda: now[0]).find(b"12345678")
    assert caller is not None
    assert [caller.wait() for _ in range(60)] == [0.0] * 60
    assert caller.wait() == pytest.approx(1.0)
    now[0] = 0.5
    assert caller.wait() == pytest.approx(0.5)
    now[0] = 1.0
    assert caller.wait() == 0.0
    now[0] = 1e6  # no more than a minute's worth is saved up
    assert sum(caller.wait() == 0.0 for _ in range(100)) == 60


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("- key: from-file\n  name: notebook\n  models: [demo]\n")
    keys = read_keys(path, "first-one, second-one")
    assert keys is not None
    names = [keys.find(key) for key in (b"from-file", b"first-one", b"second-one", b"third-one")]
    assert [caller and caller.name for caller in names] == ["notebook", "environment 1", "environment 2", None]
    assert read_keys(None, " ,") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no list"),
        ("key: sk-secret-1", "no list"),
        ("- key: short", "at least 8"),
        ("- key: sk-secret-1\n  rights: all", "rights"),
        ("- key: sk-secret-1\n- key: sk-secret-1", "the same"),
        ("- [", "not YAML"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_showing_one(tmp_path, text, sentence):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_keys(path, None)
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "absent", None)
