"""A teacher gives the vectors of its own library, whatever it is made of, or is refused before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer

from pipeline.base import LeafError
from pipeline.params import EncodeParams, TeacherParams
from pipeline.params.sections import Prompts
from pipeline.teacher import LocalTeacher
from pipeline.teacher.runners import PackedRunner
from tests.conftest import WORDS, make_model, sentence
from tests.families import make_family

ENCODE = EncodeParams(token_budget=256)
TEXTS = [sentence(number) for number in range(24)] + ["file", " ".join(WORDS)]


def configure(directory: Path, file: str, **settings: Any) -> Path:
    """Change settings in a JSON file of a model."""
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")
    return directory


@pytest.fixture
def copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher to change."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


def teacher_of(directory: Path, **params: Any) -> LocalTeacher:
    """The teacher in a directory, with these parameters."""
    return LocalTeacher(TeacherParams(str(directory), **params), ENCODE)


def lowest_cosine(teacher: LocalTeacher, **library: Any) -> float:
    """To the vectors that the library gives for each text alone, over texts of both roles in one frame."""
    model = SentenceTransformer(str(teacher.directory), device="cpu")
    roles = ["query" if number % 2 else "document" for number in range(len(TEXTS))]
    vectors = teacher.vectors(pl.DataFrame({"role": roles, "text": TEXTS}))
    encode: dict[str, Callable[..., Any]] = {"query": model.encode_query, "document": model.encode_document}
    expected = np.stack([encode[role](text, **library) for role, text in zip(roles, TEXTS, strict=True)])
    assert vectors.shape == expected.shape
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(1) / lengths).min())


def modules_of(directory: Path) -> list[Any]:
    """The modules of a model."""
    model: Any = SentenceTransformer(str(directory), device="cpu")
    return list(model)


def with_modules(directory: Path, source: Path, *modules: Any) -> Path:
    """Transformer and pooling of a model with other modules behind them."""
    first = modules_of(source)[:2]
    SentenceTransformer(modules=[*first, *modules], device="cpu").save(str(directory))
    return directory


def test_prompts_that_are_left_out_are_the_models_own(copy: Path) -> None:
    configure(copy, "config_sentence_transformers.json", prompts={"query": "sort the ", "document": "open a "})
    own, none = teacher_of(copy), teacher_of(copy, prompts=Prompts("", ""))
    assert lowest_cosine(own) > 0.999
    assert lowest_cosine(none) < 0.999
    assert lowest_cosine(none, prompt="") > 0.999
    assert own.meta.teacher["prompts"] == {"query": "sort the ", "document": "open a "}
    assert own.meta.teacher["prompts_from"] == {"query": "model", "document": "model"}
    assert own.meta.fingerprint != none.meta.fingerprint
    written = teacher_of(copy, prompts=Prompts("sort the ", "open a "))
    assert written.meta.fingerprint == own.meta.fingerprint
    assert any("own prompt 'sort the ' is put before each query" in notice for notice in own.notices())


def test_a_prompt_that_only_encode_would_use_is_named(copy: Path) -> None:
    prompts = {"passage": "open a ", "clustering": "close the "}
    configure(copy, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="clustering")
    teacher = teacher_of(copy)
    assert lowest_cosine(teacher) > 0.999
    assert any("clustering, passage are not used" in notice for notice in teacher.notices())


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean"])
def test_pooling_leaves_the_prompt_out_where_the_model_says_so(mode: str, copy: Path) -> None:
    configure(copy, "1_Pooling/config.json", include_prompt=False, pooling_mode=mode)
    configure(copy, "config_sentence_transformers.json", prompts={"query": "sort the list ", "document": "open a "})
    assert lowest_cosine(teacher_of(copy)) > 0.999
    assert lowest_cosine(teacher_of(copy, prompts=Prompts("", "")), prompt="") > 0.999


@pytest.mark.parametrize("change", ["layer", "prefix"])
def test_a_checkpoint_that_lacks_weights_is_refused(change: str, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    if change == "layer":
        weights = {name: value for name, value in weights.items() if "layer.1." not in name}
    else:
        weights = {f"_orig_mod.{name}": value for name, value in weights.items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeafError, match=r"copy`: the checkpoint lacks \d+ of the weights .*, first `"):
        teacher_of(copy).load()


def test_modules_keep_their_order_and_a_normalisation_between_them(tiny_teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_modules(tmp_path / "model", tiny_teacher, Normalize(), Dense(32, 16), Normalize())
    assert lowest_cosine(teacher_of(model)) > 0.999


def test_heads_that_lie_in_pickled_tensors_are_two_teachers(tiny_teacher: Path, tmp_path: Path) -> None:
    metas = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = with_modules(tmp_path / f"model-{seed}", tiny_teacher, Dense(32, 16))
        head = model / "2_Dense"
        torch.save(load_file(head / "model.safetensors"), head / "pytorch_model.bin")
        (head / "model.safetensors").unlink()
        teacher = teacher_of(model)
        assert lowest_cosine(teacher) > 0.999
        metas.append(teacher.meta)
    assert metas[0].fingerprint != metas[1].fingerprint


def test_a_pickle_that_would_run_code_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    model = with_modules(tmp_path / "model", tiny_teacher, Dense(32, 16))
    (model / "2_Dense" / "model.safetensors").unlink()
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LeafError, match="cannot be loaded"):
        teacher_of(model).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "settings", "other"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}, True),
        ("tokenizer_config.json", {"add_eos_token": True}, True),
        ("tokenizer_config.json", {"name_or_path": "elsewhere", "chat_template": "{}"}, False),
        ("config_sentence_transformers.json", {"prompts": {"query": "sort ", "document": ""}}, True),
        ("config_sentence_transformers.json", {"prompts": {"clustering": "sort "}}, False),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, True),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, False),
        ("1_Pooling/config.json", {"include_prompt": False}, True),
    ],
)
def test_whatever_can_change_vectors_is_in_the_fingerprint(
    file: str, settings: dict[str, Any], other: bool, copy: Path, tiny_teacher: Path
) -> None:
    configure(copy, file, **settings)
    same = teacher_of(copy).meta.fingerprint == teacher_of(tiny_teacher).meta.fingerprint
    assert same is not other


@pytest.mark.parametrize("normalize", [True, False])
def test_the_first_dimensions_are_normalised_again(normalize: bool, copy: Path) -> None:
    listing = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps([module for module in listing if "Normalize" not in module["type"]]))
    whole = teacher_of(copy, normalize=normalize)
    assert whole.meta.dim == 32
    rows = pl.DataFrame({"role": ["query"] * len(TEXTS), "text": TEXTS})
    first = whole.vectors(rows)[:, :8]
    expected = first / np.linalg.norm(first, axis=1, keepdims=True) if normalize else first
    by_parameter = teacher_of(copy, dim=8, normalize=normalize)
    np.testing.assert_allclose(by_parameter.vectors(rows), expected, atol=1e-6)
    by_model = teacher_of(configure(copy, "config_sentence_transformers.json", truncate_dim=8), normalize=normalize)
    np.testing.assert_allclose(by_model.vectors(rows), expected, atol=1e-6)
    assert by_parameter.meta.dim == by_model.meta.dim == 8
    assert by_parameter.meta.fingerprint == by_model.meta.fingerprint != whole.meta.fingerprint
    assert lowest_cosine(by_model) > 0.999


def test_more_dimensions_than_there_are_are_refused(tiny_teacher: Path) -> None:
    with pytest.raises(LeafError, match=r"teacher\.dim: 33 is impossible; .* have 32 dimensions"):
        _ = teacher_of(tiny_teacher, dim=33).meta


def test_static_embeddings_are_a_teacher(tiny_teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(tiny_teacher / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_dim=24)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    teacher = teacher_of(tmp_path / "static")
    assert lowest_cosine(teacher) > 0.9999
    assert (teacher.meta.dim, teacher.meta.teacher["max_length"]) == (24, None)
    with pytest.raises(LeafError, match=r"teacher\.max_length: .* reads whole texts"):
        _ = teacher_of(tmp_path / "static", max_length=16).meta


def test_a_router_sends_each_role_its_own_way(tiny_teacher: Path, tmp_path: Path) -> None:
    other = modules_of(make_model(tmp_path / "other", seed=3))
    router = Router.for_query_document(other, modules_of(tiny_teacher))
    prompts = {"query": "", "document": "open the "}
    SentenceTransformer(modules=[router], prompts=prompts, device="cpu").save(str(tmp_path / "router"))
    teacher = teacher_of(tmp_path / "router")
    assert lowest_cosine(teacher) > 0.999
    before = teacher.meta.fingerprint
    weights = next(path for path in sorted((tmp_path / "router").glob("query_*/model.safetensors")))
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert teacher_of(tmp_path / "router").meta.fingerprint != before


@pytest.mark.parametrize("differ", ["heads", "poolings"])
def test_routes_that_share_a_transformer_do_not_share_what_follows(
    differ: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    transformer, pooling = modules_of(tiny_teacher)[:2]
    if differ == "heads":
        routes: Any = [[transformer, pooling, Dense(32, 32)] for _ in ("query", "document")]
    else:
        routes = [[transformer, pooling], [transformer, Pooling(32, pooling_mode="cls")]]
    router = Router.for_query_document(*routes)
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "router"))
    assert lowest_cosine(teacher_of(tmp_path / "router")) > 0.999


def test_each_route_has_its_own_limit(tiny_teacher: Path, tmp_path: Path) -> None:
    short = configure(
        Path(shutil.copytree(tiny_teacher, tmp_path / "short")), "tokenizer_config.json", model_max_length=6
    )
    router = Router.for_query_document(modules_of(short), modules_of(tiny_teacher))
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "router"))
    teacher = teacher_of(tmp_path / "router")
    assert teacher.meta.teacher["max_length"] == {"query": 6, "document": 48}
    assert lowest_cosine(teacher) > 0.999
    assert teacher_of(tmp_path / "router", max_length=6).meta.teacher["max_length"] == 6


def test_a_router_without_a_route_for_a_role_is_refused_as_the_library_does(tiny_teacher: Path, tmp_path: Path) -> None:
    routes = {"query": modules_of(tiny_teacher), "passage": modules_of(tiny_teacher)}
    SentenceTransformer(modules=[Router(routes, default_route="passage")], device="cpu").save(str(tmp_path / "router"))
    with pytest.raises(LeafError, match=r"no route for a document \(routes: query, passage\)"):
        _ = teacher_of(tmp_path / "router").meta


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_that_normalises_is_kept_as_it_is(normalize: bool, copy: Path) -> None:
    teacher = teacher_of(copy, normalize=normalize)
    assert teacher.meta.normalized
    vectors = teacher.vectors(pl.DataFrame({"role": ["document"] * len(TEXTS), "text": TEXTS}))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert teacher.meta.fingerprint == teacher_of(copy).meta.fingerprint


def test_weights_for_which_bfloat16_is_too_coarse_are_computed_in_float32(copy: Path) -> None:
    weights = {
        name: value * (5 if "weight" in name else 1) for name, value in load_file(copy / "model.safetensors").items()
    }
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert lowest_cosine(teacher_of(copy)) > 0.999


def test_a_template_that_texts_pass_through_is_in_the_fingerprint(copy: Path) -> None:
    modalities = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    limits = copy / "sentence_bert_config.json"
    prints = set()
    for reads in (modalities, {**modalities, "message": modalities["text"]}):
        limits.write_text(json.dumps({"modality_config": reads, "module_output_name": "token_embeddings"}))
        for template in ("{{ messages }}", "x"):
            configure(copy, "tokenizer_config.json", chat_template=template)
            prints.add(teacher_of(copy).meta.fingerprint)
    assert len(prints) == 3  # the template counts only where it is used


def test_a_tokenizer_that_knows_no_words_is_refused(copy: Path) -> None:
    for file in [*copy.glob("*token*"), *copy.glob("vocab*")]:
        file.unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(LeafError, match=r"knows no words but .* special tokens"):
        teacher_of(copy).load()


def test_a_pooler_without_weights_is_refused_where_it_gives_the_vectors(copy: Path) -> None:
    output = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    configured = {"modality_config": output, "module_output_name": "sentence_embedding"}
    (copy / "sentence_bert_config.json").write_text(json.dumps(configured))
    listing = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(listing[:1]))
    assert lowest_cosine(teacher_of(copy)) > 0.999
    weights = {name: value for name, value in load_file(copy / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeafError, match=r"lacks 2 of the weights .* `pooler\."):
        teacher_of(copy).load()


def test_what_a_models_own_code_raises_is_one_sentence(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(copy)
    teacher.load()

    def broken(*_: object) -> None:
        raise IndexError("position 65")

    monkeypatch.setattr(PackedRunner, "forward", broken)
    with pytest.raises(LeafError, match=r"breaks off at a text of \d+ tokens \(IndexError"):
        teacher.encode_tokens(teacher.tokenize(TEXTS, "query"))


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_tables_of_positions_by_another_name_limit_a_text(family: str, tmp_path: Path) -> None:
    teacher = teacher_of(make_family(tmp_path / "plain", family))
    configure(teacher.directory, "tokenizer_config.json", model_max_length=10**30)
    assert teacher.meta.teacher["max_length"] == 64
    teacher.vectors(pl.DataFrame({"role": ["document"], "text": [" ".join(WORDS * 4)]}))


def plain_checkpoint(directory: Path, copy: Path, model: Any) -> Path:
    """A checkpoint without modules, with the words of the tiny teacher's tokenizer."""
    from transformers import AutoTokenizer

    model.save_pretrained(str(directory))
    AutoTokenizer.from_pretrained(str(copy)).save_pretrained(str(directory))
    return directory


