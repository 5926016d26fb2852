"""Names and rules of models."""

from collections.abc import Hashable, Iterable
from typing import Any

from proxy.declared.fields import Field, Wrong
from proxy.declared.kinds.base import Entry, Kind, columns
from proxy.default_models import WORDS
from proxy.model_names import canonical_pattern
from proxy.models import DefaultModels, ModelAlias, ModelPolicy, PassThroughRoute


class Aliases(Kind):
    section, noun, model, required = "aliases", "alias", ModelAlias, ("pattern", "model")

    def make_fields(self) -> Iterable[Field]:
        return columns(ModelAlias, "pattern", "model", "enabled")

    def identity(self, row: ModelAlias) -> Hashable:
        return row.pattern

    def fill(self, row: ModelAlias, entry: Entry) -> None:
        super().fill(row, entry)
        if row.model not in WORDS and canonical_pattern(row.pattern) == canonical_pattern(row.model):
            raise Wrong("both names mean the same model.", entry.line)

    def name_of(self, row: ModelAlias) -> str:
        return row.pattern


class Defaults(Kind):
    """One row, and so one entry, that the file writes without a list."""

    section, noun, model, required = "default_models", "default models", DefaultModels, ()

    def make_fields(self) -> Iterable[Field]:
        return columns(DefaultModels, chat="chat_model", embedding="embedding_model")

    def find(self, entry: Entry) -> Any:
        return self.rows.get(())

    def fill(self, row: DefaultModels, entry: Entry) -> None:
        row.id = 1
        super().fill(row, entry)

    def may_remove(self, row: Any) -> bool:
        return False


class PassThroughs(Kind):
    section, noun, model, required = "pass_through", "pass-through route", PassThroughRoute, ("path",)

    def make_fields(self) -> Iterable[Field]:
        return columns(PassThroughRoute, "path", "method", "right", "names_model", "enabled", "note")

    def identity(self, row: PassThroughRoute) -> Hashable:
        return (row.path, row.method)


class Policies(Kind):
    section, noun, model, required = "model_policies", "model policy", ModelPolicy, ("pattern",)

    def make_fields(self) -> Iterable[Field]:
        return columns(ModelPolicy, "pattern", "num_ctx", "load_options", "keep_alive", "max_output_tokens")
