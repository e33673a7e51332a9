"""The lineage graph, its layout and its page."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.tracking.layout import lay_out
from infra.tracking.lineage import Lineage, Node
from infra.tracking.page import BOX_HEIGHT, render


def manifest(step: str, inputs: dict[str, str], records: list[dict[str, Any]], raw: bool = False) -> dict[str, Any]:
    file = {"path": "/data/a b.jsonl", "sha256": "f" * 64, "num_bytes": 1234}
    return {
        "step": step,
        "key": step[0] * 32,
        "inputs": {name: {"step": name, "key": key} for name, key in inputs.items()},
        "raw": {"source": [file]} if raw else {},
        "records": records,
        "metrics": {"validation_loss": 1.5},
        "measured": {"seconds": 61.0},
        "config": {"learning_rate": 0.1},
        "made_by_run": "run",
        "tags": {"git_commit": "c" * 40},
    }


def model(name: str) -> dict[str, Any]:
    fields = {"path": "model", "name": name, "task": "fill-mask", "metrics": {}, "alias": None}
    return {"type": "model", "registered_name": None, **fields}


@pytest.fixture
def lineage() -> Lineage:
    """raw -> corpus -> train -> model -> judge; corpus -> other."""
    prompt = {"type": "prompt", "name": "p", "template": "</script><script>alert(1)</script>{{text}}"}
    steps = [
        manifest("corpus", {}, [], raw=True),
        manifest("train", {"corpus": "c" * 32}, [model("net")]),
        manifest("judge", {"train": "t" * 32, "corpus": "c" * 32}, [prompt]),
        manifest("other", {"corpus": "c" * 32}, []),
    ]
    return Lineage.of(steps, Path("/root"))


def test_a_consumer_hangs_on_the_model_and_not_on_the_step_that_made_it(lineage: Lineage) -> None:
    net = f"model/{'t' * 32}/model"
    assert (net, f"judge/{'j' * 32}") in lineage.edges
    assert (f"train/{'t' * 32}", f"judge/{'j' * 32}") not in lineage.edges


def test_around_a_model_is_all_above_and_below_and_nothing_beside(lineage: Lineage) -> None:
    names = {node.name for node in lineage.around(f"model/{'t' * 32}/model").nodes}
    assert names == {"a b.jsonl", "corpus", "train", "net", "judge", "p"}


def test_a_raw_file_has_its_rows_once_a_source_also_beside_manifests_without_them() -> None:
    def reading(step: str, key: str, source: str, num_rows: int | None) -> dict[str, Any]:
        rows = {} if num_rows is None else {"num_rows": num_rows}
        file = {"path": "/data/a.csv", "sha256": "f" * 64, "num_bytes": 9, **rows}
        return {**manifest(step, {}, []), "key": key * 32, "raw": {source: [file]}}

    old = [reading("corpus", "1", "wiki", None), reading("task", "2", "train", None)]
    new = [reading("corpus", "3", "wiki", 54), reading("corpus", "4", "news", 53)]
    for manifests in ([*old, *new], [*new, *old]):
        (raw,) = (node for node in Lineage.of(manifests, Path("/root")).nodes if node.kind == "raw")
        assert raw.facts["sources"] == {"corpus.wiki": 54, "corpus.news": 53, "task.train": None}
        assert raw.facts["num_rows"] in (53, 54)
    (raw,) = (node for node in Lineage.of(old, Path("/root")).nodes if node.kind == "raw")
    assert raw.facts["num_rows"] is None and "sha256" in raw.facts


def test_the_page_shows_the_rows_of_a_raw_file() -> None:
    steps = manifest("corpus", {}, [], raw=True)
    steps["raw"]["source"][0]["num_rows"] = 117791
    shown = next(n for n in content_of(render(Lineage.of([steps], Path("/root"))))["nodes"] if n["kind"] == "raw")
    assert shown["line"] == "117,791 rows · 1.2 kB" and shown["what"]["num_rows"] == 117791
    assert shown["what"]["read by"] == "corpus.source"


def test_json_comes_back_as_the_same_graph(lineage: Lineage) -> None:
    assert Lineage.from_dict(json.loads(json.dumps(lineage.to_dict()))) == lineage


def random_dag(number: int, seed: int) -> tuple[dict[str, float], list[tuple[str, str]]]:
    chance = random.Random(seed)
    heights = {f"n{index}": chance.choice([1.0, 1.0, 2.5]) for index in range(number)}
    edges = {(f"n{chance.randrange(max(0, i - 30), i)}", f"n{i}") for i in range(5, number) for _ in range(2)}
    return heights, sorted(edges)


@pytest.mark.parametrize("number", [1, 3, 40, 300])
def test_no_two_nodes_of_a_column_overlap_and_every_edge_goes_right(number: int) -> None:
    heights, edges = random_dag(number, seed=number)
    layout = lay_out(heights, edges)
    columns: dict[float, list[tuple[float, float]]] = {}
    for name, (column, row) in layout.places.items():
        columns.setdefault(column, []).append((row - heights[name] / 2, row + heights[name] / 2))
    for spans in columns.values():
        spans.sort()
        assert all(below[0] >= above[1] - 1e-9 for above, below in itertools.pairwise(spans))
    for (source, target), route in layout.routes.items():
        assert (route[0], route[-1]) == (layout.places[source], layout.places[target])
        assert [b[0] - a[0] for a, b in itertools.pairwise(route)] == [1.0] * (len(route) - 1)


def test_a_graph_that_can_be_drawn_without_crossings_is() -> None:
    """Two chains given in an order that would cross them."""
    layout = lay_out(dict.fromkeys("abcd", 1.0), [("a", "d"), ("b", "c")])
    (_, a), (_, b), (_, c), (_, d) = (layout.places[name] for name in "abcd")
    assert (a - b) * (d - c) > 0


def content_of(page: str) -> dict[str, Any]:
    start = page.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    content: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return content


def test_what_users_wrote_stays_text_in_the_page(lineage: Lineage) -> None:
    page = render(lineage, about="</title><script>x")
    assert "<script>alert" not in page and "<script>x" not in page
    assert content_of(page)["about"] == "</title><script>x"
    assert any(node.get("text", "").startswith("</script>") for node in content_of(page)["nodes"])


def test_a_model_hangs_below_its_step_in_the_same_column(lineage: Lineage) -> None:
    nodes = {node["name"]: node for node in content_of(render(lineage))["nodes"]}
    assert 0 < nodes["net"]["x"] - nodes["train"]["x"] < 50
    assert nodes["net"]["y"] >= nodes["train"]["y"] + BOX_HEIGHT
    assert nodes["train"]["line"] == "loss 1.500 · 1m01s"


def test_flops_and_what_was_measured_are_cost_and_the_rest_are_metrics() -> None:
    step = manifest("finetune", {}, [])
    step["metrics"] |= {"train_flops": 3e12, "sweep_flops": 5e12}
    (shown,) = content_of(render(Lineage.of([step], Path("/root"))))["nodes"]
    assert shown["cost"] == {"train_flops": 3e12, "sweep_flops": 5e12, "seconds": 61.0}
    assert shown["metrics"] == {"validation_loss": 1.5} and shown["config"] == {"learning_rate": 0.1}


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_draws_the_page_and_shows_the_target(lineage: Lineage, tmp_path: Path) -> None:
    """Every node is drawn with its name, and the panel has cost, config, neighbours and link of what is chosen."""
    linked = lineage.with_facts({f"train/{'t' * 32}": {"mlflow_url": "http://127.0.0.1:5000/#/runs/1"}})
    page = tmp_path / "page.html"
    page.write_text(render(linked, target=f"train/{'t' * 32}"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", profile, "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([str(BROWSER), *options, page.as_uri()], capture_output=True, text=True, timeout=60)
    drawn, _, panel = done.stdout.partition("<aside")
    assert drawn.count('role="button"') == len(lineage.nodes)
    assert all(f">{name}</text>" in drawn for name in ("a b.jsonl", "corpus", "train", "net", "judge", "other", "p"))
    panel = panel.partition("</aside>")[0]
    for told in ("<h2>train</h2>", "61", "learning_rate", "http://127.0.0.1:5000/#/runs/1", ">corpus</button>"):
        assert told in panel, panel


def test_an_empty_lineage_is_a_page(lineage: Lineage) -> None:
    assert content_of(render(Lineage(nodes=(), edges=())))["size"] == [0, 0]
    alone = Node(id="raw/x", kind="raw", name="x", facts={"num_bytes": 0})
    assert len(content_of(render(Lineage(nodes=(alone,), edges=())))["nodes"]) == 1
