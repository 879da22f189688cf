"""What a model's files may ask of this machine: settings by a list, memory by its weights, no code from elsewhere."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from pipeline.base import LeafError, TokenIds
from pipeline.model import Student, build, resolve_model
from pipeline.model.model_files import load_transformer, model_sha256
from pipeline.params import EncodeParams, StudentParams, TeacherParams
from pipeline.teacher import LocalTeacher
from stages.common import command
from tests.conftest import sentence

ENCODE = EncodeParams(token_budget=256)
ROWS = pl.DataFrame({"role": ["query", "document"], "text": [sentence(1), sentence(2)]})


@pytest.fixture
def model(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "model"))


def change(file: Path, **settings: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | settings))


def teach(directory: Path, **params: Any) -> np.ndarray:
    return LocalTeacher(TeacherParams(str(directory), **params), ENCODE).vectors(ROWS)


def student(directory: Path, **params: Any) -> Student:
    return build(StudentParams(str(directory), **params), dim=8, normalize=True)


USERS: dict[str, Callable[..., Any]] = {"teacher": teach, "student": student}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("group", "arguments"),
    [
        ("model_kwargs", {"use_kernels": True}),
        ("model_args", {"allow_all_kernels": True, "attn_implementation": "somebody/kernel"}),
        ("model_kwargs", {"kernel_config": {"x": "somebody/kernel"}}),
        ("model_kwargs", {"quantization_config": {"quant_method": "fp8"}}),
        ("model_kwargs", {"subfolder": "../elsewhere"}),
        ("processor_kwargs", {"tokenizer_file": "/elsewhere/tokenizer.json"}),
        ("tokenizer_args", {"cache_dir": "/elsewhere"}),
        ("config_kwargs", {"revision": "other", "force_download": True}),
        ("config_args", {"auto_map": {"AutoModel": "code.Model"}}),
    ],
)
def test_a_setting_that_is_not_on_the_list_is_refused_before_anything_is_loaded(
    model: Path, user: str, group: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(model / "sentence_bert_config.json", **{group: arguments})
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", pytest.fail)
    with pytest.raises(LeafError, match=rf"sentence_bert_config\.json: `{group}` asks for `{min(arguments)}`"):
        USERS[user](model)


@pytest.mark.parametrize("user", USERS)
def test_weights_that_need_code_from_elsewhere_are_refused(model: Path, user: str) -> None:
    change(model / "config.json", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(LeafError, match=r"config\.json: its weights are quantised"):
        USERS[user](model)


def test_attention_is_not_the_models_choice(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, own = teach(model), student(model).backbone
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", pytest.fail)
    change(model / "sentence_bert_config.json", model_kwargs={"attn_implementation": "somebody/kernel"})
    change(model / "config.json", _attn_implementation="somebody/kernel", _experts_implementation="somebody/kernel")
    assert np.array_equal(teach(model), before)
    assert type(student(model).backbone) is type(own)


@pytest.mark.parametrize("user", USERS)
def test_an_ordinary_setting_of_the_tokenizer_is_still_obeyed(model: Path, user: str) -> None:
    change(model / "sentence_bert_config.json", tokenizer_args={"padding_side": "right"}, config_args={})
    USERS[user](model)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vocab_size": 12_000_000_000}, "names a model of more than .* parameters"),
        ({"intermediate_size": 10**9}, "names a model of more than .* parameters"),
        ({"max_position_embeddings": 10**10}, "names a model of more than .* parameters"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000: no model has so many"),
        ({"num_hidden_layers": 9999}, "names a model of more than .* parameters|lacks .* of the weights"),
        ({"num_labels": 10**9}, "`num_labels` is 1000000000"),
    ],
    ids=str,
)
def test_sizes_that_no_weights_stand_behind_take_no_memory(
    model: Path, user: str, settings: dict[str, Any], reason: str
) -> None:
    change(model / "config.json", **settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LeafError, match=reason):
        USERS[user](model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def test_a_student_without_weights_is_limited_too(model: Path) -> None:
    change(model / "config.json", vocab_size=12_000_000, hidden_size=256)
    with pytest.raises(LeafError, match=r"names a model of more than 1,\d{3},\d{3},\d{3} parameters"):
        student(model, weights="random")


def test_the_pin_covers_every_file_that_decides_vectors_or_runs(model: Path) -> None:
    pin = model_sha256(model)
    assert np.isfinite(teach(model, sha256=pin)).all() and student(model, sha256=pin.upper())
    (model / "README.md").write_text("other words")
    assert model_sha256(model) == pin
    files = [file for file in sorted(model.rglob("*")) if file.is_file() and file.suffix != ".md"]
    assert {file.name for file in files} >= {"config_sentence_transformers.json", "modules.json", "tokenizer.json"}
    for file in files:
        raw = file.read_bytes()
        file.write_bytes(raw + b" ")
        for name, user in (("teacher", teach), ("fit.student", student)):
            with pytest.raises(LeafError, match=rf"^{name}\.sha256: the files of the model .* do not trust them"):
                user(model, sha256=pin)
        file.write_bytes(raw)
    (model / "code.py").write_text("print()")
    assert model_sha256(model) != pin


def test_a_pin_of_the_weights_alone_is_told_apart(model: Path) -> None:
    from pipeline.model import weights_sha256

    with pytest.raises(LeafError, match="the digest of the weights alone, which earlier versions wanted"):
        teach(model, sha256=weights_sha256(model))


def test_a_file_that_is_swapped_while_the_model_is_loaded_is_noticed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.teacher import local

    original: Any = vars(local)["load_sentence_transformer"]
    pin = model_sha256(model)

    def swapping(*arguments: Any) -> Any:
        loaded = original(*arguments)
        change(model / "1_Pooling" / "config.json", pooling_mode="cls")
        return loaded

    monkeypatch.setattr(local, "load_sentence_transformer", swapping)
    with pytest.raises(LeafError, match=r"teacher\.sha256"):
        teach(model, sha256=pin)


def with_panic(directory: Path) -> Path:
    """Have the tokenizer split words by an expression that tries for ever and gives up in a panic."""
    state = json.loads((directory / "tokenizer.json").read_text())
    state["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(state))
    return directory


PANICKING = "a" * 60 + "!"


def test_a_panic_of_the_tokenizer_is_one_sentence(model: Path) -> None:
    with_panic(model)
    rows = pl.DataFrame({"role": ["query"], "text": [PANICKING]})
    teacher = LocalTeacher(TeacherParams(str(model)), ENCODE)
    with pytest.raises(LeafError, match=r"its tokenizer breaks off .*native code gave up"):
        teacher.vectors(rows)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with pytest.raises(LeafError, match=r"the model's tokenizer breaks off .*native code gave up"):
        TokenIds(tokenizer)([PANICKING])

    @command
    def stage() -> None:
        tokenizer.encode(PANICKING)

    done = CliRunner().invoke(stage, [])
    assert done.exit_code == 1 and done.output.startswith("Error: a library's native code gave up: ")


def test_settings_that_the_library_takes_and_we_cannot_are_one_sentence(model: Path) -> None:
    way = {"method": "forward", "method_output_name": {"a": "b"}}
    change(model / "sentence_bert_config.json", modality_config={"text": way})
    with pytest.raises(LeafError, match="cannot be loaded as a sentence-transformers model"):
        teach(model)


def test_vectors_wider_than_any_store_take_no_memory(model: Path) -> None:
    change(model / "1_Pooling/config.json", embedding_dimension=10**16)
    with pytest.raises(LeafError, match="name vectors of 10000000000000000 dimensions"):
        teach(model)


def test_a_tokenizer_whose_template_lacks_a_token_makes_no_student(model: Path) -> None:
    """Its library gives up where a backbone asks it for a text."""
    content = json.loads((model / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"] = {}
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LeafError, match=r"fit\.student\.model"):
        student(model)


def test_an_unknown_token_that_is_unknown_makes_no_student(model: Path) -> None:
    change(model / "tokenizer_config.json", unk_token="")  # the library looks it up by itself, and never ends
    with pytest.raises(LeafError, match="cannot be a student"):
        student(model)


def test_a_student_reads_a_token_at_least(model: Path) -> None:
    transformer = load_transformer(model, "model")
    transformer.max_seq_length = -5
    transformer.save(str(model))
    with pytest.raises(LeafError, match="reads -5 tokens of a text"):
        student(model)


@pytest.mark.parametrize("inside", ["/tmp", "//tmp", "../os", "x/../../os", ""])
def test_a_packages_model_lies_inside_it(inside: str) -> None:
    model = f"package:json/{inside}"
    if not inside:
        assert resolve_model(model).name == "json"
        return
    with pytest.raises(LeafError, match="is not inside the package `json`"):
        resolve_model(model)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("path", ["/tmp", "../..", "1_Pooling/../../x"])
def test_a_models_modules_lie_inside_it(model: Path, user: str, path: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = path
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LeafError, match="names a module outside of its directory"):
        USERS[user](model)


@pytest.mark.parametrize("user", USERS)
def test_a_name_that_no_directory_has_is_refused(model: Path, user: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = "x" * 5000
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LeafError, match="names a module by 5,000 characters"):
        USERS[user](model)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x" * 5000}))
    modules[0]["path"] = ""
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LeafError, match="is no name of a model"):
        USERS[user](model)
