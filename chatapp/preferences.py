"""What a conversation wants of its replies, whichever model and tier give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from knowledge.relevance import ANSWERED

from .words import whole_characters

#: How many passages a question brings along when they fit.
PASSAGES, MOST_PASSAGES = 4, 10

Text = Annotated[str, AfterValidator(whole_characters)]

#: The knowledge bases that are asked, by name: one, several, or none.
Asked = str | list[str] | None


def asking(names: Iterable[str]) -> Asked:
    """Names as they are kept and told: one is a name by itself, as it was before there could be several."""
    several = [name for name in dict.fromkeys(names) if name]
    return several if len(several) > 1 else next(iter(several), None)


def names_of(asked: Asked) -> list[str]:
    """The names, in their order."""
    return [asked] if isinstance(asked, str) else list(asked or ())


Bases = Annotated[Text | list[Text] | None, AfterValidator(lambda asked: asking(names_of(asked)))]


def _named(followups: Any) -> Any:
    """What was true or false before a model could be asked, by the name that it has now."""
    return {True: "rule", False: "off"}[followups] if isinstance(followups, bool) else followups


#: How a question is made to stand alone before the search: not at all, by the rule, or by the loaded model.
Followups = Annotated[Literal["off", "rule", "model"], BeforeValidator(_named)]


class SamplingChoice(BaseModel):
    """How tokens are drawn, where that differs from what the model's authors recommend."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    def options(self) -> dict[str, Any]:
        """The fields of models.Sampling that were chosen."""
        # Dividing by next to nothing gives infinities; what is meant is the likeliest token.
        temperature = 0.0 if self.temperature is not None and self.temperature < 0.01 else self.temperature
        chosen = {"temperature": temperature, "top_p": self.top_p, "seed": self.seed}
        return {name: value for name, value in chosen.items() if value is not None}


class Retrieving(BaseModel):
    """How documents are searched: how many passages a turn gets, from which relevance on (0 to 1) they are taken to
    answer, and in the order of which of knowledge.ranking.METHODS they come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passages: int = Field(PASSAGES, ge=1, le=MOST_PASSAGES)
    threshold: float = Field(ANSWERED, ge=0, le=1)
    method: Literal["both", "words", "meaning"] = "both"


class Preferences(SamplingChoice):
    """The settings of a conversation; what is None is left to the model, or not asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: Text | None = None
    knowledge_base: Bases = None
    max_tokens: int | None = Field(None, ge=1)
    mode: Literal["documents", "chat", "auto"] | None = None  #: as answering.Mode
    followups: Followups | None = None
    retrieval: Retrieving | None = None
