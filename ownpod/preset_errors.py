"""The errors of presets, a part of the tree of :mod:`ownpod.errors`."""

from collections.abc import Sequence

from ownpod.errors import BadRequest, OwnPodError

LONGEST_LIST = 50
"""Number of known names that an error lists."""


class UnknownModel(BadRequest):
    """No preset has this model.

    Args:
        model_id: as the client wrote it.
        known: the models that have presets.
    """

    code = "unknown_model"

    def __init__(self, model_id: str, known: Sequence[str]) -> None:
        super().__init__(f"model {model_id[:200]!r} has no presets; {_known('models', known)}")


class UnknownPreset(BadRequest):
    """The model has no such preset.

    Args:
        model_id: a model with presets.
        preset: as the client wrote it.
        known: the presets of the model.
    """

    code = "unknown_preset"

    def __init__(self, model_id: str, preset: str, known: Sequence[str]) -> None:
        super().__init__(
            f"model {model_id!r} has no preset {preset[:200]!r}; {_known('presets', known)}"
        )


class UnknownDifficulty(BadRequest):
    """No preset may run with this difficulty."""

    code = "unknown_difficulty"

    def __init__(self, difficulty: str, known: Sequence[str]) -> None:
        super().__init__(
            f"difficulty {difficulty[:200]!r} is unknown; {_known('difficulties', known)}"
        )


def _known(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
    return f"known {what}: {', '.join(names[:LONGEST_LIST]) or 'none'}{more}"


class ModelNotFound(OwnPodError):
    """No preset has this model, and no host.

    Args:
        model_id: as the client wrote it.
    """

    http_status = 404
    code = "model_not_found"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"model {model_id[:200]!r} is in no preset, and on no host")
