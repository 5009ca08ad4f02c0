"""`adapter_config.json`, as PEFT writes it: an allow-list of what the engine can serve.

The engine (vLLM's `lora/peft_helper.py`) refuses some features and silently drops unknown keys. Here each key is either
read, known to have no effect on a trained adapter (how it was trained, a feature that is off), or without a value
(null, false, empty); everything else is refused by name.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Final, NoReturn

from pydantic import BaseModel, ConfigDict

from adapters import features
from adapters.errors import BaseMismatch, ConfigInvalid, RankTooLarge
from adapters.json_depth import MAX_LEVELS, too_deep_text
from adapters.patterns import check_patterns, condense, match_all

MAX_CONFIG_BYTES: Final = 1024 * 1024
"""PEFT's EVA lists every module, which takes 60 KB for the largest models."""

MAX_TARGET_MODULES: Final = 4096
MAX_MODULE_NAME_LENGTH: Final = 256
MAX_TEXT_LENGTH: Final = 65_536
"""Characters in `target_modules` if it is a regular expression (trainers join every module's name)."""

MAX_ALPHA: Final = 1e6


class Manifest(BaseModel):
    """The part of an adapter's config that matters to the engine.

    `rank` and `alpha` are PEFT's `r` and `lora_alpha`; the patterns override them for modules, first match first.
    `target_modules` is a list of names or one regular expression (or "all-linear"); the engine ignores it, the
    tensors in the file decide. `warnings` are sentences for the uploader.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)

    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    base_model_name: str | None = None
    base_revision: str | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, data: bytes, *, max_rank: int, strict_base: bool = False, base_name: str | None = None
    ) -> "Manifest":
        """Read the bytes of an adapter_config.json.

        `max_rank` is the engine's largest rank. `base_name` is the base that is served (its name or hub id); another
        name in the config is a warning, or an error with `strict_base`.

        Raises ConfigInvalid, UnknownConfigKey, RankTooLarge, PatternUnsupported, BaseMismatch, or the subclass of
        UnsupportedFeature that names the feature.
        """
        config = _load(data)
        features.refuse_unsupported(config)
        features.refuse_unknown(config)
        manifest = cls(
            rank=_rank(config.get("r"), "r"),
            alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
            target_modules=_target_modules(config.get("target_modules")),
            rank_pattern={k: _rank(v, "rank_pattern") for k, v in _table(config, "rank_pattern").items()},
            alpha_pattern={k: _alpha(v, "alpha_pattern") for k, v in _table(config, "alpha_pattern").items()},
            use_rslora=_flag(config, "use_rslora"),
            base_model_name=_text(config, "base_model_name_or_path"),
            base_revision=_text(config, "revision"),
        )
        check_patterns(manifest.rank_pattern, param="rank_pattern")
        check_patterns(manifest.alpha_pattern, param="alpha_pattern")
        if manifest.max_rank > max_rank:
            raise RankTooLarge(
                f"The rank is {manifest.max_rank}; this engine supports at most {max_rank}.",
                param="r" if manifest.rank > max_rank else "rank_pattern",
                details={"rank": manifest.max_rank, "max_rank": max_rank},
            )
        return manifest.model_copy(update={"warnings": manifest._base_warnings(base_name, strict=strict_base)})

    @property
    def max_rank(self) -> int:
        """The largest rank that any module may have."""
        return max([self.rank, *self.rank_pattern.values()])

    def ranks(self, modules: Iterable[str]) -> dict[str, int]:
        """The rank of each module, `rank_pattern` applied."""
        return match_all(self.rank_pattern, modules, default=self.rank)

    def alphas(self, modules: Iterable[str]) -> dict[str, float]:
        """The alpha of each module, `alpha_pattern` applied."""
        return match_all(self.alpha_pattern, modules, default=self.alpha)

    def scaling(self, rank: int, alpha: float) -> float:
        """The factor before B·A: alpha/r (LoRA, arXiv:2106.09685, §4.1) or alpha/√r (rsLoRA, arXiv:2312.03732)."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def resolve(self, modules: Iterable[str]) -> "Manifest":
        """The same adapter in terms of the modules in its weights: what is stored, hashed and loaded.

        Names instead of expressions, the commonest rank and alpha as defaults, the modules' last names (sorted) as
        `target_modules`. Two configs that mean the same for these modules resolve to the same canonical() bytes.
        `modules` must not be empty. Raises ConfigInvalid if the patterns set too many different values.
        """
        modules = sorted(set(modules))
        rank, rank_pattern = condense(self.ranks(modules), param="rank_pattern")
        alpha, alpha_pattern = condense(self.alphas(modules), param="alpha_pattern")
        return self.model_copy(
            update={
                "rank": rank,
                "alpha": alpha,
                "rank_pattern": rank_pattern,
                "alpha_pattern": alpha_pattern,
                "target_modules": tuple(sorted({module.rpartition(".")[2] for module in modules})),
            }
        )

    def canonical(self) -> bytes:
        """The config that the engine loads: keys sorted, no spaces, ASCII; no base name, no training options.

        The order inside the two patterns is kept: in an unresolved adapter the first match wins.
        """
        config: dict[str, Any] = {
            "alpha_pattern": {key: _plain_number(value) for key, value in self.alpha_pattern.items()},
            "bias": "none",
            "lora_alpha": _plain_number(self.alpha),
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(self.rank_pattern),
            "target_modules": list(self.target_modules)
            if isinstance(self.target_modules, tuple)
            else self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_rslora": self.use_rslora,
        }
        return json.dumps(config, separators=(",", ":"), allow_nan=False).encode("ascii")

    def _base_warnings(self, base_name: str | None, *, strict: bool) -> tuple[str, ...]:
        if base_name is None:
            return ()
        doubts: list[tuple[str, str]] = []
        if self.base_model_name is None:
            if strict:
                doubts.append(("base_model_name_or_path", "The config names no base model."))
        elif not is_same_base(self.base_model_name, base_name):
            doubts.append(
                (
                    "base_model_name_or_path",
                    f"The config is for the base model {_shown(self.base_model_name)}; the base is '{base_name}'.",
                )
            )
        if self.base_revision is not None:
            doubts.append(
                ("revision", f"The config names the base revision {_shown(self.base_revision)}, which is not checked.")
            )
        if strict and doubts:
            raise BaseMismatch(doubts[0][1], param=doubts[0][0])
        return tuple(message for _, message in doubts)


