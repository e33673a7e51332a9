"""Config and command line: what a user writes arrives, and every mistake is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.journal.step import Step
from pipelines.compose import CONF, PIPELINES, load_config
from pipelines.config import PipelineConfig
from pipelines.llm import build
from pipelines.overrides import parse

GROUP_FILES = [
    f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name != "pipeline"
]


@pytest.mark.parametrize("override", GROUP_FILES)
def test_every_file_of_conf_makes_a_valid_config(override: str) -> None:
    group, _, name = override.partition("=")
    also = [
        f"{other}={name}"
        for other in ("cluster", "pretrain", "model")
        if group in ("cluster", "pretrain", "model") and other != group and (CONF / other / f"{name}.yaml").exists()
    ]
    if name == "gpu64":
        also = ["model=7b", "pretrain=7b", "prompt=gpu_cluster"]
    load_config("llm", [override, *also])


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pipeline_binds(pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text\n")
    assert build(load_config(pipeline, [])).name == "compare"


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("task.label_column=类别", "task.label_column", "类别"),
        ("task.text_column=2024", "task.text_column", "2024"),
        ("task.train=data/*.jsonl", "task.train", "data/*.jsonl"),
        ("task.train=a b=c.jsonl", "task.train", "a b=c.jsonl"),
        ("prompt.template=问：{{text}} 答：{{label}}", "prompt.template", "问：{{text}} 答：{{label}}"),
        (
            "corpus.sources=[{path: texts/*.jsonl, text_column: text}]",
            "corpus.sources",
            [{"path": "texts/*.jsonl", "text_column": "text"}],
        ),
        ("corpus.sources=[{path: *.txt}]", "corpus.sources", [{"path": "*.txt"}]),
        ("pretrain_mlm.learning_rate=1e-3", "pretrain_mlm.learning_rate", 1e-3),
        ("task.validation=null", "task.validation", None),
        ("finetune.label_budgets=[100, all]", "finetune.label_budgets", [100, "all"]),
        ("prompt.verbalizer={体育: 体育, no: no}", "prompt.verbalizer", {"体育": "体育", "no": "no"}),
    ],
)
def test_values_need_no_quotes(argument: str, key: str, value: object) -> None:
    found = parse([argument], PipelineConfig, frozenset({"corpus", "model"}))
    assert found.values == {key: value} and not found.problems


def test_a_group_is_chosen_and_values_lie_over_it() -> None:
    config = load_config("llm", ["model=gpu", "pretrain_mlm.model.num_layers=3"])
    assert (config.pretrain_mlm.model.hidden_size, config.pretrain_mlm.model.num_layers) == (768, 3)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("llm", ["pretrain_mlm.stepz=3", "pretrain_clm.steps=many", "finetunee.seeds=1"])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "pretrain_mlm.stepz: unknown key; did you mean pretrain_mlm.steps?" in text
    assert "pretrain_clm.steps: 'many' is not allowed" in text and "finetunee" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=huge"], "model=huge: conf/model/ has no such file; there are: 7b, gpu, gpu_cluster, laptop"),
        (["steps"], "'steps' is not key=value"),
        (["pretrain_mlm.global_batch_size=15"], "must be a multiple of .*num_workers=2"),
        (["corpus.sources=[{path: a"], "corpus.sources: .* cannot be read"),
        (["pretrain_mlm.model.num_heads=3"], "hidden_size=128 must be a multiple of"),
        (["prompt.template=no places"], "prompt.template"),
        (["seed=-1"], "seed: -1 is not allowed"),
        (
            ["pretrain_clm.model.max_position_embeddings=128", "tune_decoder.sequence_length=256"],
            "tune_decoder.sequence_length=256 is more than the 128 positions of the decoder",
        ),
        (["tune_decoder.model.dropout=0.1"], "tune_decoder.model.dropout=0.1: llama .* drops no hidden states"),
        (["pretrain_mlm.ds_config={zero_optimization:{stage:3}}"], "'stage:3' lacks a space after its colon"),
        (["tune_decoder.model.hidden_size=64"], "tune_decoder.model.hidden_size: the decoder that is tuned is that of"),
        (["finetune.registered_model=a/b"], "finetune.registered_model: 'a/b' is not allowed"),
        (["corpus.sources=[{pat: x}]"], r"\A(?!.*at least 1 item)(?s:.*)corpus.sources.0.pat: unknown key"),
        (["task.labels=[a]"], "task: labels has 1 entries"),
        (["tracking.uri=ftp://host"], "tracking.uri: 'ftp://host' is not allowed: write http"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("llm", arguments)


def test_a_pipeline_samples_the_data_of_the_default_only() -> None:
    assert load_config("smoke", []).task.sample_fraction < 1
    own = load_config("smoke", ["task.train=mine.jsonl", "corpus.sources=[{path: mine.txt}]"])
    assert (own.task.sample_fraction, own.corpus.sample_fraction) == (1.0, 1.0)
    assert load_config("smoke", ["task.train=mine.jsonl", "task.sample_fraction=0.5"]).task.sample_fraction == 0.5


def test_values_that_do_not_fit_are_told_beside_those_that_are_not_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("llm", ["pretrain_mlm.steps=-5", "pretrain_clm.global_batch_size=15", "prompt.shots=[-1]"])
    text = str(caught.value)
    assert all(key in text for key in ("pretrain_mlm.steps", "pretrain_clm.global_batch_size=15", "prompt.shots"))


def test_text_is_never_an_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    config = load_config("llm", ["prompt.instruction=${seed} ${oc.env:SECRET} ${", "task.label_column=${a}"])
    assert (config.prompt.instruction, config.task.label_column) == ("${seed} ${oc.env:SECRET} ${", "${a}")


def test_a_mapping_for_storage_is_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMZERO_HOME", "/elsewhere")
    assert load_config("llm", ["storage={root: here}"]).storage.root == "here"
    with pytest.raises(ConfigError, match="storage: 3 is not allowed"):
        load_config("llm", ["storage=3"])


def test_a_verbalizer_is_set_label_by_label() -> None:
    config = load_config("llm", ["prompt.verbalizer.好评=好", "prompt.verbalizer.差评=差"])
    assert dict(config.prompt.verbalizer or {}) == {"好评": "好", "差评": "差"}


def test_licences_reach_what_is_trained() -> None:
    step = build(
        load_config("llm", ["corpus.sources=[{path: README.md, license: CC0}, {path: LICENSE, format: text}]"])
    )
    finetune = step.inputs["finetune"]
    assert finetune.inputs["pretrain_mlm"].config.data_license == "CC0; not stated for source1"
    assert "labelled rows: WordNet 3.1" in finetune.config.data_license


def test_a_value_that_no_member_of_a_union_takes_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("llm", ["finetune.label_budgets=[all,many]"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("finetune.label_budgets.1: 'many' is not allowed: ") and "should be 'all'" in line


def test_a_tracking_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("llm", ["tracking.uri=sqlite:///m.db"]).tracking.uri == f"sqlite:///{tmp_path}/m.db"


def test_the_root_comes_from_the_command_line_before_the_environment_before_conf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load_config("llm", []).storage.root == ".fromzero"
    monkeypatch.setenv("FROMZERO_HOME", str(tmp_path))
    assert load_config("llm", []).storage.root == str(tmp_path)
    assert load_config("llm", ["storage.root=x"]).storage.root == "x"


def test_one_seed_reaches_every_stage() -> None:
    config = load_config("llm", ["seed=7"])
    assert {config.pretrain_mlm.seed, config.pretrain_clm.seed, config.finetune.seed, config.prompt.seed} == {7}


def test_an_existing_tokenizer_counts_by_the_content_of_its_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "a [model]"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "model.safetensors").write_text("weights")
    settings = ["tokenizer.kind=existing", f"tokenizer.path={folder}"]

    def made() -> Step:
        step = build(load_config("llm", settings))
        while "tokenizer" not in step.inputs:
            step = step.inputs["pretrain_mlm"]
        return step.inputs["tokenizer"]

    first = made()
    assert [Path(file.path).name for file in first.raw["existing"]] == ["tokenizer.json"]
    (folder / "model.safetensors").write_text("other weights")
    assert made().raw == first.raw
    (folder / "tokenizer_config.json").write_text("{}")
    assert len(made().raw["existing"]) == 2
    with pytest.raises(ConfigError, match=r"tokenizer\.path: .* matches no file"):
        build(load_config("llm", ["tokenizer.kind=existing", f"tokenizer.path={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=existing: give its folder as tokenizer\.path"):
        load_config("llm", ["tokenizer.kind=existing"])