@pytest.mark.parametrize("projected", [False, True])
def test_the_text_tower_of_clip_is_a_teacher(projected: bool, copy: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPTextConfig(vocab_size=len(WORDS) + 5, max_position_embeddings=64, projection_dim=16, **sizes, **ids)
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
    teacher = teacher_of(plain_checkpoint(tmp_path / "clip", copy, model))
    assert teacher.meta.dim == 32  # the library takes the tower's states, whether or not a projection lies beside them
    assert lowest_cosine(teacher) > 0.999


def test_canine_which_has_no_table_of_tokens_is_a_teacher_or_refused_by_name(tmp_path: Path) -> None:
    from transformers import CanineConfig, CanineModel, CanineTokenizer

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    hashes: dict[str, Any] = {
        "num_hash_buckets": 64,
        "num_hash_functions": 4,
        "downsampling_rate": 4,
        "local_transformer_stride": 16,
    }
    torch.manual_seed(0)
    CanineModel(CanineConfig(max_position_embeddings=2048, **sizes, **hashes)).save_pretrained(tmp_path / "canine")
    CanineTokenizer(model_max_length=2048).save_pretrained(tmp_path / "canine")  # type: ignore[no-untyped-call]
    teacher = teacher_of(tmp_path / "canine")
    assert teacher.meta.dim == 32
    try:
        assert lowest_cosine(teacher) > 0.999
    except LeafError as error:
        assert f"teacher `{tmp_path / 'canine'}`: cannot be run" in str(error)


def test_the_model_is_asked_for_a_width_that_stands_in_no_file(copy: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(WORDS) + 5, **sizes))
    directory = plain_checkpoint(tmp_path / "plain", copy, model)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert settings.pop("hidden_size") == 768  # which the library takes where the file names none
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    teacher = teacher_of(directory)
    assert teacher.meta.dim == 768
    assert lowest_cosine(teacher) > 0.999


