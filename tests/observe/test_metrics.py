"""Both sides' metrics, read as Prometheus reads them."""

import contextlib
import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from offramp.errors import AccessError, PortError, ServerUnavailableError
from offramp.observe.edge_metrics import EdgeMetrics
from offramp.observe.server_metrics import ServerMetrics
from offramp.runtime.edge import Edge
from offramp.runtime.result import Latency, Result
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.access import Access
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = DOCS / "grafana" / "offramp.json"


def samples(text):
    """By name and labels, `{(name, ((label, value), …)): number}`."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text, name, **labels):
    return samples(text)[name, tuple(sorted(labels.items()))]


@pytest.fixture
def observed(joined, script, says, scrape):
    """A run over every way to be answered: gives the texts of both ports, and the results."""

    def run():
        metrics = ServerMetrics()
        policy = script((-1,), (0, (0,)), (0, (), "uint8"), (2, (0, 2)), (3,))
        with (
            joined(policy, server={"observer": metrics}) as (edge, server),
            HttpServer(server.service, metrics.registry, port=0) as http,
            EdgeMetrics(edge, port=0) as counted,
        ):
            metrics.watch(server.service)
            results = []
            inputs = [says({0: 0.6, 2: 0.7, 3: 0.8})] * 4 + [says({0: 0.9})] * 5 + [np.zeros(3, np.float32)]
            for result in edge.run(inputs, under_way=2):
                counted.count(result)
                results.append(result)
            return scrape(counted.port), scrape(http.port), results

    return run


def test_results_are_counted_as_they_are(observed):
    edge, _, results = observed()
    assert [r.status for r in results] == ["ok"] * 9 + ["failed"]
    for (name, labels), number in samples(edge).items():
        given = dict(labels)
        if name == "offramp_edge_results_total":
            assert number == sum(
                (r.status, r.where or "none", "none" if r.exit is None else str(r.exit))
                == (given["status"], given["where"], given["exit"])
                for r in results
            )
        if name == "offramp_edge_actions_total":
            assert number == sum(
                r.action is not None
                and (str(r.action.split), r.action.mode, "yes" if r.payload_bytes else "no")
                == (given["split"], given["mode"], given["offloaded"])
                for r in results
            )
    assert (
        value(edge, "offramp_edge_results_total", bundle="tiny", status="failed", where="none", exit="none") == 1
    )
    far = [r for r in results if r.where == "server"]
    assert 0 < len(far) < 9
    assert value(edge, "offramp_edge_sent_bytes_total", bundle="tiny") == sum(r.payload_bytes for r in results)
    assert value(edge, "offramp_edge_received_bytes_total", bundle="tiny") == sum(r.reply_bytes for r in results)
    assert {r.reply_bytes for r in far} == {2 * 4 + 8}  # two logits, one exit
    for part, name in [("server", "server"), ("queue", "queue")]:
        total = sum(getattr(r.latency_ms, part) for r in far) / 1e3
        assert value(edge, f"offramp_edge_{name}_seconds_sum", bundle="tiny") == pytest.approx(total)
    assert value(edge, "offramp_edge_round_trip_seconds_count", bundle="tiny") == len(far)
    assert value(edge, "offramp_edge_head_seconds_count", bundle="tiny") == 9
    assert value(edge, "offramp_edge_cost_sum", bundle="tiny") == pytest.approx(sum(r.cost for r in results))
    assert value(edge, "offramp_edge_latency_seconds_count", bundle="tiny", where="server") == len(far)


def test_the_edge_shows_its_state(observed):
    edge, _, _ = observed()
    assert value(edge, "offramp_edge_breaker_open", bundle="tiny") == 0
    for stage in "0123":
        assert value(edge, "offramp_edge_stage_mean_seconds", bundle="tiny", stage=stage) > 0
    assert value(edge, "offramp_edge_link_round_trip_seconds", bundle="tiny") > 0
    assert ("offramp_edge_link_bytes_per_second", (("bundle", "tiny"),)) in samples(edge)
    assert value(edge, "process_resident_memory_bytes") > 1e6


def test_both_sides_agree(observed):
    edge, server, results = observed()
    far = [r for r in results if r.where == "server"]
    found = samples(server)
    answered = sum(number for (name, _), number in found.items() if name == "offramp_answers_total")
    assert answered == len(far)
    received = sum(number for (name, _), number in found.items() if name == "offramp_received_bytes_total")
    assert received == value(edge, "offramp_edge_sent_bytes_total", bundle="tiny")
    sent = sum(number for (name, _), number in found.items() if name == "offramp_sent_bytes_total")
    assert sent == value(edge, "offramp_edge_received_bytes_total", bundle="tiny")
    # Every request ends in the last stage here, perhaps beside another one.
    last = value(server, "offramp_stage_samples_sum", bundle="tiny", stage="3")
    assert last == len(far)
    assert value(server, "offramp_stage_seconds_count", bundle="tiny", stage="3") <= len(far)
    assert value(server, "offramp_requests_under_way") == 0


def test_a_breaker_that_opens_shows(tiny, script, says, scrape):
    class Away:
        def infer(self, request, timeout_s=None):
            raise ServerUnavailableError("nobody there")

        def close(self):
            pass

    edge = Edge(tiny, Away(), script((0, (), "float", (0,))))
    with EdgeMetrics(edge, port=0) as metrics:
        opened = []
        for result in edge.run([says({0: 0.6})] * 4):
            metrics.count(result)
            opened.append(value(scrape(metrics.port), "offramp_edge_breaker_open", bundle="tiny"))
        text = scrape(metrics.port)
    assert opened == [0, 0, 1, 1]
    assert value(text, "offramp_edge_results_total", bundle="tiny", status="degraded", where="edge", exit="3") == 4
    split = {"bundle": "tiny", "split": "0", "mode": "float"}
    assert value(text, "offramp_edge_actions_total", offloaded="yes", **split) == 3
    assert value(text, "offramp_edge_actions_total", offloaded="no", **split) == 1
    assert value(text, "offramp_edge_received_bytes_total", bundle="tiny") == 0


def test_without_a_server_there_is_no_link_to_show(tiny):
    metrics = EdgeMetrics(Edge(tiny))
    names = {family.name for family in metrics.registry.collect()}
    assert "offramp_edge_stage_mean_seconds" in names
    assert not {name for name in names if "link" in name or "breaker" in name}


def test_labels_are_few_whatever_clients_invent(joined, script):
    metrics = ServerMetrics()
    with joined(script((0,)), server={"observer": metrics}) as (_, server):
        for i in range(50):
            server.service.failed(f"made-up-{i}", ServerUnavailableError("no"))
    found = [s for family in metrics.registry.collect() for s in family.samples if "requests_total" in s.name]
    assert [(s.labels, s.value) for s in found] == [({"model": "unknown", "code": "UNAVAILABLE"}, 50.0)]


def test_who_is_not_let_in_is_counted(tiny):
    metrics, access = ServerMetrics(), Access(["a" * 16])
    with (
        GrpcServer(Tail(Stages(tiny)), port=0, observer=metrics, access=access) as server,
        HttpServer(server.service, port=0, access=access) as http,
        contextlib.closing(GrpcChannel(f"127.0.0.1:{server.port}")) as channel,
    ):
        for ask in (
            lambda: channel.infer(TailRequest("tiny", {"input": np.zeros((1, 8), np.float32)}), 10),
            lambda: channel.check("tiny", ""),  # no inference, so not counted
        ):
            with pytest.raises(AccessError):
                ask()
        for path in ("/v2/models/tiny/infer", "/v2/repository/index"):
            with pytest.raises(urllib.error.HTTPError, match="401") as found:
                urllib.request.urlopen(f"http://127.0.0.1:{http.port}{path}", b"{}", timeout=10)
            found.value.close()
    found = [
        s for family in metrics.registry.collect() for s in family.samples if s.name == "offramp_requests_total"
    ]
    assert [(s.labels, s.value) for s in found] == [({"model": "unknown", "code": "UNAUTHENTICATED"}, 2.0)]


def test_the_port_is_free_again_afterwards(tiny, scrape):
    edge = Edge(tiny)
    with EdgeMetrics(edge, port=0) as metrics:
        port = metrics.port
        with pytest.raises(PortError, match=f"{port}.*choose another port"), EdgeMetrics(edge, port=port):
            pass
    with EdgeMetrics(edge, port=port):
        assert "offramp_edge" in scrape(port)
    for wrong in (-1, 70000):
        with pytest.raises(PortError, match=str(wrong)), EdgeMetrics(edge, port=wrong):
            pass
    with pytest.raises(PortError, match=r"192\.0\.2\.1"), EdgeMetrics(edge, port=0, host="192.0.2.1"):
        pass


@pytest.mark.parametrize("host", ["..", "a" * 64 + ".example", "no such host", "1.2.3.4.5", "a\0b"])
def test_an_address_that_is_none(tiny, host):
    with pytest.raises(PortError, match="cannot show metrics"), EdgeMetrics(Edge(tiny), port=0, host=host):
        pass


def test_only_this_machine_is_told_unless_asked_otherwise(tiny):
    with EdgeMetrics(Edge(tiny), port=0) as metrics:
        # This machine as well, by another address.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", metrics.port), 5)
        socket.create_connection(("127.0.0.1", metrics.port), 5).close()


def test_a_port_of_ones_own(tiny):
    metrics = EdgeMetrics(Edge(tiny))
    with metrics:
        metrics.count(Result(0, "ok", exit=0, where="edge", latency_ms=Latency(1.0, 1.0)))
        assert metrics.port is None
    assert metrics.registry.get_sample_value(
        "offramp_edge_results_total", {"bundle": "tiny", "status": "ok", "where": "edge", "exit": "0"}
    )


# --- what documents say ---------------------------------------------------------------------------------


def families(text):
    """Name without suffix → the labels that it may have."""
    found = {}
    for family in text_string_to_metric_families(text):
        # `…_created` is the library's own: when a series began.
        if family.name.startswith("offramp") and not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = set().union(*(set(sample.labels) - {"le"} for sample in family.samples))
    return found


def test_the_table_of_metrics_is_what_is_shown(observed):
    edge, server, _ = observed()
    page = (DOCS / "observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(offramp_\w+)` \| (.*?) \|", page, re.MULTILINE)
    said = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert len(rows) == len(said)
    assert said == {**families(edge), **families(server)}


def panels():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return dashboard, [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_one():
    dashboard, shown = panels()
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["title"]
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])
    assert dashboard["id"] is None  # Grafana gives its own
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    everything = dashboard["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert cells
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in shown:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_the_dashboard_asks_for_what_there_is(observed):
    edge, server, _ = observed()
    known = {}
    for name, labels in samples(edge) | samples(server):
        known.setdefault(name, set()).update(label for label, _ in labels)
    dashboard, shown = panels()
    queries = [target["expr"] for panel in shown for target in panel["targets"]]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    asked = set()
    for query in queries:
        names = re.findall(r"\b(?:offramp|process)_\w+", query)
        assert names, query
        assert set(names) <= set(known), query
        asked |= set(names)
        # Scraping adds `job` and `instance`.
        labels = set().union(*(known[name] for name in names)) | {"job", "instance"}
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
        used |= {w for group in re.findall(r"\bby\s*\(([^)]*)\)", query) for w in re.findall(r"\w+", group)}
        used |= set(re.findall(r"label_values\(\w+,\s*(\w+)\)", query))
        assert used <= labels, query
        for variable in re.findall(r"\$(\w+)", query):
            assert variable in {v["name"] for v in dashboard["templating"]["list"]} | {"__rate_interval"}, query
    # Every family is on it.
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {*families(edge), *families(server)} - stems == set()


def test_help_and_types_are_given(observed):
    for text in observed()[:2]:
        for family in text_string_to_metric_families(text):
            assert family.documentation
            assert family.type in ("counter", "gauge", "histogram")


def test_scraped_while_it_runs(joined, script, says, scrape):
    """Between any two results both ports answer."""
    metrics = ServerMetrics()
    with (
        joined(script((0,)), server={"observer": metrics}) as (edge, server),
        HttpServer(server.service, metrics.registry, port=0) as http,
        EdgeMetrics(edge, port=0) as counted,
    ):
        seen = []
        for result in edge.run([says({0: 0.6, 3: 0.9})] * 5):
            counted.count(result)
            near = value(scrape(counted.port), "offramp_edge_sent_bytes_total", bundle="tiny")
            far = value(scrape(http.port), "offramp_received_bytes_total", model="tiny-tail-0")
            seen.append((near, far))
        assert seen == [(32 * k, 32 * k) for k in range(1, 6)]
        with urllib.request.urlopen(f"http://127.0.0.1:{counted.port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
