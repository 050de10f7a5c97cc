"""The models that can be asked for, by name, alias and adapter; which of them is the default."""

import msgspec

from router.router import Router
from runtime.errors import InternalError, InvalidRequest, ModelAlreadyExists, ModelNotFound
from server.text.codec import TextCodec
from server.worker_link import WorkerLink
from wire.adapter_names import check_adapter
from wire.cards import UNLOADED, UNLOADING, ModelCard
from wire.generate import GenerateRequest
from wire.pooling import EMBED

DEFAULT_MODEL = ""
"""The name that stands for the default model: what a request says that names none."""


class ServedModel:
    """A model that has, or had, workers: its card, text side, router and connected links.

    In a process that handles tokens only, `codec` raises InternalError.
    """

    def __init__(self, card: ModelCard, codec: TextCodec | None, router: Router) -> None:
        self.card = card
        self._codec = codec
        self.router = router
        self.router_works = False  # it does what could wait
        self.links: dict[str, WorkerLink] = {}

    @property
    def codec(self) -> TextCodec:
        """The text side."""
        if self._codec is None:
            raise InternalError(f"the text side of {self.card.name} was not loaded")
        return self._codec

    def check_task(self, request: GenerateRequest) -> None:
        """Raise InvalidRequest when the request is not for what this model is served for."""
        embeds = self.card.task == EMBED
        if embeds != (request.pooling is not None):
            does = "makes embeddings, not text" if embeds else "makes text, not embeddings"
            raise InvalidRequest(f"model {self.card.name!r} {does}", param="model")

    def with_adapter(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the adapter that its model's name or `lora_name` asks for.

        Raises InvalidRequest for an adapter there is not, or two different ones.
        """
        wanted = request.lora_name
        if request.model in self.card.adapters:
            if wanted not in (None, request.model):
                raise InvalidRequest(
                    f"lora_name: {wanted!r} where the model asked for is the adapter "
                    f"{request.model!r}",
                    param="lora_name",
                )
            return msgspec.structs.replace(request, lora_name=request.model)
        check_adapter(wanted, self.card.adapters)
        return request

    @property
    def ready(self) -> bool:
        """Whether a worker can take a request now."""
        return bool(self.links)

    def state(self, workers: set[str]) -> tuple[str, str]:
        """Return READY, or another state of RepositoryIndex and its reason.

        `workers` are the states (wire/cards.py) of all its workers.
        """
        if self.ready:
            return "READY", ""
        if UNLOADING in workers:
            return "UNLOADING", "being unloaded"
        if workers == {UNLOADED}:
            return "UNAVAILABLE", "unloaded"
        return "UNAVAILABLE", "no ready worker"

    def fit(self, cards: list[ModelCard]) -> None:
        """Take over what the cards of its workers have in common, and all their aliases.

        An adapter can be asked for once every worker has it.

        Every one of them must be able to take a request: the shortest context counts.
        """
        if cards:
            self.card = msgspec.structs.replace(
                self.card,
                aliases=tuple(dict.fromkeys(alias for card in cards for alias in card.aliases)),
                context_length=min(card.context_length for card in cards),
                adapters=tuple(
                    name
                    for name in cards[0].adapters
                    if all(name in card.adapters for card in cards)
                ),
            )


class ModelManager:
    """Adds, removes, lists and finds models.

    The first one added is the default; when it is removed, the one that came next is. Names,
    aliases and the names of adapters share one name space.
    """

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    @property
    def default(self) -> ServedModel | None:
        """The default model; None when there is no model."""
        return next(iter(self._models.values()), None)

    def list(self) -> list[ServedModel]:
        """Every model, in the order they were added."""
        return list(self._models.values())

    def has(self, name: str) -> bool:
        """Whether a model has this name or alias."""
        return self._find(name) is not None

    def get(self, name: str) -> ServedModel:
        """The model of this name or alias, the default one for ""; raises ModelNotFound."""
        model = self._find(name)
        if model is None:
            raise ModelNotFound(
                f"model {name!r} is not served here" if name else "no model is served here",
                param="model",
            )
        return model

    def add(self, model: ServedModel) -> None:
        """Add a model; raises ModelAlreadyExists when its name or an alias is another's."""
        self.check_names(model.card)
        if model.card.name in self._models:
            raise ModelAlreadyExists(f"model {model.card.name!r} exists already", param="model")
        self._models[model.card.name] = model

    def replace(self, model: ServedModel) -> None:
        """Put a model in the place of the one with its name; raises ModelNotFound."""
        self.check_names(model.card)
        if model.card.name not in self._models:
            raise ModelNotFound(f"model {model.card.name!r} is not served here", param="model")
        self._models[model.card.name] = model

    def remove(self, name: str) -> ServedModel:
        """Remove a model by its name; raises ModelNotFound."""
        if name not in self._models:
            raise ModelNotFound(f"model {name!r} is not served here", param="model")
        return self._models.pop(name)

    def check_names(self, card: ModelCard) -> None:
        """Raise ModelAlreadyExists when a name of this card belongs to another model."""
        for name in card.names:
            other = self._find(name) if name else None
            if other is not None and other.card.name != card.name:
                raise ModelAlreadyExists(
                    f"{name!r} is a name of model {other.card.name!r} already", param="model"
                )

    def _find(self, name: str) -> ServedModel | None:
        if name == DEFAULT_MODEL:
            return self.default
        return self._models.get(name) or next(
            (model for model in self._models.values() if name in model.card.names), None
        )