def test_a_transformer_in_a_directory_of_its_own_is_found(copy: Path) -> None:
    inside = copy / "0_Transformer"
    inside.mkdir()
    for file in [path for path in copy.iterdir() if path.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            file.rename(inside / file.name)
    listing = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    listing[0]["path"] = inside.name
    (copy / "modules.json").write_text(json.dumps(listing), encoding="utf-8")
    assert lowest_cosine(teacher_of(copy)) > 0.999


def test_a_module_outside_of_the_models_directory_is_refused(copy: Path) -> None:
    listing = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    listing[1]["path"] = "../elsewhere"
    (copy / "modules.json").write_text(json.dumps(listing), encoding="utf-8")
    with pytest.raises(LeafError, match="names a module outside of its directory"):
        _ = teacher_of(copy).meta


def test_an_adapter_is_merged_and_its_base_is_in_the_fingerprint(copy: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[peft]'")
    base, model = tmp_path / "base", modules_of(copy)
    model[0].auto_model.save_pretrained(base)
    model[0].tokenizer.save_pretrained(base)
    torch.manual_seed(5)
    adapted = peft.get_peft_model(
        model[0].auto_model, peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    for file in ("model.safetensors", "config.json"):
        (copy / file).unlink()
    adapted.save_pretrained(str(copy))
    teacher = teacher_of(copy)
    assert lowest_cosine(teacher) > 0.999
    assert not any("lora" in name for name, _ in teacher._model.named_parameters())
    before = teacher.meta.fingerprint
    weights = load_file(base / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert teacher_of(copy).meta.fingerprint != before


def test_a_tokenizer_larger_than_the_table_is_refused_at_once(copy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(copy))
    tokenizer.add_tokens(["filex"])
    tokenizer.save_pretrained(str(copy))
    with pytest.raises(LeafError, match=r"1 tokens more than the model's table of .* rows, first `filex`"):
        teacher_of(copy).load()


def decoder(directory: Path, copy: Path, padding_side: str, with_padding: bool) -> Path:
    """A GPT-2 with absolute positions that pools the last token, with the words of the tiny teacher's tokenizer."""
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    tokenizer = AutoTokenizer.from_pretrained(str(copy))
    backend = tokenizer.backend_tokenizer
    backend.post_processor = None
    tokenizer.padding_side = padding_side
    tokenizer.model_max_length = 10**30
    tokenizer.pad_token = "[PAD]" if with_padding else None
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = GPT2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(directory / "plain")
    tokenizer.save_pretrained(directory / "plain")
    modules = [Transformer(str(directory / "plain")), Pooling(32, pooling_mode="lasttoken")]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory / "model"))
    return directory / "model"


@pytest.mark.parametrize(("side", "with_padding"), [("left", True), ("right", True), ("right", False)])
def test_a_decoders_vector_does_not_depend_on_its_neighbours(
    side: str, with_padding: bool, copy: Path, tmp_path: Path
) -> None:
    model = decoder(tmp_path / "gpt", copy, side, with_padding)
    teacher = teacher_of(model)
    rows = pl.DataFrame({"role": ["document"] * len(TEXTS), "text": TEXTS})
    together = teacher.vectors(rows)
    alone = np.concatenate([teacher.vectors(rows[row : row + 1]) for row in range(len(rows))])
    assert (together * alone).sum(1).min() > 0.999
    if with_padding:  # the library itself can pad nothing otherwise
        assert lowest_cosine(teacher) > 0.999
    assert teacher.meta.teacher["max_length"] == 64
    assert any("adds no end token" in notice for notice in teacher.notices())


def test_a_text_of_no_token_is_named(copy: Path, tmp_path: Path) -> None:
    teacher = teacher_of(decoder(tmp_path / "gpt", copy, "right", True))
    with pytest.raises(LeafError, match="makes no token of the query ' '"):
        teacher.tokenize(["file", " "], "query")


@pytest.mark.parametrize("revision", [None, "main", "abc"])
def test_code_of_the_models_own_needs_a_pinned_commit(revision: str | None) -> None:
    with pytest.raises(LeafError, match=r"teacher\.trust_remote_code: needs teacher\.revision to be a commit"):
        TeacherParams("model", revision=revision, trust_remote_code=True)


def test_code_of_the_models_own_runs_only_when_asked_for_and_is_in_the_fingerprint(copy: Path) -> None:
    code = (
        "import torch\nfrom torch import nn\n\n\nclass Doubled(nn.Module):\n"
        "    def forward(self, features):\n        vectors = features['sentence_embedding']\n"
        "        features['sentence_embedding'] = torch.cat([vectors, vectors.flip(1)], 1)\n        return features\n\n"
        "    def get_embedding_dimension(self):\n        return 64\n\n"
        "    @classmethod\n    def load(cls, *args, **kwargs):\n        return cls()\n"
    )
    (copy / "doubled.py").write_text(code, encoding="utf-8")
    listing = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    listing[2] = {"idx": 2, "name": "2", "path": "", "type": "doubled.Doubled"}
    (copy / "modules.json").write_text(json.dumps(listing), encoding="utf-8")
    with pytest.raises(LeafError, match="trust_remote_code"):
        teacher_of(copy).load()
    trusted = teacher_of(copy, trust_remote_code=True, revision="0" * 40)
    assert trusted.vectors(pl.DataFrame({"role": ["query"], "text": ["file"]})).shape == (1, 64)
    before = trusted.meta.fingerprint
    (copy / "doubled.py").write_text(code + "\n", encoding="utf-8")
    assert teacher_of(copy, trust_remote_code=True, revision="0" * 40).meta.fingerprint != before
