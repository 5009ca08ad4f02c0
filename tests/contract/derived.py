"""The parts of the public contract that stand in the code: fields, error codes, commands, settings, metrics."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from enum import EnumType
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel

import adapters.errors
import service.client.settings
import service.config
import service.errors
import trainer.config
import trainer.errors
import trainer.installation
import trainer.reviews.errors
from service.cli.main import app as command_line
from service.inference.routes import build_routes
from service.telemetry import metrics as telemetry

REPO: Final = Path(__file__).parent.parent.parent
Document = dict[str, Any]


# inference fields


def inference_fields() -> Document:
    """Each inference path with what it requires and what becomes of each field."""
    settings = service.config.Settings(engine_device="cpu")
    return {
        path: {
            "required": list(route.required),
            "fields": {name: _rule(rule) for name, rule in sorted(route.table.items())},
        }
        for path, route in build_routes(settings).items()
    }


def _rule(rule: Any) -> str:
    if rule.refuse is not None:
        neutral = ", ".join(map(repr, rule.neutral))
        return f"refused but for {neutral}" if neutral else "refused"
    return f"{'passed' if rule.forward else 'dropped'}: {_check(rule.check)}"


def _check(check: Callable[..., Any]) -> str:
    """A check as it is written: the function that made it, with the arguments that it was given."""
    name, _, inner = check.__qualname__.partition(".<locals>")
    if not inner:
        return name
    given = inspect.getclosurevars(check).nonlocals
    maker = getattr(inspect.getmodule(check), name, None)
    order = list(inspect.signature(maker).parameters) if maker is not None else sorted(given)
    return f"{name}({', '.join(_argument(given[part]) for part in order if part in given)})"


def _argument(value: Any) -> str:
    if inspect.isfunction(value):
        return _check(value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_argument(entry)}" for name, entry in sorted(value.items())) + "}"
    if isinstance(value, (frozenset, set)):
        return "{" + ", ".join(sorted(map(_argument, value))) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_argument, value)) + "]"
    return repr(value)


# error codes


def errors() -> Document:
    """Each package's error codes with the statuses that they may have."""
    service_classes = _classes(service.errors, service.errors.HatrackError)
    modules = (trainer.errors, trainer.reviews.errors, trainer.installation)
    trainer_classes = {
        name: kind for module in modules for name, kind in _classes(module, trainer.errors.TrainerError).items()
    }
    found: dict[str, dict[str, set[str]]] = {"service": {}, "trainer": {}}
    for kind in service_classes.values():
        found["service"].setdefault(kind.default_code or "none", set()).add(f"{kind.status} {kind.type}")
    for kind in trainer_classes.values():
        found["trainer"].setdefault(kind.code, set()).add(_status(kind))
    for package, classes in (("service", service_classes), ("trainer", trainer_classes)):
        for name, code in _raised(REPO / package):
            if name in classes:
                found[package].setdefault(code, set()).add(_status(classes[name]))
    said: Document = {
        package: {code: ", ".join(sorted(statuses)) for code, statuses in sorted(codes.items())}
        for package, codes in found.items()
    }
    of_adapters = _classes(adapters.errors, adapters.errors.AdapterError).values()
    return said | {"adapters": sorted({kind.code for kind in of_adapters})}


def _classes(module: Any, root: type) -> dict[str, Any]:
    return {name: kind for name, kind in vars(module).items() if inspect.isclass(kind) and issubclass(kind, root)}


def _status(kind: Any) -> str:
    return f"{kind.status} {kind.type}" if hasattr(kind, "status") else "on a job"


def _raised(directory: Path) -> Iterator[tuple[str, str]]:
    """Names of what is called with a `code=` that is a text, and that code."""
    for path in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield node.func.id, str(keyword.value.value)


# the command line


def commands() -> Document:
    """Each command with its arguments and options."""
    return dict(sorted(_commands(typer.main.get_command(command_line), "hatrack")))


def _commands(command: Any, path: str) -> Iterator[tuple[str, Document]]:
    yield path, dict(sorted((_name(found), _parameter(found)) for found in command.params))
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return " ".join([*parameter.opts, *parameter.secondary_opts])


def _parameter(parameter: Any) -> str:
    kind = _kind(parameter.type_descriptor.annotation)
    words = [parameter.param_type_name, "flag" if getattr(parameter, "is_flag", False) else kind]
    words += [f"{sign} {bound}" for sign, bound in ((">=", parameter.min), ("<=", parameter.max)) if bound is not None]
    if parameter.required:
        words.append("required")
    if getattr(parameter, "multiple", False) or parameter.nargs != 1:
        words.append("several")
    if isinstance(parameter.default, (int, float, str)) and parameter.default is not False:
        words.append(f"default {parameter.default}")
    return " ".join(words)


def _kind(annotation: Any) -> str:
    if isinstance(annotation, EnumType):
        return "|".join(str(member.value) for member in annotation)
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is not None:
        return " ".join(map(_kind, get_args(annotation)))
    return str(getattr(annotation, "__name__", annotation))


# settings


def settings() -> Document:
    """Each environment variable with its type, bounds and default."""
    found = _variables(service.config.Settings, "HATRACK_") | _variables(trainer.config.Settings, "HATRACK_TRAINER_")
    for name, field in service.client.settings.ClientSettings.model_fields.items():
        # the command's home is the gateway's
        found.setdefault(str(field.validation_alias or name), f"the client's, default {field.default}")
    return dict(sorted(found.items()))


def _variables(model: type[BaseModel], prefix: str) -> Document:
    properties = model.model_json_schema()["properties"]
    return {
        f"{prefix}{name.upper()}": f"{type_of(properties[name])}, default {_default(field.default)}"
        for name, field in model.model_fields.items()
    }


def _default(value: Any) -> str:
    return {None: "unset", "": "unset", (): "unset"}.get(value, str(value))


BOUNDS: Final = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "minLength": "length >=",
    "maxLength": "length <=",
    "minItems": "items >=",
    "maxItems": "items <=",
    "pattern": "like",
}


def type_of(schema: Mapping[str, Any], definitions: Mapping[str, Any] | None = None) -> str:
    """A JSON schema in a line: `integer >= 1 <= 8`, `string|null`, `array of string`."""
    definitions = schema.get("$defs", definitions) or {}
    if "$ref" in schema:
        return type_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return "|".join(type_of(entry, definitions) for entry in schema[several])
    if "enum" in schema or "const" in schema:
        return "|".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("format") or schema.get("type", "anything"))
    if kind == "array":
        kind = f"array of ({type_of(schema.get('items', {}), definitions)})"
    if kind == "object" and schema.get("properties"):
        required = schema.get("required", ())
        named = (
            f"{name}{'' if name in required else '?'}: {type_of(entry, definitions)}"
            for name, entry in sorted(schema["properties"].items())
        )
        kind = "{" + "; ".join(named) + "}"
    return " ".join([kind, *(f"{sign} {schema[name]}" for name, sign in BOUNDS.items() if name in schema)])


# metrics


def metrics() -> Document:
    """Each metric with its kind, its labels and, of a histogram, its bounds."""
    found = {metric.name: _metric(metric) for metric in telemetry.ALL}
    return dict(sorted((found | dict.fromkeys(telemetry.PROCESS_NAMES, "of the process")).items()))


def _metric(metric: telemetry.Metric) -> str:
    bounds = f" <= {', '.join(map(str, metric.bounds))}" if metric.bounds else ""
    return f"{metric.kind} by {', '.join(metric.labels) or 'nothing'}{bounds}"