def _load(data: bytes) -> dict[str, Any]:
    """Parse strictly: UTF-8, one object, no duplicate keys, no NaN or infinity, bounded size and depth."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(
            f"The config has {len(data)} bytes; at most {MAX_CONFIG_BYTES} are allowed.", param="config"
        )
    try:
        config = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_not_a_number,
            parse_float=_finite_float,
        )
        json.dumps(config, ensure_ascii=False).encode("utf-8")  # an escaped lone surrogate is not text
    except RecursionError:
        raise ConfigInvalid("The config is nested too deeply.", param="config") from None
    except ValueError as error:  # malformed JSON or UTF-8, a number of thousands of digits
        raise ConfigInvalid("The config is not valid JSON in UTF-8.", param="config") from error
    if not isinstance(config, dict):
        raise ConfigInvalid("The config is not a JSON object.", param="config")
    if too_deep_text(data, config) is not None:
        raise ConfigInvalid(f"The config is nested more than {MAX_LEVELS} levels deep.", param="config")
    return config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]
        raise ConfigInvalid(f"The config has the key {_shown(duplicate)} twice.", param="config")
    return result


def _not_a_number(text: str) -> NoReturn:
    raise ConfigInvalid(f"The config holds {text}, which is not JSON.", param="config")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ConfigInvalid(f"The config holds a number that is too large ({_shown(text)}).", param="config")
    return value


def _rank(value: object, param: str) -> int:
    if value is None:
        raise ConfigInvalid(f"{param} is missing.", param=param)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigInvalid(f"{param} must be a positive integer; got {_shown(value)}.", param=param)
    return value


def _alpha(value: object, param: str) -> float:
    if value is None:
        raise ConfigInvalid(f"{param} is missing.", param=param)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_ALPHA:
        raise ConfigInvalid(f"{param} must be a number of at most {MAX_ALPHA:.0f}; got {_shown(value)}.", param=param)
    return float(value)


def _target_modules(value: object) -> tuple[str, ...] | str:
    if features.is_unset(value):
        raise ConfigInvalid("target_modules is missing.", param="target_modules")
    if isinstance(value, str) and len(value) <= MAX_TEXT_LENGTH:
        return value
    if isinstance(value, list) and len(value) <= MAX_TARGET_MODULES and all(map(_is_module_name, value)):
        return tuple(sorted(set(value)))
    raise ConfigInvalid(
        f"target_modules must be a list of at most {MAX_TARGET_MODULES} module names, or one regular expression.",
        param="target_modules",
    )


def _is_module_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_MODULE_NAME_LENGTH


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if features.is_unset(value):
        return {}
    if not isinstance(value, dict) or "" in value:
        raise ConfigInvalid(f"{key} must be an object that maps module names to numbers.", param=key)
    return value


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if features.is_unset(value):
        return False
    if value is not True:
        raise ConfigInvalid(f"{key} must be true or false; got {_shown(value)}.", param=key)
    return True


def _text(config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    if features.is_unset(value):
        return None
    if not isinstance(value, str) or len(value) > 4096:
        raise ConfigInvalid(f"{key} must be a string of at most 4096 characters.", param=key)
    return value


def is_same_base(named: str, served: str) -> bool:
    """Whether two names may mean the same base: hub ids, directories and slugs are compared by their last part."""
    return _slug(named) == _slug(served)


def _slug(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower().replace("_", "-")


def _plain_number(value: float) -> int | float:
    """An integer if the value is whole, so that 16.0 and 16 are written the same."""
    return int(value) if value == int(value) else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
