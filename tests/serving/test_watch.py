"""What Prometheus reads: every line has the form that it asks for, and the counts add up."""

import re

from parlance.serving.watch import Watch, exposition

LINE = re.compile(r'^[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? \d+(\.\d+(e-?\d+)?)?$')


def test_the_form_and_the_counts():
    watch = Watch(["/a"])
    for seconds in (0.001, 0.3, 100.0):
        watch.answered("/a", 200, seconds)
    watch.answered("/nobody knows", 404, 0.5)
    watch.prompt('odd "name"\\\n', 7, 3)
    watch.token("m", 0.2, first=True)
    watch.token("m", 0.01, first=False)
    text = exposition(watch.families())
    assert all(line.startswith("# ") or LINE.match(line) for line in text.splitlines())
    assert 'parlance_requests_total{path="/a",status="200"} 3' in text
    assert 'parlance_requests_total{path="other",status="404"} 1' in text
    assert 'parlance_prompt_tokens_total{model="odd \\"name\\"\\\\\\n"} 7' in text
    buckets = re.findall(r'parlance_request_seconds_bucket\{path="/a",le="([^"]+)"\} (\d+)', text)
    assert buckets[0] == ("0.005", "1")
    assert buckets[-2:] == [("60", "2"), ("+Inf", "3")]
    counts = [int(count) for _, count in buckets]
    assert counts == sorted(counts)
    assert 'parlance_request_seconds_sum{path="/a"} 100.301' in text
    assert 'parlance_generated_tokens_total{model="m"} 2' in text


def test_the_server_counts_what_it_does(server):
    before = server.metric('parlance_generated_tokens_total{model="short"}')
    body = {"model": "short", "prompt": "abc", "max_tokens": 5, "temperature": 0}
    server.call("/v1/completions", body)
    assert server.metric('parlance_generated_tokens_total{model="short"}') == before + 5
    assert server.metric('parlance_engine_running{model="short"}') == 0
    assert server.metric('parlance_requests_total{path="/v1/completions",status="200"}') > 0
