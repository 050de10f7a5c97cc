"""LoRA adapters: which folders are taken, which names, and what vLLM is told of them."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from router.policies import RoundRobin
from router.settings import RouterSettings
from runtime.errors import InvalidConfig, InvalidRequest, ModelAlreadyExists
from server.models import ModelManager, ServedModel
from tests.lora_folder import write_adapter
from wire.cards import ModelCard
from wire.generate import GenerateRequest
from wire.sampling import Sampling
from worker.adapters import SETTINGS, WEIGHTS, read_adapters
from worker.vllm_adapters import NO_ADAPTER, engine_adapters

SIZES = {
    "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
}  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    return write_adapter(tmp_path / "one", tmp_path, seed=1, rank=4)


def test_an_adapter_is_read_with_its_name_and_rank(adapter: Path) -> None:
    (found,) = read_adapters([f"mine={adapter}"], ["model"])
    assert (found.name, found.path, found.rank) == ("mine", adapter.resolve(), 4)


@pytest.mark.parametrize("text", ["", "mine", "=folder", "mine="])
def test_an_adapter_without_a_name_or_folder_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="expected NAME=FOLDER"):
        read_adapters([text])


def test_a_name_is_taken_once(adapter: Path) -> None:
    for given, taken in (([f"a={adapter}", f"a={adapter}"], []), ([f"a={adapter}"], ["a"])):
        with pytest.raises(InvalidConfig, match="'a' is given twice"):
            read_adapters(given, taken)


@pytest.mark.parametrize("file", [SETTINGS, WEIGHTS])
def test_a_folder_without_an_adapter_is_refused_by_what_it_lacks(adapter: Path, file: str) -> None:
    (adapter / file).unlink()
    with pytest.raises(InvalidConfig, match=file):
        read_adapters([f"a={adapter}"])


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"peft_type": "IA3", "r": 4}, "IA3"), ({"peft_type": "LORA"}, "r is None"),
     ({"peft_type": "LORA", "r": 0}, "r is 0")],
)  # fmt: skip
def test_settings_of_another_kind_are_refused(adapter: Path, settings: dict, why: str) -> None:
    (adapter / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(InvalidConfig, match=why):
        read_adapters([f"a={adapter}"])


def test_on_a_cpu_the_engine_holds_one_more_adapter_that_changes_nothing(
    adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    given = read_adapters([f"a={adapter}"])
    assert engine_adapters(given, tmp_path, on_cpu=False) == given
    assert engine_adapters((), tmp_path, on_cpu=True) == ()
    own, neutral = engine_adapters(given, tmp_path, on_cpu=True)
    assert own == given[0]
    assert (neutral.name, neutral.rank) == (NO_ADAPTER, 4)
    weights, like = load_file(neutral.path / WEIGHTS), load_file(adapter / WEIGHTS)
    assert {name: it.shape for name, it in weights.items()} == {
        name: it.shape for name, it in like.items()
    }
    assert not any(it.any() for it in weights.values())
    assert any(it.any() for it in like.values())


def served(name: str, *adapters: str) -> ServedModel:
    card = ModelCard(
        name=name, path="", context_length=10, vocab_size=10, block_size=4, adapters=adapters
    )
    return ServedModel(card, None, RoundRobin(RouterSettings()))


def asked(model: str, lora_name: str | None = None) -> str | None:
    request = GenerateRequest(
        request_id="r", model=model, sampling=Sampling(), prompt="x", lora_name=lora_name
    )
    return served("base", "a", "b").with_adapter(request).lora_name


def test_an_adapter_is_asked_for_as_a_model_or_by_parameter() -> None:
    assert asked("base") is None
    assert asked("base", "a") == asked("a") == asked("a", "a") == "a"


def test_an_adapter_there_is_not_is_refused_in_the_words_of_tritons_backend() -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked("base", "c")
    assert caught.value.message == "LoRA c is not supported, we currently support ['a', 'b']"
    assert caught.value.param == "lora_name"
    with pytest.raises(InvalidRequest, match="'b' where the model asked for is the adapter 'a'"):
        asked("a", "b")
    request = GenerateRequest(
        request_id="r", model="base", sampling=Sampling(), prompt="x", lora_name="c"
    )
    with pytest.raises(InvalidRequest, match=r"^LoRA feature is not enabled\.$"):
        served("base").with_adapter(request)


def test_the_name_of_an_adapter_finds_its_model_and_is_nobody_elses() -> None:
    models = ModelManager()
    models.add(served("base", "a"))
    assert models.get("a").card.name == "base"
    for other in (served("a"), served("new", "a"), served("new", "base")):
        with pytest.raises(ModelAlreadyExists):
            models.add(other)


def test_an_adapter_can_be_asked_for_once_every_worker_has_it() -> None:
    model = served("base", "a")
    cards = [served("base", *names).card for names in (("a", "b"), ("b", "c"))]
    model.fit(cards)
    assert model.card.adapters == ("b",)
