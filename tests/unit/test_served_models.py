"""Models by name and alias, and which of them is the default."""

import pytest

from router.policies import RoundRobin
from router.settings import RouterSettings
from runtime.errors import InternalError, ModelAlreadyExists, ModelNotFound
from server.models import ModelManager, ServedModel
from wire.cards import ModelCard


def card(name: str, *aliases: str, context_length: int = 100) -> ModelCard:
    return ModelCard(
        name=name, path="", context_length=context_length, vocab_size=10, block_size=4,
        aliases=aliases,
    )  # fmt: skip


def model(name: str, *aliases: str) -> ServedModel:
    return ServedModel(card(name, *aliases), None, RoundRobin(RouterSettings()))


def test_a_model_is_found_by_its_name_and_aliases() -> None:
    models = ModelManager()
    one, two = model("one", "uno", "eins"), model("two")
    models.add(one)
    models.add(two)
    assert models.get("one") is models.get("uno") is models.get("eins") is one
    assert models.list() == [one, two]
    assert models.has("uno")
    assert not models.has("three")
    with pytest.raises(ModelNotFound, match="'three' is not served here"):
        models.get("three")


def test_the_default_is_the_first_and_when_it_goes_the_next() -> None:
    models = ModelManager()
    assert models.default is None
    with pytest.raises(ModelNotFound, match="no model is served here"):
        models.get("")
    one, two = model("one"), model("two")
    models.add(one)
    models.add(two)
    assert models.get("") is models.default is one
    assert models.remove("one") is one
    assert models.get("") is two
    models.add(one)
    assert models.get("") is two


@pytest.mark.parametrize(
    "other", [model("one"), model("uno"), model("new", "one"), model("new", "uno")]
)
def test_a_name_or_alias_of_another_model_is_refused(other: ServedModel) -> None:
    models = ModelManager()
    models.add(model("one", "uno"))
    with pytest.raises(ModelAlreadyExists):
        models.add(other)
    assert len(models.list()) == 1


def test_a_model_that_is_not_there_can_be_neither_removed_nor_replaced() -> None:
    models = ModelManager()
    models.add(model("one", "uno"))
    with pytest.raises(ModelNotFound):
        models.remove("uno")  # an alias is no model
    with pytest.raises(ModelNotFound):
        models.replace(model("two"))


def test_a_replaced_model_keeps_its_place() -> None:
    models = ModelManager()
    models.add(model("one"))
    models.add(model("two"))
    fresh = model("one", "uno")
    models.replace(fresh)
    assert models.default is models.get("uno") is fresh
    with pytest.raises(ModelAlreadyExists):
        models.replace(model("two", "uno"))


def test_a_model_takes_what_all_its_workers_can_and_every_alias() -> None:
    one = model("one")
    one.fit([card("one", "a", context_length=200), card("one", "b", "a", context_length=50)])
    assert one.card.aliases == ("a", "b")
    assert one.card.context_length == 50
    one.fit([])
    assert one.card.context_length == 50


def test_a_model_without_its_text_side_says_so() -> None:
    with pytest.raises(InternalError):
        _ = model("one").codec
